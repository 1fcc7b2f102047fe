"""Sums and differences, with broadcasting."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.graph import Shape
from certify.ops.arguments import broadcast_shape, listed, operand, repeats, scaled
from certify.ops.builder import Builder, Call, Value
from certify.ops.families import affine, to_operand
from certify.ops.record import REGISTRY, AffineRule, Composite, Example, Op, Site

if TYPE_CHECKING:
    from torch import Tensor


def _shape(attrs: Any, x: Shape, y: Shape) -> Shape:
    return broadcast_shape(x, y)


def _signed(site: Site, sign: int, x: Any, y: Any) -> Tensor:
    """``x + sign * y`` over the variable operands alone."""
    found: Tensor
    if all(site.varies):
        found = x + y if sign > 0 else x - y
        return found
    found = x if site.varies[0] else (y if sign > 0 else -y)
    lead = found.shape[: found.dim() - len(site.shapes[0 if site.varies[0] else 1])]
    return found.expand((*lead, *site.shape))


def _pull(site: Site, A: Tensor, sign: int) -> tuple[Tensor | None, ...]:
    rank = len(site.shape)
    left = to_operand(A, site.shapes[0], rank) if site.varies[0] else None
    right = to_operand(A, site.shapes[1], rank) if site.varies[1] else None
    return left, right if right is None or sign > 0 else -right


def _summands(site: Site) -> tuple[int, int]:
    pairs = zip(site.shapes, site.varies, strict=True)
    copies = max(repeats(shape, site.shape) for shape, varies in pairs if varies)
    return 2, copies if copies > 1 else 0


def _rule(sign: int) -> AffineRule:
    def absolute(site: Site, x: Any, y: Any) -> Tensor:
        return _signed(site, 1, x, y)

    return AffineRule(
        linear=lambda site, x, y: _signed(site, sign, x, y),
        absolute=absolute,
        transpose=lambda site, A, x, y: _pull(site, A, sign),
        summands=_summands,
        biases=(0, 1),
        monotone=sign > 0,
    )


def _plus(b: Builder, x: Value, y: Value, name: str | None = None) -> Value:
    return b.add("add", *b.broadcast(x, y), name=name)


def _minus(b: Builder, x: Value, y: Value, name: str | None = None) -> Value:
    return b.add("sub", *b.broadcast(x, y), name=name)


def _pair(b: Builder, call: Call) -> tuple[Value, Value]:
    left, right = call.inputs[0], call.inputs[1]
    first = operand(b, left, right if isinstance(right, Value) else None)
    return first, operand(b, right, first)


def _add(b: Builder, call: Call) -> Value:
    """Also ``aten.add`` with its factor ``alpha`` on the second operand."""
    x, y = _pair(b, call)
    return _plus(b, x, scaled(b, y, call.arg(2, 1)), call.name)


def _sub(b: Builder, call: Call) -> Value:
    x, y = _pair(b, call)
    return _minus(b, x, scaled(b, y, call.arg(2, 1)), call.name)


def _rsub(b: Builder, call: Call) -> Value:
    x, y = _pair(b, call)
    return _minus(b, y, scaled(b, x, call.arg(2, 1)), call.name)


def _binary(sign: int) -> Any:
    def translate(b: Builder, call: Call) -> Value:
        return (_plus if sign > 0 else _minus)(b, call.inputs[0], call.inputs[1], call.name)

    return translate


def _total(b: Builder, call: Call) -> Value:
    return reduce(lambda x, y: _plus(b, x, y), listed(call, call.inputs))


def _average(b: Builder, call: Call) -> Value:
    count = b.constant(np.asarray(float(len(call.inputs))))
    return b.add("div", _total(b, call), count, name=call.name)


def _multiply_add(b: Builder, call: Call) -> Value:
    """``beta * bias + alpha * (left @ right)``: addmm, baddbmm, addmv."""
    bias, left, right = call.inputs[:3]
    product = b.add("matmul", left, right)
    return _plus(b, scaled(b, product, call.arg(4, 1)), scaled(b, bias, call.arg(3, 1)), call.name)


_ROW, _GRID = np.linspace(-1, 1, 4), np.linspace(-2, 2, 12).reshape(3, 4)
_EXAMPLES = (
    Example(((3, 4), (3, 4))),
    Example(((3, 4), (1, 4))),
    Example(((2, 3, 4), (1, 3, 1))),
    Example(((3, 4), _ROW)),
    Example((_GRID, (1, 4))),
    Example(((), np.float64(0.5))),
)

REGISTRY.add(
    Op(
        "add",
        lambda site, x, y: x + y,
        _shape,
        _EXAMPLES,
        affine=_rule(+1),
        onnx={"Add": _binary(+1)},
        aten={"aten.add.Tensor": _add, "aten.add.Scalar": _add},
        float32_roundings=0,
        summary="x + y, either of which may be constant",
    )
)

REGISTRY.add(
    Op(
        "sub",
        lambda site, x, y: x - y,
        _shape,
        _EXAMPLES,
        affine=_rule(-1),
        onnx={"Sub": _binary(-1)},
        aten={
            **{
                name: _sub
                for name in ("aten.sub.Tensor", "aten.sub.Scalar", "aten.subtract.Tensor")
            },
            "aten.rsub.Tensor": _rsub,
            "aten.rsub.Scalar": _rsub,
        },
        float32_roundings=0,
        summary="x - y, either of which may be constant",
    )
)

affine(
    "neg",
    lambda site, x: -x,
    shape=lambda attrs, x: x,
    absolute=lambda site, x: x,
    transpose=lambda site, A, x: (-A,),
    summands=lambda site: (0, 0),
    examples=(Example(((2, 3),)),),
    onnx={"Neg": None},
    aten={"aten.neg.default": None, "aten.negative.default": None},
    float32_roundings=0,
    summary="-x",
)

REGISTRY.add(
    Composite(
        "sums",
        onnx={"Sum": _total, "Mean": _average},
        aten={
            "aten.addmm.default": _multiply_add,
            "aten.baddbmm.default": _multiply_add,
        },
        summary="sum or mean of several tensors; bias plus matrix product",
    )
)
