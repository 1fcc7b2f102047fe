"""Walks the nodes of a checked ONNX model and builds graph nodes through the operator registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from certify.core.errors import BadInput, CertifyError, Unsupported, one_line
from certify.importers.onnx_attributes import Attributes, check_schema, decode, schema_of
from certify.importers.onnx_builtin import builtin
from certify.importers.onnx_checks import check_call
from certify.importers.onnx_fold import Known, Place, fold, folded
from certify.importers.onnx_functions import schema_body
from certify.importers.onnx_proto import FunctionKey, function_key, node_label, ordered
from certify.importers.onnx_tensors import quoted
from certify.ops.builder import Builder, Call, Value
from certify.ops.record import REGISTRY

_DEEPEST_CALL = 32


@dataclass(frozen=True)
class Scope:
    """Where a list of nodes lives: the model's graph, or the body of one function call.

    Attributes:
        known: tensors by name; None where an unsupported operator made them.
        opsets: operator set versions that apply here.
        attrs: attributes of the enclosing call.
        path: prefix of node names, empty at the top.
        where: the enclosing node, for messages, empty at the top.
        depth: how many calls deep this is.
    """

    known: dict[str, Known | None]
    opsets: Mapping[str, int]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    where: str = ""
    depth: int = 0


class Walk:
    """Builds nodes one by one; unsupported operators are collected, not raised.

    Attributes:
        builder: receives the nodes.
        names: ONNX tensor name by name of the graph node that computes it.
        missing: one description per unsupported operator.
    """

    def __init__(self, functions: Mapping[FunctionKey, Any]) -> None:
        self.builder = Builder()
        self.names: dict[str, str] = {}
        self.missing: list[str] = []
        self._functions = functions

    def run(self, nodes: Sequence[Any], scope: Scope, wanted: Sequence[str]) -> None:
        """Adds the results of ``nodes`` to ``scope.known``; ``wanted`` are read afterwards."""
        used = {name for node in nodes for name in node.input}.union(wanted)
        for node in ordered(nodes, set(scope.known)):
            operands = [scope.known[name] if name else None for name in node.input]
            lost = any(name and scope.known[name] is None for name in node.input)
            before = len(self.builder.nodes)
            results = self._node(node, operands, lost, scope)
            if results is None:
                scope.known.update((name, None) for name in node.output if name)
                continue
            for name, result in zip(node.output, results, strict=False):
                scope.known[name] = result
                self._remember(scope.path + name, result, before)
            for name in node.output[len(results) :]:
                if name and name in used:
                    raise Unsupported(f"{node_label(node)}: its output {quoted(name)} is not supported")

    def _remember(self, name: str, result: Known, before: int) -> None:
        fresh = {node.name for node in self.builder.nodes[before:]}
        if result.value.name in fresh:
            self.names[result.value.name] = name

    def _node(
        self, node: Any, operands: list[Known | None], lost: bool, scope: Scope
    ) -> Sequence[Known] | None:
        where = scope.where or node_label(node)
        domain = "" if node.domain == "ai.onnx" else node.domain
        body = self._functions.get(function_key(node))
        if body is not None:
            return None if lost else self._call(body, node, operands, scope)
        opset = scope.opsets.get(domain, 0)
        schema = schema_of(node, opset, domain)
        if schema is not None:
            check_schema(node, schema)
        key = node.op_type if not domain else f"{domain}.{node.op_type}"
        attrs = decode(node, scope.attrs)
        place = Place(key, opset, where, tuple(node.output))
        if not lost:
            found = self._settled(place, operands, attrs)
            if found is None and key in REGISTRY.onnx:
                found = self._translate(node, place, operands, attrs, scope)
            if found is not None:
                return found
        elif key in REGISTRY.onnx:
            return None
        body = schema_body(node, opset, operands) if not domain and not lost else None
        if body is not None:
            return self._call(body, node, operands, scope)
        if not lost or schema is None or not (schema.has_function or schema.has_context_dependent_function):
            self._miss(node, key, operands)
        return None

    def _settled(
        self, place: Place, operands: list[Known | None], attrs: Mapping[str, Any]
    ) -> Sequence[Known] | None:
        found = builtin(place, operands, attrs)
        if found is None and all(k is None or k.native is not None for k in operands):
            found = fold(place, operands, attrs)
        return found

    def _translate(
        self, node: Any, place: Place, operands: list[Known | None], attrs: Mapping[str, Any], scope: Scope
    ) -> list[Known]:
        check_call(node.op_type, operands, attrs, place.where)
        record, translate = REGISTRY.onnx[place.op]
        builder = self.builder
        builder.where = place.where
        builder.prefix = scope.path + next((n for n in node.output if n), "v")
        inputs = tuple(None if k is None else k.value for k in operands)
        seen = Attributes(attrs)
        call = Call(builder.prefix, place.op, inputs, seen, place.opset, len(node.output), place.where)
        try:
            result = (
                builder.add(record, *inputs, name=call.name) if translate is None else translate(builder, call)
            )
        except CertifyError as problem:
            raise type(problem)(f"{_located(problem, place.where)}{_shapes(operands)}") from None
        except (ValueError, TypeError, IndexError, KeyError, ArithmeticError, RuntimeError) as problem:
            raise BadInput(f"{place.where}: {problem}{_shapes(operands)}") from problem
        seen.check_read(node, schema_of(node, place.opset))
        values = (result,) if isinstance(result, Value) else tuple(result)
        return [Known(v) if v.constant is None else folded(v, operands) for v in values]

    def _call(
        self, body: Any, node: Any, operands: list[Known | None], scope: Scope
    ) -> Sequence[Known] | None:
        """The results of a function call, its body expanded in place."""
        where = scope.where or node_label(node)
        if scope.depth >= _DEEPEST_CALL:
            raise Unsupported(f"{where}: function calls are nested too deeply")
        if len(node.input) > len(body.input) or len(node.output) > len(body.output):
            raise BadInput(f"{where}: does not fit the function it calls")
        padded = operands + [None] * (len(body.input) - len(operands))
        given = {name: k for name, k in zip(body.input, padded, strict=True) if k is not None}
        attrs = {a.name: a for a in body.attribute_proto}
        defaults = decode(_WithAttributes(node.op_type, node.name, node.output, list(attrs.values())), {})
        inner = Scope(
            known=dict(given),
            opsets={("" if o.domain == "ai.onnx" else o.domain): o.version for o in body.opset_import},
            attrs={**defaults, **decode(node, scope.attrs)},
            path=f"{scope.path}{next((n for n in node.output if n), 'call')}/",
            where=where,
            depth=scope.depth + 1,
        )
        omitted = set(body.input) - set(given)
        self.run([_without(n, omitted) for n in body.node], inner, list(body.output))
        results = [inner.known.get(name) for name in body.output[: len(node.output)]]
        if any(name not in inner.known for name in body.output[: len(node.output)]):
            raise BadInput(f"{where}: the function does not produce all its outputs")
        return None if any(r is None for r in results) else [r for r in results if r is not None]

    def _miss(self, node: Any, key: str, operands: Sequence[Known | None]) -> None:
        shapes = ", ".join(str(list(k.value.shape)) for k in operands[:3] if k is not None)
        name = node.name or next((n for n in node.output if n), "?")
        at = f" on {shapes}" if shapes else ""
        self.missing.append(f"{one_line(key, 40)} at node {quoted(name, 40)}{at}")


@dataclass(frozen=True)
class _WithAttributes:
    """Enough of a node for `decode`: a function's default attributes."""

    op_type: str
    name: str
    output: Sequence[str]
    attribute: Sequence[Any]


def _without(node: Any, omitted: set[str]) -> Any:
    """``node`` with omitted optional inputs of the enclosing function left empty."""
    if not omitted.intersection(node.input):
        return node
    copy = type(node)()
    copy.CopyFrom(node)
    copy.input[:] = ["" if name in omitted else name for name in node.input]
    return copy


def _located(problem: CertifyError, where: str) -> str:
    text = str(problem)
    return text if where in text else f"{where}: {text}"


def _shapes(operands: Sequence[Known | None]) -> str:
    named = [f"{quoted(k.value.name, 30)} {list(k.value.shape)}" for k in operands if k is not None]
    return f" (operands {', '.join(named)})" if named else ""
