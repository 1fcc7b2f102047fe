"""Clips and staircases, and the functions made of a clip: hard sigmoid, hard swish."""

from __future__ import annotations

import math
from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.errors import Unsupported
from certify.core.graph import Shape
from certify.ops.builder import Builder, Call, Value
from certify.ops.corners import Corners, Point
from certify.ops.curve import Curve, Piece
from certify.ops.oracle import Tail
from certify.ops.scalar import (
    RANGES,
    examples,
    inplace,
    number,
    scalar,
    simple,
    torch_function,
)

if TYPE_CHECKING:
    from torch import Tensor

COARSE = 2.0**50  # beyond it halves and neighbours of integers are not all representable


def _zero(z: Tensor) -> Tensor:
    return z * 0


def _inside(place: float, low: Tensor, high: Tensor) -> Tensor:
    return low.clamp(min=place).minimum(high)


def _clip(min: float, max: float) -> Corners:
    def f(z: Tensor) -> Tensor:
        return z.clamp(min, max)

    def df(z: Tensor) -> Tensor:
        return ((z >= min) & (z <= max)).double()

    def points(sign: int, low: Tensor, high: Tensor) -> Iterator[Point]:
        for place in (min, max):
            if math.isfinite(place):
                z = _inside(place, low, high)
                yield z, f(z)

    left, right = (Tail(float(not math.isfinite(end)), True) for end in (min, max))
    return Corners(
        f, df, left=left, right=right, low=_order(min, max), high=max, monotone=1, points=points
    )


def _order(low: float, high: float) -> float:
    return min(low, high)  # an upper limit below the lower one wins


def _hard_sigmoid(alpha: float, beta: float) -> Corners:
    def f(z: Tensor) -> Tensor:
        return (alpha * z + beta).clamp(0.0, 1.0)

    def df(z: Tensor) -> Tensor:
        w = alpha * z + beta
        return alpha * ((w >= 0) & (w <= 1)).double()

    def points(sign: int, low: Tensor, high: Tensor) -> Iterator[Point]:
        for value in (0.0, 1.0) if alpha else ():
            z = _inside((value - beta) / alpha, low, high)
            yield z, f(z)

    return Corners(
        f,
        df,
        low=0.0,
        high=1.0,
        monotone=1 if alpha >= 0 else -1,
        steepest=abs(alpha),
        points=points,
        size=lambda z, value: abs(alpha) * z.abs() + (abs(beta) + 1),
    )


def _hard_swish() -> Curve:
    def f(z: Tensor) -> Tensor:
        return z * ((z + 3).clamp(0.0, 6.0) / 6)

    def df(z: Tensor) -> Tensor:
        import torch

        inner = (2 * z.clamp(-3.0, 3.0) + 3) / 6
        return torch.where(z > 3, 1.0, torch.where(z < -3, 0.0, inner))

    return Curve(
        f,
        df,
        right=Tail(1.0, True),
        low=-0.375,
        steepest=1.5,
        steep=1.0,
        pieces=(Piece(-3.0, 0), Piece(3.0, 1, lambda k: 3 * k - 1.5), Piece(inf, 0)),
    )


def _step(left: float, at_zero: float, right: float) -> Corners:
    """``left`` below 0, ``right`` above it."""
    import torch

    def f(z: Tensor) -> Tensor:
        return torch.where(z < 0, left, torch.where(z > 0, right, at_zero)).to(z.dtype) + z * 0

    def points(sign: int, low: Tensor, high: Tensor) -> Iterator[Point]:
        zero, crossing = torch.zeros_like(low), (low <= 0) & (high >= 0)
        for reached, value in ((low < 0, left), (crossing, at_zero), (high > 0, right)):
            here = crossing & reached
            yield torch.where(here, zero, low), torch.where(here, value, f(low))

    order = sorted((left, at_zero, right))
    rises = [left, at_zero, right] == order
    return Corners(f, _zero, low=order[0], high=order[-1], monotone=int(rises), points=points)


def _stairs(name: str, offset: float, before: float) -> Any:
    """Steps of 1 at ``integer + offset``, from ``place - before`` to ``place - before + 1``."""

    def declare() -> Corners:
        import torch

        f = getattr(torch, name)

        def points(sign: int, low: Tensor, high: Tensor) -> Iterator[Point]:
            if sign > 0:  # the value just before a step, which may lie at the right end
                first = torch.floor(low - offset) + 1 + offset
                last = torch.floor(high - offset) + offset
            else:  # just after it
                first = torch.ceil(low - offset) + offset
                last = torch.ceil(high - offset) - 1 + offset
            shift = -before if sign > 0 else 1 - before
            for place in (first, last):
                ok = (
                    (place > low) & (place <= high) if sign > 0 else (place >= low) & (place < high)
                )
                yield torch.where(ok, place, low), torch.where(ok, place + shift, f(low))

        return Corners(
            f,
            _zero,
            left=Tail(1.0, True),
            right=Tail(1.0, True),
            monotone=1,
            points=points,
            size=lambda z, value: z.abs() * (z.abs() > COARSE),
        )

    return declare


def _clip_shape(attrs: Any, x: Shape) -> Shape:
    if math.isnan(attrs["min"]) or math.isnan(attrs["max"]):
        raise ValueError("a limit of a clip is NaN")
    return x


def _clip_forward(x: Tensor, min: float, max: float) -> Tensor:
    return x.clamp(min, max)


