"""Attributes and arity of ONNX nodes, decoded and held against the operator's schema."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from certify.core.errors import BadInput, Unsupported
from certify.importers.onnx_proto import domain_of, node_label
from certify.importers.onnx_tensors import quoted, to_array

_FLOAT, _INT, _STRING, _TENSOR, _FLOATS, _INTS, _STRINGS, _TENSORS = 1, 2, 3, 4, 6, 7, 8, 9
_INFINITE = {"Clip", "Pad", "Constant"}  # where an infinite attribute has a meaning of its own
_NO_EFFECT = {  # on the values of the first output, at inference
    ("BatchNormalization", "momentum"), ("MaxPool", "storage_order"), ("Dropout", "ratio"),
    ("Conv", "kernel_shape"), ("ConvTranspose", "kernel_shape"),  # checked against the weight
    ("Dropout", "seed"), ("LayerNormalization", "stash_type"), ("Cast", "saturate"),
}


def schema_of(node: Any, opset: int, domain: str = "") -> Any | None:
    """The operator's schema at ``opset``, or None when ONNX does not know it."""
    import onnx

    try:
        return onnx.defs.get_schema(node.op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None


def decode(node: Any, outer: Mapping[str, Any]) -> dict[str, Any]:
    """Attribute values by name: Python numbers, strings, lists, and numpy arrays for tensors.

    ``outer`` holds the attributes of the enclosing function call, for references to them.
    Subgraphs are left as they are.

    Raises:
        BadInput: an attribute is given twice or is not a finite number.
    """
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.name in found:
            raise BadInput(f"{node_label(node)}: attribute {quoted(attribute.name)} is given twice")
        if attribute.ref_attr_name:
            if attribute.ref_attr_name in outer:
                found[attribute.name] = outer[attribute.ref_attr_name]
        else:
            found[attribute.name] = value_of(attribute, node)
    return found


def defaults(body: Any, node: Any, opsets: Mapping[str, int]) -> dict[str, Any]:
    """Values of a function's attributes where a call of it gives none.

    Args:
        body: the ``FunctionProto``.
        node: the call.
        opsets: versions that apply to the call.
    """
    domain = domain_of(node.domain)
    schema = schema_of(node, opsets.get(domain, 0), domain)
    declared = [] if schema is None else [a.default_value for a in schema.attributes.values()]
    given = [a for a in (*declared, *body.attribute_proto) if a.type]
    return {a.name: value_of(a, node) for a in given}


def value_of(attribute: Any, node: Any) -> Any:
    """One attribute's value; see `decode`."""
    where = f"{node_label(node)}: attribute {quoted(attribute.name)}"
    kind = attribute.type
    if kind in (_FLOAT, _FLOATS):
        numbers = [attribute.f] if kind == _FLOAT else list(attribute.floats)
        _check_numbers(numbers, node.op_type, where)
        return numbers[0] if kind == _FLOAT else numbers
    if kind == _INT:
        return attribute.i
    if kind == _INTS:
        return list(attribute.ints)
    if kind == _STRING:
        return attribute.s.decode(errors="replace")
    if kind == _STRINGS:
        return [s.decode(errors="replace") for s in attribute.strings]
    if kind == _TENSOR:
        return to_array(attribute.t, where)
    if kind == _TENSORS:
        return [to_array(t, where) for t in attribute.tensors]
    if kind == 0:
        raise BadInput(f"{where} has no type")
    return attribute  # a subgraph, sparse tensor or type


def _check_numbers(numbers: list[float], op: str, where: str) -> None:
    for number in numbers:
        if math.isnan(number) or (math.isinf(number) and op not in _INFINITE):
            raise BadInput(f"{where} is {number}")


def check_schema(node: Any, schema: Any) -> None:
    """Raises `BadInput` where attributes or operand counts do not fit the schema."""
    where = node_label(node)
    for attribute in node.attribute:
        declared = schema.attributes.get(attribute.name)
        if declared is None:
            raise BadInput(f"{where}: there is no attribute {quoted(attribute.name)} in this opset")
        if int(declared.type.value) != attribute.type:
            raise BadInput(f"{where}: attribute {quoted(attribute.name)} has the wrong type")
    given = {attribute.name for attribute in node.attribute}
    for name, declared in schema.attributes.items():
        if declared.required and name not in given:
            raise BadInput(f"{where}: attribute {quoted(name)} is missing")
    if not schema.min_input <= len(node.input) <= schema.max_input:
        raise BadInput(f"{where}: {len(node.input)} inputs do not fit the operator")
    if not schema.min_output <= len(node.output) <= schema.max_output:
        raise BadInput(f"{where}: {len(node.output)} outputs do not fit the operator")


class Attributes(Mapping[str, Any]):
    """Attributes that remember which of them were looked at.

    A setting that a translation does not know must not be dropped in silence: the bounds would be
    those of another network.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)
        self._read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def check_read(self, node: Any, schema: Any | None) -> None:
        """Raises `Unsupported` for an attribute that was set, matters, and was never looked at."""
        for name, value in self._values.items():
            if name in self._read or (node.op_type, name) in _NO_EFFECT:
                continue
            if schema is not None and name in schema.attributes:
                default = schema.attributes[name].default_value
                if default.type and np.array_equal(value_of(default, node), value):
                    continue
            raise Unsupported(f"{node_label(node)}: attribute {quoted(name)} is not supported here")
