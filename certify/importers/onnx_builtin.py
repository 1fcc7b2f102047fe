"""ONNX operators the importer settles itself: constants, shapes, and values passed through.

They need no bounds. A shape is known when the model is read, so chains such as Shape, Gather,
Concat, Reshape vanish from the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from certify.core.errors import BadInput, Unsupported
from certify.importers.onnx_fold import Known, Place, check_count, constant
from certify.importers.onnx_tensors import FLOATS, quoted, type_name

_Operands = Sequence[Known | None]
Builtin = Callable[[Place, _Operands, Mapping[str, Any]], "tuple[Known, ...] | None"]

_FLOAT, _DOUBLE, _HALF = 1, 11, 10
_CASTS = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}


def builtin(
    place: Place, operands: _Operands, attrs: Mapping[str, Any]
) -> tuple[Known, ...] | None:
    """The results of ``place.op``, or None when it is not one of these operators.

    Raises:
        BadInput: malformed operands.
        LimitExceeded: a constant that would be too large.
        Unsupported: a form of the operator that is not a plain function of the input.
    """
    rule = BUILTINS.get(place.op)
    return None if rule is None else rule(place, operands, attrs)


def _first(place: Place, operands: _Operands) -> Known:
    if not operands or operands[0] is None:
        raise BadInput(f"{place.where}: its input is missing")
    return operands[0]


def _constant(place: Place, operands: _Operands, attrs: Mapping[str, Any]) -> tuple[Known, ...]:
    if len(attrs) != 1:
        raise BadInput(f"{place.where}: needs exactly one value")
    (name, value), = attrs.items()
    if name not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        raise Unsupported(f"{place.where}: {quoted(name)} is not a numeric constant")
    kind = {"value_f": np.float32, "value_i": np.int64}.get(name[:7])
    return (constant(place.outputs[0], np.asarray(value, kind)),)


def _constant_of_shape(
    place: Place, operands: _Operands, attrs: Mapping[str, Any]
) -> tuple[Known, ...]:
    sizes = _first(place, operands).native
    if sizes is None:
        raise Unsupported(f"{place.where}: its shape depends on the input's values")
    shape = tuple(int(n) for n in sizes.ravel())
    value = np.asarray(attrs.get("value", np.zeros(1, np.float32)))
    if any(n < 0 for n in shape) or value.size != 1:
        raise BadInput(f"{place.where}: cannot fill shape {list(shape)[:8]}")
    check_count(math.prod(shape), place.where)
    return (constant(place.outputs[0], np.full(shape, value.item(), value.dtype)),)


def _shape(place: Place, operands: _Operands, attrs: Mapping[str, Any]) -> tuple[Known, ...]:
    shape = _first(place, operands).value.shape
    part = shape[slice(attrs.get("start", 0), attrs.get("end", None))]
    return (constant(place.outputs[0], np.array(part, np.int64)),)


def _size(place: Place, operands: _Operands, attrs: Mapping[str, Any]) -> tuple[Known, ...]:
    count = math.prod(_first(place, operands).value.shape)
    return (constant(place.outputs[0], np.array(count, np.int64)),)


def _identity(place: Place, operands: _Operands, attrs: Mapping[str, Any]) -> tuple[Known, ...]:
    return (_first(place, operands),)


def _dropout(place: Place, operands: _Operands, attrs: Mapping[str, Any]) -> tuple[Known, ...]:
    known = _first(place, operands)
    mode = operands[2] if len(operands) > 2 else None
    if mode is not None and (mode.native is None or bool(mode.native.any())):
        raise Unsupported(
            f"{place.where}: Dropout in training mode is random; export the model in inference mode"
        )
    return (known,)  # without the mask, which is of no use at inference


def _cast(place: Place, operands: _Operands, attrs: Mapping[str, Any]) -> tuple[Known, ...] | None:
    return _to_type(place, _first(place, operands), int(attrs.get("to", 0)))


def _cast_like(
    place: Place, operands: _Operands, attrs: Mapping[str, Any]
) -> tuple[Known, ...] | None:
    like = operands[1] if len(operands) > 1 else None
    kind = "float32" if like is None or like.native is None else like.native.dtype.name
    code = next((c for c, name in _CASTS.items() if name == kind), 0)
    return _to_type(place, _first(place, operands), code)


def _to_type(place: Place, known: Known, code: int) -> tuple[Known, ...] | None:
    if known.native is None:
        if code in (_FLOAT, _DOUBLE):
            return (known,)  # in real arithmetic nothing changes
        if code in FLOATS:
            raise Unsupported(f"{place.where}: rounding to {type_name(code)} is not supported")
        return None
    if code not in _CASTS:
        raise Unsupported(f"{place.where}: casting to {type_name(code)} is not supported")
    source, target = known.native.dtype, np.dtype(_CASTS[code])
    if source == target:
        return (known,)
    if target.kind == "i" and not known.finite:
        raise BadInput(f"{place.where}: an infinity has no integer value")
    with np.errstate(all="ignore"):
        native = known.native.astype(target)
    widens = target.kind == source.kind == "f" and target.itemsize > source.itemsize
    exact = np.asarray(known.value.constant) if widens else native
    return (constant(place.outputs[0], native, exact),)


BUILTINS: dict[str, Builtin] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Shape": _shape,
    "Size": _size,
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast_like,
}