def _hard_sigmoid_forward(x: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha * x + beta).clamp(0.0, 1.0)


def _heaviside_forward(x: Tensor, at_zero: float) -> Tensor:
    import torch

    return torch.heaviside(x, x.new_tensor(at_zero))


def _clip_onnx(b: Builder, call: Call) -> Value:
    low = number(call, 1, call.attr("min", -inf))
    return _add_clip(b, call, low, number(call, 2, call.attr("max", inf)))


def _clip_aten(low: float, high: float) -> Any:
    def translate(b: Builder, call: Call) -> Value:
        return _add_clip(b, call, number(call, 1, low), number(call, 2, high))

    return translate


def _clamp_max(b: Builder, call: Call) -> Value:
    return _add_clip(b, call, -inf, number(call, 1, inf))


def _clamp_tensor(b: Builder, call: Call) -> Value:
    """Limits of any shape, or none: the smaller of the second and what the first leaves of x."""
    found: Value = call.arg(0)
    for index, op in ((1, "maximum"), (2, "minimum")):
        limit = call.arg(index)
        if limit is not None:
            found = b.add(op, *b.broadcast(found, limit))
    return found


def _add_clip(b: Builder, call: Call, low: float, high: float) -> Value:
    if low == 0 and high == inf:
        return b.add("relu", call.arg(0), name=call.name)
    return b.add("clip", call.arg(0), name=call.name, min=low, max=high)


def _hard_sigmoid_onnx(b: Builder, call: Call) -> Value:
    alpha, beta = float(call.attr("alpha", 0.2)), float(call.attr("beta", 0.5))
    return b.add("hard_sigmoid", call.arg(0), name=call.name, alpha=alpha, beta=beta)


def _heaviside_aten(b: Builder, call: Call) -> Value:
    values = np.unique(np.asarray(call.static(1), dtype=np.float64))
    if values.size != 1:
        raise Unsupported(
            f"{call.where or call.name}: heaviside with several values at 0; only one works"
        )
    return b.add("heaviside", call.arg(0), name=call.name, at_zero=float(values[0]))


SIXTH = {"alpha": 1 / 6, "beta": 0.5}  # torch's hard sigmoid; the rounding of 1/6 is accounted for
CLIPS = examples((-2.0, 2.0), (-0.5, 0.7), (-3.0, 0.5), (2.0, 3.0), min=-1.0, max=1.0)
_limits = _clip_aten(-inf, inf)
_unit = _clip_aten(-1.0, 1.0)
_six = simple("clip", min=0.0, max=6.0)

scalar(
    "clip",
    _clip_forward,
    _clip,
    shape=_clip_shape,
    examples=CLIPS
    + examples((-2.0, 8.0), min=0.0, max=6.0)
    + examples(min=-inf, max=0.3)
    + examples(min=0.1, max=inf),
    onnx={"Clip": _clip_onnx},
    aten=inplace("clamp", _limits)
    | inplace("clamp_min", _limits)
    | inplace("clamp_max", _clamp_max)
    | inplace("hardtanh", _unit)
    | inplace("relu6", _six)
    | {"aten.clamp.Tensor": _clamp_tensor},
    float32_roundings=1,  # a limit that torch rounds to float32
    summary="x limited to an interval (Clip, clamp, hardtanh, ReLU6)",
)
scalar(
    "hard_sigmoid",
    _hard_sigmoid_forward,
    _hard_sigmoid,
    examples=examples(**SIXTH) + examples((-4.0, 4.0), (-1.0, 6.0), alpha=0.2, beta=0.5),
    onnx={"HardSigmoid": _hard_sigmoid_onnx},
    aten=inplace("hardsigmoid", simple("hard_sigmoid", **SIXTH)),
    summary="alpha x + beta limited to [0, 1]",
)
scalar(
    "hard_swish",
    torch_function("hardswish"),
    _hard_swish,
    examples=examples(*RANGES, (2.0, 5.0), (-5.0, 0.0)),
    onnx={"HardSwish": None},
    aten=inplace("hardswish"),
    float32_roundings=4,
    summary="x min(max(x + 3, 0), 6) / 6",
)
scalar(
    "sign",
    torch_function("sign"),
    lambda: _step(-1.0, 0.0, 1.0),
    onnx={"Sign": None},
    aten=inplace("sign"),
    float32_roundings=0,
    summary="-1, 0 or 1",
)
scalar(
    "heaviside",
    _heaviside_forward,
    lambda at_zero: _step(0.0, at_zero, 1.0),
    examples=examples(at_zero=0.5) + examples((-1.0, 1.0), at_zero=2.0),
    aten={"aten.heaviside.default": _heaviside_aten},
    float32_roundings=0,
    summary="0 below 0, 1 above it, a given value at it",
)
for _name, _onnx, _offset, _before in (
    ("floor", "Floor", 0.0, 1.0),
    ("ceil", "Ceil", 0.0, 0.0),
    ("round", "Round", 0.5, 0.5),
):
    scalar(
        _name,
        torch_function(_name),
        _stairs(_name, _offset, _before),
        examples=examples(*RANGES, (-0.4, 0.4)),
        onnx={_onnx: None},
        aten=inplace(_name),
        float32_roundings=0,
        summary="to the nearest integer, halves to even"
        if _name == "round"
        else f"the next integer {'below' if _name == 'floor' else 'above'}",
    )
