"""Exponential, logarithm, roots, reciprocal and powers with a constant exponent."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.errors import BadInput, Unsupported
from certify.ops.builder import Builder, Call, Value
from certify.ops.curve import Curve, Piece
from certify.ops.oracle import Tail
from certify.ops.scalar import examples, inplace, scalar, torch_function

if TYPE_CHECKING:
    from torch import Tensor

NORMAL = 2.0**-1022


def _exp() -> Curve:
    import torch

    def left(k: Tensor) -> Tensor:
        return torch.log(k.clamp(min=0.0))

    return Curve(
        torch.exp,
        torch.exp,
        left=Tail(0.0, True, 1, 800.0),
        right=Tail(inf, False, 1),
        low=0.0,
        monotone=1,
        bend=1,
        steepest=None,
        pieces=(Piece(inf, 1, left),),
    )


def _log() -> Curve:
    import torch

    return Curve(
        torch.log,
        lambda z: 1 / z,
        right=Tail(0.0, False, -1),
        monotone=1,
        bend=-1,
        steepest=None,
        pieces=(Piece(inf, -1, lambda k: 1 / k.clamp(min=NORMAL)),),
        valid=lambda low, high: (low >= 0) & (high > 0),
    )


def _sqrt() -> Curve:
    import torch

    return Curve(
        torch.sqrt,
        lambda z: 0.5 / torch.sqrt(z),
        right=Tail(0.0, False, -1),
        low=0.0,
        monotone=1,
        bend=-1,
        steepest=None,
        pieces=(Piece(inf, -1, lambda k: (0.5 / k.clamp(min=NORMAL)).square()),),
        valid=lambda low, high: low >= 0,
    )


def _rsqrt() -> Curve:
    import torch

    return Curve(
        torch.rsqrt,
        lambda z: -0.5 * torch.rsqrt(z) / z,
        low=0.0,
        monotone=-1,
        bend=1,
        steepest=None,
        right=Tail(0.0, True, 1),
        pieces=(Piece(inf, 1, lambda k: (-2 * k).clamp(min=NORMAL) ** (-2 / 3)),),
        valid=lambda low, high: (low >= 0) & (high > 0),
    )


def _reciprocal() -> Curve:
    import torch

    def right(k: Tensor) -> Tensor:
        return torch.rsqrt((-k).clamp(min=NORMAL))

    return Curve(
        torch.reciprocal,
        lambda z: -(1 / z).square(),
        left=Tail(0.0, True, -1),
        right=Tail(0.0, True, 1),
        monotone=-1,
        steepest=None,
        pieces=(Piece(0.0, -1, lambda k: -right(k)), Piece(inf, 1, right)),
        valid=lambda low, high: (low > 0) | (high < 0),
    )


def _square() -> Curve:
    return Curve(
        lambda z: z * z,
        lambda z: 2 * z,
        left=Tail(-inf, False, 1),
        right=Tail(inf, False, 1),
        low=0.0,
        bend=1,
        steepest=None,
        pieces=(Piece(inf, 1, lambda k: 0.5 * k),),
    )


def _pow(exponent: float) -> Curve:
    p = float(exponent)

    def f(z: Tensor) -> Tensor:
        return z**p

    def df(z: Tensor) -> Tensor:
        return p * z ** (p - 1)

    def size(k: Tensor) -> Tensor:
        return (k / p).abs().clamp(min=NORMAL) ** (1 / (p - 1))

    if p in (0.0, 1.0):
        return Curve(
            f,
            lambda z: z * 0 + p,
            bend=1,
            monotone=int(p),
            pieces=(Piece(inf, 0),),
            left=Tail(p, True),
            right=Tail(p, True),
        )
    grows = Tail(inf, False, 1) if p > 1 else Tail(0.0, p < 0, 1 if p < 0 else -1)
    if p != int(p):
        return _real_power(p, f, df, size, grows)
    even = p % 2 == 0
    left_bend = 1 if even else -1

    def on_right(k: Tensor) -> Tensor:  # no solution where k and p differ in sign: nearest end
        import torch

        return torch.where(k * p > 0, size(k), 0.0 if p > 1 else inf)

    def on_left(k: Tensor) -> Tensor:
        return -on_right(-k if even else k)

    left = Tail(-grows.slope if even else grows.slope, grows.bounded, left_bend)
    whole = Piece(inf, 1, lambda k: _signed_root(k, p))
    return Curve(
        f,
        df,
        left=left,
        right=grows,
        steepest=None,
        low=0.0 if even else -inf,
        monotone=0 if even else (1 if p > 0 else -1),
        bend=1 if even else 0,
        pieces=(whole,)
        if even and p > 0
        else (Piece(0.0, left_bend, on_left), Piece(inf, 1, on_right)),
        valid=None if p > 0 else lambda low, high: (low > 0) | (high < 0),
    )


def _real_power(p: float, f: Any, df: Any, size: Any, grows: Tail) -> Curve:
    """``z ** p`` on ``z >= 0`` (``z > 0`` for p < 0)."""
    import torch

    bend = -1 if 0 < p < 1 else 1
    beyond = inf if p < 1 else 0.0
    return Curve(
        f,
        df,
        right=grows,
        low=0.0,
        monotone=1 if p > 0 else -1,
        bend=bend,
        steepest=None,
        turns=16 + 1000 * abs(p),  # the rounding of p - 1 counts |log z| times
        pieces=(Piece(inf, bend, lambda k: torch.where(k * p > 0, size(k), beyond)),),
        valid=lambda low, high: (low >= 0) & ((high > 0) | (p > 0)),
    )


def _signed_root(k: Tensor, p: float) -> Tensor:
    return k.sign() * (k / p).abs() ** (1 / (p - 1))


def _power(b: Builder, call: Call) -> Value:
    """``x ** c``; the exponents with a record of their own go there."""
    exponent = call.arg(1)
    if isinstance(exponent, Value) and exponent.constant is None:
        raise Unsupported(f"{call.where or call.name}: the exponent of a power must be a constant")
    values = np.unique(np.asarray(call.static(1), dtype=np.float64))
    if values.size != 1 or not np.isfinite(values).all():
        raise BadInput(
            f"{call.where or call.name}: the exponent of a power must be one finite number"
        )
    x: Value = call.arg(0)
    p = float(values[0])
    if isinstance(exponent, Value):
        x = b.align(x, exponent.rank)
    if p == 1.0:
        return x
    special = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}
    if p in special:
        return b.add(special[p], x, name=call.name)
    return b.add("pow", x, name=call.name, exponent=p)


def _pow_forward(x: Tensor, exponent: float) -> Tensor:
    return x**exponent


POSITIVE = examples((0.1, 3.0), (1e-3, 0.5), (2.0, 2.001), (0.5, 40.0))
EXPONENTS = (
    examples((-2.0, 2.0), (0.2, 3.0), (-3.0, -0.5), (-1.0, 4.0), exponent=3.0)
    + examples((-2.0, 1.0), (1.0, 2.0), exponent=4.0)
    + examples((0.3, 2.0), (-2.0, -0.3), exponent=-2.0)
    + examples((0.3, 2.0), (-2.0, -0.3), exponent=-3.0)
    + examples((0.0, 2.0), exponent=1.7)
    + examples((0.0, 2.0), exponent=0.3)
    + examples((0.2, 2.0), exponent=-1.3)
)

scalar(
    "exp",
    torch_function("exp"),
    _exp,
    onnx={"Exp": None},
    aten=inplace("exp"),
    summary="exponential",
)
scalar(
    "log",
    torch_function("log"),
    _log,
    examples=POSITIVE,
    onnx={"Log": None},
    aten=inplace("log"),
    summary="natural logarithm of x > 0",
)
scalar(
    "sqrt",
    torch_function("sqrt"),
    _sqrt,
    examples=POSITIVE + examples((0.0, 2.0)),
    onnx={"Sqrt": None},
    aten=inplace("sqrt"),
    float32_roundings=1,
    summary="square root of x >= 0",
)
scalar(
    "rsqrt",
    torch_function("rsqrt"),
    _rsqrt,
    examples=POSITIVE,
    aten=inplace("rsqrt"),
    summary="1 / sqrt(x) of x > 0",
)
scalar(
    "reciprocal",
    torch_function("reciprocal"),
    _reciprocal,
    examples=POSITIVE + examples((-3.0, -0.2)),
    onnx={"Reciprocal": None},
    aten=inplace("reciprocal"),
    float32_roundings=1,
    summary="1 / x where x cannot be 0",
)
scalar(
    "square",
    torch_function("square"),
    _square,
    aten=inplace("square"),
    float32_roundings=1,
    summary="x squared",
)
scalar(
    "pow",
    _pow_forward,
    _pow,
    examples=EXPONENTS,
    onnx={"Pow": _power},
    aten={
        "aten.pow.Tensor_Scalar": _power,
        "aten.pow_.Scalar": _power,
        "aten.pow.Tensor_Tensor": _power,
    },
    summary="x to a constant power; x >= 0 unless the exponent is an integer",
)
