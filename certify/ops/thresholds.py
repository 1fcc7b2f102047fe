"""Functions that are straight with a jump: threshold, thresholded ReLU, hard shrink."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.graph import Shape
from certify.ops.builder import Builder, Call, Value
from certify.ops.corners import Corners, Point
from certify.ops.oracle import Tail
from certify.ops.scalar import examples, inplace, number, scalar

if TYPE_CHECKING:
    from torch import Tensor

LINE = Tail(1.0, True)  # parallel to the identity far out


def _threshold_forward(x: Tensor, at: float, below: float) -> Tensor:
    import torch

    return torch.where(x > at, x, below)


def _threshold(at: float, below: float) -> Corners:
    def f(z: Tensor) -> Tensor:
        return _threshold_forward(z, at, below)

    def df(z: Tensor) -> Tensor:
        return (z > at).double()

    def points(sign: int, low: Tensor, high: Tensor) -> Iterator[Point]:
        crossing = (low <= at) & (high >= at)
        yield from _limits(f, low, (at, below, crossing), (at, at, crossing & (high > at)))

    return Corners(f, df, right=LINE, low=min(at, below), monotone=int(below <= at), points=points)


def _shrink_forward(x: Tensor, lambd: float, bias: float) -> Tensor:
    import torch

    inner = torch.where(x > lambd, x - bias, torch.zeros_like(x))
    return torch.where(x < -lambd, x + bias, inner)


def _shrink(lambd: float, bias: float) -> Corners:
    def f(z: Tensor) -> Tensor:
        return _shrink_forward(z, lambd, bias)

    def df(z: Tensor) -> Tensor:
        return (z.abs() > lambd).double()

    def points(sign: int, low: Tensor, high: Tensor) -> Iterator[Point]:
        left, right = ((low <= z) & (high >= z) for z in (-lambd, lambd))
        yield from _limits(
            f, low, (-lambd, 0.0, left), (-lambd, bias - lambd, left & (low < -lambd))
        )
        yield from _limits(
            f, low, (lambd, 0.0, right), (lambd, lambd - bias, right & (high > lambd))
        )

    # A difference is rounded, unless it is 0.
    size = None if bias == 0 else lambda z, value: (z.abs() + abs(bias)) * (value != 0)
    return Corners(
        f, df, left=LINE, right=LINE, monotone=int(bias <= lambd), points=points, size=size
    )


def _limits(f: Any, low: Tensor, *found: tuple[float, float, Tensor]) -> Iterator[Point]:
    """Corners ``(z, value)`` where they lie in the interval, else its lower end again."""
    import torch

    for z, value, here in found:
        yield torch.where(here, z, low), torch.where(here, value, f(low))


def _shrink_shape(attrs: Any, x: Shape) -> Shape:
    if not 0 <= attrs["lambd"] < inf:
        raise ValueError(f"lambd must be at least 0, not {attrs['lambd']}")
    return x


def _stored(b: Builder, value: float) -> float:
    """A setting in the precision the model compares it in."""
    return float(np.float32(value)) if b.single else value


def _threshold_aten(b: Builder, call: Call) -> Value:
    at, below = (_stored(b, number(call, k, 0.0)) for k in (1, 2))
    if at == 0 and below == 0:
        return b.add("relu", call.arg(0), name=call.name)
    return b.add("threshold", call.arg(0), name=call.name, at=at, below=below)


def _thresholded_relu(b: Builder, call: Call) -> Value:
    at = float(call.attr("alpha", 1.0))
    return b.add("threshold", call.arg(0), name=call.name, at=at, below=0.0)


def _hard_shrink(b: Builder, call: Call) -> Value:
    lambd = _stored(b, number(call, 1, 0.5))
    return b.add("shrink", call.arg(0), name=call.name, lambd=lambd, bias=0.0)


def _shrink_onnx(b: Builder, call: Call) -> Value:
    lambd, bias = float(call.attr("lambd", 0.5)), float(call.attr("bias", 0.0))
    return b.add("shrink", call.arg(0), name=call.name, lambd=lambd, bias=bias)


scalar(
    "threshold",
    _threshold_forward,
    _threshold,
    examples=examples(at=1.0, below=0.0)
    + examples((-1.0, 2.0), at=-0.5, below=0.0)
    + examples((-2.0, 1.0), at=0.25, below=20.0),
    onnx={"ThresholdedRelu": _thresholded_relu},
    aten=inplace("threshold", _threshold_aten),
    float32_roundings=0,
    summary="x above a threshold, else a given value",
)
scalar(
    "shrink",
    _shrink_forward,
    _shrink,
    shape=_shrink_shape,
    examples=examples(lambd=0.5, bias=0.0)
    + examples((-1.0, 2.0), (-2.0, 0.5), lambd=0.5, bias=0.5)
    + examples((-1.0, 2.0), (-2.0, 1.0), lambd=0.25, bias=1.5),
    onnx={"Shrink": _shrink_onnx},
    aten={"aten.hardshrink.default": _hard_shrink},
    float32_roundings=1,
    summary="0 from -lambd to lambd, else x moved towards 0 by bias",
)
