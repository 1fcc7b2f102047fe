"""Nodes whose operands are all constant, evaluated while a model is read.

Every constant is kept twice. ``native`` is what the model's own element type gives; shapes,
integers and everything that jumps (floor, comparisons) come from it, as they do at run time. The
value that enters the graph is computed in float64, because the claim is about real arithmetic on
the stored weights. Sizes are computed before anything is evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from certify.core.errors import BadInput, LimitExceeded
from certify.core.graph import Shape
from certify.importers.onnx_tensors import quoted
from certify.ops.builder import Value, as_numpy

LARGEST_FOLD = 2**24  # elements of a constant that is computed, not stored


@dataclass(frozen=True)
class Known:
    """A tensor while a model is read: its value, and for a constant its native array."""

    value: Value
    native: np.ndarray | None = None

    @property
    def finite(self) -> bool:
        """Whether this is not a constant that holds an infinity."""
        return self.native is None or _finite(self.native)


class Place(NamedTuple):
    """Which operator is evaluated, and what messages call it."""

    op: str
    opset: int
    where: str
    outputs: tuple[str, ...]


def constant(name: str, native: np.ndarray, exact: np.ndarray | None = None) -> Known:
    """A constant; ``exact`` is its float64 value where that differs from the native one."""
    array = native if exact is None else exact
    return Known(Value(name, tuple(native.shape), array), native)


def folded(value: Value, operands: Sequence[Known | None]) -> Known:
    """A constant that operator records computed; its native type follows its operands."""
    exact = np.asarray(as_numpy(value.constant))
    kinds = [k.native.dtype for k in operands if k is not None and k.native is not None]
    floats = [kind for kind in kinds if kind.kind == "f"]
    native = exact.astype(floats[0]) if floats and exact.dtype.kind == "f" else exact
    return Known(Value(value.name, value.shape, exact), native)


def fold(
    place: Place, operands: Sequence[Known | None], attrs: Mapping[str, Any]
) -> tuple[Known, ...] | None:
    """The results of an operator on constants, or None for operators that are not folded here.

    Raises:
        BadInput: operands do not fit, or a result is not finite; names the operands.
        LimitExceeded: a result would have more than ``LARGEST_FOLD`` elements.
    """
    size = _SIZES.get(place.op)
    if size is None or not operands or operands[0] is None:
        return None
    arrays = [None if k is None else k.native for k in operands]
    try:
        count = size([a for a in arrays if a is not None], attrs)
    except (ValueError, IndexError, TypeError, OverflowError) as problem:
        raise BadInput(f"{place.where}: {problem}{_named(operands)}") from None
    _check_count(count, place, arrays)
    _check_divisor(place, operands)
    native = _evaluate(place, arrays, attrs, operands)
    exact = _exactly(place, operands, attrs, native)
    _check_finite(place, operands, (*native, *exact))
    return tuple(
        constant(name, n, e) for name, n, e in zip(place.outputs, native, exact, strict=True)
    )


def check_count(count: int, where: str) -> None:
    """Raises `LimitExceeded` when a computed constant would be too large."""
    if count > LARGEST_FOLD:
        raise LimitExceeded(f"{where}: makes a constant of {count} elements, over {LARGEST_FOLD}")


def _check_count(count: int, place: Place, arrays: Sequence[np.ndarray | None]) -> None:
    if count > max((a.size for a in arrays if a is not None), default=0):
        check_count(count, place.where)


def _evaluate(
    place: Place,
    arrays: Sequence[np.ndarray | None],
    attrs: Mapping[str, Any],
    operands: Sequence[Known | None],
) -> tuple[np.ndarray, ...]:
    from onnx.reference.ops import load_op

    try:
        with np.errstate(all="ignore"):
            if place.op == "CumSum":  # a runtime also takes an axis of shape (1,)
                arrays = [arrays[0], np.reshape(np.asarray(arrays[1]), ())]
            operator = load_op("", place.op, place.opset)
            result = operator.eval(*arrays, n_outputs=len(place.outputs), **attrs)
    except Exception as problem:  # the reference operators state no errors of their own
        raise BadInput(f"{place.where}: cannot be evaluated: {problem}{_named(operands)}") from None
    several = result if isinstance(result, (tuple, list)) else (result,)
    if len(several) < len(place.outputs):
        raise BadInput(f"{place.where}: has fewer results than the node names")
    # In order, because torch reads no array that runs backwards.
    return tuple(np.asarray(r, order="C") for r in several[: len(place.outputs)])


def _exactly(
    place: Place,
    operands: Sequence[Known | None],
    attrs: Mapping[str, Any],
    native: tuple[np.ndarray, ...],
) -> tuple[np.ndarray, ...]:
    if place.op in _JUMPS or any(r.dtype.kind != "f" for r in native):
        return native
    arrays = [None if k is None else np.asarray(k.value.constant) for k in operands]
    if place.op in _MOVES and all(
        k is None or a is k.native for k, a in zip(operands, arrays, strict=True)
    ):
        return native
    wide = [a if a is None or a.dtype.kind != "f" else a.astype(np.float64) for a in arrays]
    exact = _evaluate(place, wide, attrs, operands)
    return tuple(e if e.shape == n.shape else n for e, n in zip(exact, native, strict=True))


def _check_divisor(place: Place, operands: Sequence[Known | None]) -> None:
    if place.op not in ("Div", "Mod") or len(operands) != 2:
        return
    divisor = operands[1]
    if divisor is not None and divisor.native is not None and (divisor.native == 0).any():
        name = quoted(divisor.value.name)
        raise BadInput(f"{place.where}: divides by {name}, which holds a zero")


def _check_finite(
    place: Place, operands: Sequence[Known | None], results: Sequence[np.ndarray]
) -> None:
    if all(_finite(r) for r in results):
        return
    carried = place.op in _MOVES | _CARRY and any(k is not None and not k.finite for k in operands)
    if not carried or any(r.dtype.kind == "f" and np.isnan(r).any() for r in results):
        raise BadInput(f"{place.where}: the result is not finite{_named(operands)}")


def _finite(array: np.ndarray) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _named(operands: Sequence[Known | None]) -> str:
    names = [f"{quoted(k.value.name, 30)} {k.value.shape}" for k in operands if k is not None]
    return "; operands " + ", ".join(names) if names else ""


# How large a result can get, from the operands alone: (arrays, attrs) -> elements.
_Size = Callable[[Sequence[np.ndarray], Mapping[str, Any]], int]


def _broadcast(arrays: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> int:
    return math.prod(_together(*(a.shape for a in arrays)))


def _together(*shapes: Shape) -> Shape:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    sizes = [{n for n in axis if n != 1} or {1} for axis in zip(*padded, strict=True)]
    if any(len(s) > 1 for s in sizes):
        raise ValueError(f"shapes {shapes} do not broadcast")
    return tuple(s.pop() for s in sizes)


def _same(arrays: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> int:
    return int(arrays[0].size)


def _sum(arrays: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> int:
    return sum(a.size for a in arrays)


def _gather(arrays: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> int:
    data, indices = arrays
    kept = data.shape[attrs.get("axis", 0)]
    return int(indices.size) * int(data.size // kept if kept else 0)


def _expand(arrays: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> int:
    return math.prod(_together(arrays[0].shape, tuple(map(int, arrays[1].ravel()))))


def _tile(arrays: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> int:
    return int(arrays[0].size) * math.prod(map(int, arrays[1].ravel()))


def _range(arrays: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> int:
    start, limit, delta = (a.item() for a in arrays)
    if not delta:
        raise ValueError("a range with step 0")
    return max(0, int(math.ceil((limit - start) / delta)))


def _positions(arrays: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> int:
    return int(arrays[0].size) * arrays[0].ndim


def _one_hot(arrays: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> int:
    indices, depth = arrays[:2]
    return int(indices.size) * int(depth.item())


def _pairs(ops: str, size: _Size) -> dict[str, _Size]:
    return dict.fromkeys(ops.split(), size)


_SIZES: dict[str, _Size] = {
    **_pairs(
        "Abs Add And Ceil Clip Cos Div Equal Erf Exp Floor Greater GreaterOrEqual Less LessOrEqual "
        "Log Max Mean Min Mod Mul Neg Not Or Pow Reciprocal Relu Round Sigmoid Sign Sin Sqrt Sub "
        "Sum Tan Tanh Where Xor",
        _broadcast,
    ),
    **_pairs(
        "ArgMax ArgMin CumSum Flatten ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare Reshape Slice Split Squeeze Transpose Trilu Unsqueeze",
        _same,
    ),
    "Concat": _sum,
    "Gather": _gather,
    "Expand": _expand,
    "Tile": _tile,
    "Range": _range,
    "IsInf": _same,
    "IsNaN": _same,
    "EyeLike": _same,
    "NonZero": _positions,
    "OneHot": _one_hot,
}
FOLDED = frozenset(_SIZES)
_MOVES = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Tile"}
    | {"Transpose", "Trilu", "Unsqueeze"}
)
_CARRY = frozenset({"Clip", "Max", "Min", "Where"})  # may pass an infinity on without being wrong
_JUMPS = frozenset({"Ceil", "Floor", "Mod", "Round", "Sign"})
