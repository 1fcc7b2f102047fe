"""Graphs inside nodes: what they hold, what they read, and which branch of an ``If`` runs.

A branch has no inputs: its nodes read the tensors around it by name. Where the condition is a
constant, the chosen branch stands for the node and the other one is never looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from certify.core.errors import BadInput, Refused, Unsupported, one_line
from certify.importers.onnx_fold import Known, Place, constant
from certify.importers.onnx_tensors import quoted, to_array

CHOICE = "If"
DEEPEST = 8  # graphs inside graphs; what a compiler makes of nested conditions is shallower


def bodies(node: Any) -> Iterator[Any]:
    """The graphs among a node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nested(nodes: Iterable[Any], depth: int = 0) -> Iterator[Any]:
    """``nodes`` and those of all graphs inside them.

    Raises:
        Unsupported: graphs inside graphs inside graphs, too many.
    """
    for node in nodes:
        yield node
        for body in bodies(node):
            if depth == DEEPEST:
                raise Unsupported(
                    f"{one_line(node.op_type, 40)} {quoted(node.name)}: graphs are "
                    f"nested more than {DEEPEST} deep"
                )
            yield from nested(body.node, depth + 1)


def reads(node: Any) -> set[str]:
    """Names of the tensors a node needs: its operands, and what its graphs read around them."""
    found = {name for name in node.input if name}
    for body in bodies(node):
        inside = {value.name for value in body.input} | {t.name for t in body.initializer}
        wanted = {value.name for value in body.output}
        for inner in body.node:
            inside.update(inner.output)
            wanted |= reads(inner)
        found |= wanted - inside
    return found


def chosen(place: Place, operands: Sequence[Known | None], attrs: Mapping[str, Any]) -> Any | None:
    """The branch of an ``If`` that runs, or None where its condition depends on the input.

    Raises:
        BadInput: no branch, a condition that is not one truth value, or a branch that does not fit.
    """
    condition = operands[0] if operands else None
    if condition is None or condition.native is None:
        return None
    if condition.native.size != 1 or condition.native.dtype.kind != "b":
        raise BadInput(
            f"{place.where}: its condition must be one truth value, not "
            f"{condition.native.dtype} {list(condition.native.shape)}"
        )
    name = "then_branch" if condition.native.item() else "else_branch"
    attribute = attrs.get(name)
    if attribute is None or not attribute.HasField("g"):
        raise BadInput(f"{place.where}: {name} is missing")
    body = attribute.g
    if len(body.input) or len(body.output) != len(place.outputs):
        raise BadInput(
            f"{place.where}: {name} must have no input and {len(place.outputs)} "
            f"output{'s' * (len(place.outputs) != 1)}"
        )
    return body


def initializers(body: Any, where: str) -> dict[str, Known]:
    """The constants of a graph inside a node.

    Raises:
        BadInput: two of one name, or a malformed one.
        Unsupported: sparse tensors.
        Refused: external data.
    """
    if len(body.sparse_initializer):
        raise Unsupported(f"{where}: sparse tensors are not supported; store the model densely")
    found: dict[str, Known] = {}
    for tensor in body.initializer:
        what = f"{where}: initializer {quoted(tensor.name)}"
        if tensor.name in found or not tensor.name:
            raise BadInput(f"{what} is there twice" if tensor.name else f"{what} has no name")
        if len(tensor.external_data) or tensor.data_location == 1:
            raise Refused(f"{what}: external data is not allowed inside a branch")
        found[tensor.name] = constant(tensor.name, to_array(tensor, what))
    return found
