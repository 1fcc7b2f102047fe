"""Reading the arguments of a source model's call: axes, integer lists, plain numbers, shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from certify.core.errors import BadInput
from certify.core.graph import Shape
from certify.ops.builder import Builder, Call, Value, as_numpy


def integers(found: Any) -> tuple[int, ...]:
    """A tuple of Python integers from a number, a sequence or an array of them; () for None."""
    if found is None:
        return ()
    if isinstance(found, (int, np.integer)):
        return (int(found),)
    return tuple(int(n) for n in np.asarray(found).reshape(-1).tolist())


def spread(found: Any, count: int, default: int) -> tuple[int, ...]:
    """`integers`, one number repeated to ``count`` entries, and ``default`` where there is none."""
    given = integers(found) or (default,)
    return given * count if len(given) == 1 else given


def axis_of(call: Call, axis: Any, rank: int) -> int:
    """``axis`` counted from the end.

    Raises:
        BadInput: it is outside a tensor of that rank.
    """
    number = int(axis)
    if not -rank <= number < rank:
        raise BadInput(
            f"{call.where or call.name}: axis {number} is outside a tensor of rank {rank}"
        )
    return number - rank if number >= 0 else number


def axes_of(call: Call, axes: Any, rank: int) -> tuple[int, ...]:
    """Sorted distinct negative axes; every axis when ``axes`` is None or empty."""
    given = integers(axes)
    if not given:
        return tuple(range(-rank, 0))
    return tuple(sorted({axis_of(call, axis, rank) for axis in given}))


def number_of(call: Call, index: int, default: float | None = None) -> float:
    """Constant argument ``index`` as one number.

    Raises:
        BadInput: it is not constant, or holds none or several numbers.
    """
    array = np.asarray(call.static(index, default))
    if array.size != 1 or array.dtype == object:
        raise BadInput(f"{call.where or call.name}: operand {index} must be one number")
    return float(array.reshape(-1)[0])


def operand(b: Builder, found: Any, beside: Value | None = None) -> Value:
    """A `Value` from an argument that may be a plain number.

    Beside a constant (shape arithmetic) an integer stays an integer; else numbers are float64.
    """
    if isinstance(found, Value):
        return found
    integral = beside is not None and beside.constant is not None and isinstance(found, int)
    return b.constant(np.asarray(found, dtype=np.int64 if integral else np.float64))


def scaled(b: Builder, value: Value, factor: float) -> Value:
    """``factor * value``; a constant is multiplied in float64, never in its own precision."""
    if factor == 1:
        return value
    if value.constant is None:
        return b.add("mul", value, b.constant(np.asarray(factor, dtype=np.float64)))
    array = value.constant
    wide = array.double() if hasattr(array, "double") else np.asarray(array, dtype=np.float64)
    return b.constant(wide * factor)


def listed(call: Call, found: Iterable[Any]) -> tuple[Value, ...]:
    """The members of a list argument, which must all be tensors."""
    values = tuple(found)
    if not values or not all(isinstance(v, Value) for v in values):
        raise BadInput(f"{call.where or call.name}: expected a non-empty list of tensors")
    return values


def broadcast_shape(*shapes: Shape) -> Shape:
    """The common shape under broadcasting (NumPy's rule).

    Raises:
        ValueError: two sizes differ and neither is 1.
    """
    rank = max((len(s) for s in shapes), default=0)
    found = []
    for k in range(-rank, 0):
        sizes = {s[k] for s in shapes if len(s) >= -k} - {1}
        if len(sizes) > 1:
            raise ValueError(f"sizes {sorted(sizes)} meet on axis {k}")
        found.append(sizes.pop() if sizes else 1)
    return tuple(found)


def repeats(shape: Shape, result: Shape) -> int:
    """How many result elements one element of an operand of ``shape`` is broadcast to."""
    size = math.prod(shape)
    return math.prod(result) // size if size else 1


def static_array(value: Value) -> np.ndarray | None:
    """The constant as numpy, or None for a variable."""
    return None if value.constant is None else as_numpy(value.constant)


__all__ = [
    "axes_of",
    "axis_of",
    "broadcast_shape",
    "integers",
    "listed",
    "number_of",
    "operand",
    "repeats",
    "scaled",
    "spread",
    "static_array",
]
