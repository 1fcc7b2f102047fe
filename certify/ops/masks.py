"""Elementwise choice by a constant condition: where, masked fill, triangles."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.errors import Unsupported
from certify.core.graph import Shape
from certify.ops.arguments import broadcast_shape, number_of, operand, repeats
from certify.ops.builder import Builder, Call, Value
from certify.ops.families import to_operand
from certify.ops.record import REGISTRY, AffineRule, Composite, Example, Op, Site

if TYPE_CHECKING:
    from torch import Tensor


def _where(site: Site, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    import torch

    return torch.where(condition != 0, x, y)


def _linear(site: Site, condition: Tensor, x: Any, y: Any) -> Tensor:
    import torch

    like: Tensor = x if site.varies[1] else y
    zero = like.new_zeros(())
    found = [v if varies else zero for v, varies in zip((x, y), site.varies[1:], strict=True)]
    shape = site.shapes[1] if site.varies[1] else site.shapes[2]
    lead = like.shape[: like.dim() - len(shape)]
    chosen = torch.where(condition != 0, found[0], found[1])
    return chosen.expand((*lead, *site.shape))


def _transpose(
    site: Site, A: Tensor, condition: Tensor, x: Any, y: Any
) -> tuple[Tensor | None, ...]:
    rank, mask = len(site.shape), condition != 0
    found: list[Tensor | None] = [None]
    for k, kept in ((1, mask), (2, ~mask)):
        part = A.masked_fill(~kept, 0.0) if site.varies[k] else None
        found.append(None if part is None else to_operand(part, site.shapes[k], rank))
    return tuple(found)


def _summands(site: Site) -> tuple[int, int]:
    most = max(repeats(site.shapes[k], site.shape) for k in (1, 2) if site.varies[k])
    return 0, most if most > 1 else 0


def _onnx_where(b: Builder, call: Call) -> Value:
    return _choose(b, call, call.inputs[0], *call.inputs[1:3])


def _choose(b: Builder, call: Call, condition: Value, x: Any, y: Any) -> Value:
    """``where`` with the condition checked to be constant.

    Raises:
        Unsupported: the condition depends on the model's input.
    """
    if not isinstance(condition, Value) or condition.constant is None:
        raise Unsupported(
            f"{call.where or call.name}: a choice by a condition that depends on the "
            f"input; write it with maximum, minimum or relu"
        )
    first = operand(b, x, y if isinstance(y, Value) else None)
    second = operand(b, y, first)
    rank = max(v.rank for v in (condition, first, second))
    return b.add("where", condition, b.align(first, rank), b.align(second, rank), name=call.name)


def _masked_fill(b: Builder, call: Call) -> Value:
    x, mask, value = call.inputs[:3]
    return _choose(b, call, mask, value, x)


def _triangle(b: Builder, call: Call, upper: bool, offset: int) -> Value:
    x = call.inputs[0]
    shape = (1,) * (x.rank - 2) + x.shape[-2:]
    ones = np.ones(shape, dtype=bool)
    mask = np.triu(ones, offset) if upper else np.tril(ones, offset)
    return _choose(b, call, b.constant(mask), x, 0.0)


def _trilu(b: Builder, call: Call) -> Value:
    offset = int(number_of(call, 1, 0))
    return _triangle(b, call, bool(call.attr("upper", 1)), offset)


def _aten_triangle(upper: bool) -> Callable[[Builder, Call], Value]:
    return lambda b, call: _triangle(b, call, upper, int(call.arg(1, 0)))


def _shape(attrs: Any, condition: Shape, x: Shape, y: Shape) -> Shape:
    return broadcast_shape(condition, x, y)


_MASK = np.array([[True, False, True], [False, False, True]])

REGISTRY.add(
    Op(
        "where",
        _where,
        _shape,
        (
            Example((_MASK, (2, 3), (2, 3))),
            Example((_MASK, (1, 3), np.linspace(-1, 1, 6).reshape(2, 3))),
            Example((_MASK, np.float64(0.5), (2, 1))),
        ),
        affine=AffineRule(_linear, _linear, _transpose, _summands, biases=(1, 2), monotone=True),
        onnx={"Where": _onnx_where},
        aten={
            name: _onnx_where
            for name in (
                "aten.where.self",
                "aten.where.ScalarOther",
                "aten.where.ScalarSelf",
                "aten.where.Scalar",
            )
        },
        float32_roundings=0,
        summary="x where a constant condition holds, else y",
        linear_when=lambda site: not site.varies[0],
    )
)

REGISTRY.add(
    Composite(
        "masks",
        onnx={"Trilu": _trilu},
        aten={
            "aten.masked_fill.Scalar": _masked_fill,
            "aten.masked_fill.Tensor": _masked_fill,
            "aten.tril.default": _aten_triangle(False),
            "aten.triu.default": _aten_triangle(True),
        },
        summary="masked_fill, triangles: where",
    )
)
