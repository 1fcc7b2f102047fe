"""Fully connected layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.graph import Shape
from certify.ops.builder import Builder, Call, Value
from certify.ops.families import affine
from certify.ops.record import Example, Site

if TYPE_CHECKING:
    from torch import Tensor


def _forward(site: Site, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    from torch.nn.functional import linear

    return linear(x, weight, bias)


def _shape(attrs: Any, x: Shape, weight: Shape, bias: Shape = ()) -> Shape:
    if len(weight) != 2 or not x or x[-1] != weight[1]:
        raise ValueError(f"{x[-1] if x else 0} features meet a weight of shape {weight}")
    return (*x[:-1], weight[0])


def _transpose(site: Site, A: Tensor, x: Any, weight: Tensor, bias: Any) -> tuple[Any, ...]:
    return A @ weight, None, None


def _summands(site: Site) -> tuple[int, int]:
    out, inside = site.shapes[1]
    return inside + 1, out


def _gemm(b: Builder, call: Call) -> Value:
    x, weight, bias = call.arg(0), call.arg(1), call.arg(2)
    alpha, beta = float(call.attr("alpha", 1.0)), float(call.attr("beta", 1.0))
    if call.attr("transA", 0):
        x = b.add("transpose", x, perm=(-1, -2))
    plain = weight.constant is not None and alpha == 1.0 and (bias is None or beta == 1.0)
    stored = bias is not None and bias.constant is not None
    if plain and (bias is None or (stored and bias.rank == 1 and bias.shape[0] > 1)):
        if not call.attr("transB", 0):
            weight = b.constant(weight.constant.T, weight.name + "^T")
        return b.add("linear", x, weight, bias, name=call.name)
    if call.attr("transB", 0):
        weight = b.add("transpose", weight, perm=(-1, -2))
    y = b.add("matmul", x, weight)
    if alpha != 1.0:
        y = b.add("mul", y, b.constant(np.float64(alpha)))
    if bias is not None:
        if beta != 1.0:
            bias = b.add("mul", bias, b.constant(np.float64(beta)))
        y = b.add("add", *b.broadcast(y, bias))
    return y


def _aten_linear(b: Builder, call: Call) -> Value:
    return b.add("linear", call.arg(0), call.arg(1), call.arg(2), name=call.name)


affine(
    "linear",
    _forward,
    shape=_shape,
    weights=(1,),
    biases=(2,),
    transpose=_transpose,
    summands=_summands,
    onnx={"Gemm": _gemm},
    aten={"aten.linear.default": _aten_linear},
    examples=(
        Example(((3, 4), np.linspace(-1, 1, 20).reshape(5, 4), np.arange(5.0))),
        Example(((1, 6), np.linspace(-2, 1, 12).reshape(2, 6), None)),
    ),
    float32_roundings=0,
    summary="x W^T + b (Gemm, torch.nn.Linear)",
)
