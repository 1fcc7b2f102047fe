"""Elementwise products and quotients, and the bilinear relaxation of a product of two unknowns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.errors import BadInput, Unsupported
from certify.core.graph import Shape
from certify.ops.arguments import broadcast_shape, operand, repeats
from certify.ops.builder import Builder, Call, Value, as_numpy
from certify.ops.families import Lines, affine, affine_rule, to_operand
from certify.ops.inner import least
from certify.ops.outward import above, below, reach
from certify.ops.record import REGISTRY, Example, Interval, Op, RelaxedRule, Site, Slope

if TYPE_CHECKING:
    from torch import Tensor


def times(x: Tensor, y: Tensor) -> Tensor:
    """``x * y`` where zero times infinity is zero: an infinite bound still stands for reals."""
    import torch

    return torch.where((x == 0) | (y == 0), 0.0, x * y)


def product_interval(x: Interval, y: Interval) -> Interval:
    """The range of a product over a box, rounded outward; a known sign is kept."""
    import torch

    corners = [times(p, q) for p in x for q in y]
    low, high = (
        torch.minimum(torch.minimum(corners[0], corners[1]), torch.minimum(corners[2], corners[3])),
        torch.maximum(torch.maximum(corners[0], corners[1]), torch.maximum(corners[2], corners[3])),
    )
    lower, upper = below(low, low.abs(), 2), above(high, high.abs(), 2)
    # A sign known from the factors is kept; that of a product may have been lost to underflow.
    positive = ((x.lower >= 0) & (y.lower >= 0)) | ((x.upper <= 0) & (y.upper <= 0))
    negative = ((x.lower >= 0) & (y.upper <= 0)) | ((x.upper <= 0) & (y.lower >= 0))
    return Interval(
        torch.where(positive, lower.clamp(min=0), lower),
        torch.where(negative, upper.clamp(max=0), upper),
    )


def share(bounds: Interval) -> Tensor:
    """``u / (u - l)`` clamped to [0, 1]: 1 where ``l >= 0``, 0 where ``u <= 0``; no gradient."""
    import torch

    lower, upper = (t.detach() for t in bounds)
    crosses = (lower < 0) & (upper > 0)
    width = torch.where(crosses, upper - lower, 1.0)
    part = torch.where(crosses, upper / width, (lower >= 0).to(lower.dtype))
    return part.nan_to_num(0.5).clamp(0, 1)


def mix(r: Tensor, bounds: Interval) -> Tensor:
    """``r l + (1 - r) u``, which cannot overflow for finite bounds."""
    return r * bounds.lower + (1 - r) * bounds.upper

def lower_plane(x: Interval, y: Interval, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(a, b, c)`` with ``x y >= a x + b y + c`` over the box (McCormick 1976).

    ``r`` in [0, 1] picks a point between the two facets of the envelope, r = 1 being the one that
    touches at both lower bounds. The intercept is the minimum over the four corners for the
    coefficients as rounded, so it is sound for every ``r``. All shapes broadcast.
    """
    import torch

    finite = x.lower.isfinite() & x.upper.isfinite() & y.lower.isfinite() & y.upper.isfinite()
    if not bool(finite.all()):
        zero = x.lower.new_zeros(())
        safe = [Interval(*(torch.where(finite, t, zero) for t in v)) for v in (x, y)]
        a, b, c = lower_plane(safe[0], safe[1], r)
        rest = torch.where(finite, 0.0, product_interval(x, y).lower)
        return a, b, torch.where(finite, c, rest)
    a, b = mix(r, y), mix(r, x)
    corners = [p * q - a * p - b * q for p in x for q in y]
    least = torch.minimum(
        torch.minimum(corners[0], corners[1]), torch.minimum(corners[2], corners[3])
    )
    big_x, big_y = reach(*x), reach(*y)
    return a, b, below(least, big_x * big_y + a.abs() * big_x + b.abs() * big_y, 4)


def upper_plane(x: Interval, y: Interval, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(a, b, c)`` with ``x y <= a x + b y + c``: the lower plane of ``(-x) y``, turned over."""
    a, b, c = lower_plane(Interval(-x.upper, -x.lower), y, r)
    return a, -b, -c


def best_mix(x: Interval, y: Interval) -> Tensor:
    """A default ``r`` whose lower plane, minimised over the box, gives the exact least product.

    ``r = share(x)`` removes y (or leaves it a coefficient of the right sign) in a plane through
    the corners (l, u) and (u, l), where the least product is attained; ``share(y)`` likewise.
    The minimum of the plane is concave in r, so their mean is as good, and treats both alike.
    """
    return (share(x) + share(y)) / 2


@dataclass(frozen=True)
class Planes(Lines):
    """`Lines` whose stated rounding weight covers the sums over broadcast axes."""

    def weight(self, magnitudes: tuple[Tensor | None, ...]) -> Tensor:
        """As documented, times the number of terms added up per operand element."""
        return super().weight(magnitudes) * copies(self.site)


def copies(site: Site) -> int:
    """How many result elements the most used element of a varying operand enters."""
    varying = (s for s, v in zip(site.shapes, site.varies, strict=True) if v)
    return max(1, *(repeats(s, site.shape) for s in varying))


def _flipped(x: Interval) -> Interval:
    return Interval(-x.upper, -x.lower)


def _slopes(site: Site, x: Interval, y: Interval) -> tuple[Slope, ...]:
    starts = best_mix(x, y), best_mix(_flipped(x), y)
    return tuple(Slope(r[:, None], r.new_zeros(()), r.new_ones(())) for r in starts)


def _relax(site: Site, slopes: tuple[Tensor, ...] | None, x: Interval, y: Interval) -> Planes:
    low, up = slopes or tuple(s.start for s in _slopes(site, x, y))
    x, y = (Interval(v.lower[:, None], v.upper[:, None]) for v in (x, y))
    a, b, c = lower_plane(x, y, low)
    d, e, f = upper_plane(x, y, up)
    return Planes(site, (a, b), c, (d, e), f)


def _inner(
    site: Site,
    weight: Tensor,
    slopes: tuple[Tensor, ...],
    x: Interval,
    y: Interval,
    *,
    soft: float = 0.0,
) -> Tensor:
    """`RelaxedRule.inner`: bilinear in each element, so least at one of four corners."""
    sides = [(v.lower.double().unsqueeze(1), v.upper.double().unsqueeze(1)) for v in (x, y)]
    return least_at([(a, b, a * b) for a in sides[0] for b in sides[1]], weight, slopes, soft)


def least_at(
    places: list[tuple[Tensor, Tensor, Tensor]],
    weight: Tensor,
    slopes: tuple[Tensor, ...],
    soft: float,
) -> Tensor:
    """The least ``weight value - k_x x - k_y y`` over places ``(x, y, value)``, rounded down."""
    import torch

    w, kx, ky = weight.double(), slopes[0].double(), slopes[1].double()
    idle = (w == 0) & (kx == 0) & (ky == 0)
    return least(
        [
            tuple(torch.where(idle, 0.0, t) for t in (w * value, -kx * x, -ky * y))
            for x, y, value in places
        ],
        soft,
    )


def _interval(site: Site, x: Interval, y: Interval) -> Interval:
    return product_interval(x, y)


def _multiply(site: Site, x: Tensor, y: Tensor) -> Tensor:
    return x * y


def _divide(site: Site, x: Tensor, y: Tensor) -> Tensor:
    if site.varies[1]:
        raise Unsupported(
            f"{site.name}: 'div' takes a constant denominator; multiply by 'reciprocal'"
        )
    return x / y


def elementwise_shape(attrs: Any, *shapes: Shape) -> Shape:
    """The shape operands broadcast to."""
    return broadcast_shape(*shapes)


def _multiply_transpose(site: Site, A: Tensor, x: Any, y: Any) -> tuple[Any, ...]:
    rank = len(site.shape)
    if site.varies[0]:
        return to_operand(A * y, site.shapes[0], rank), None
    return None, to_operand(A * x, site.shapes[1], rank)


def _divide_transpose(site: Site, A: Tensor, x: Any, y: Any) -> tuple[Any, ...]:
    return to_operand(A / y, site.shapes[0], len(site.shape)), None


def _summands(site: Site) -> tuple[int, int]:
    return 1, copies(site)


def multiply(b: Builder, x: Value, y: Value, name: str | None = None) -> Value:
    """``x * y``; a square where both are the same node, which is far tighter."""
    if x.constant is None and x.name == y.name:
        return b.add("square", x, name=name)
    return b.add("mul", *b.broadcast(x, y), name=name)


def divide(b: Builder, x: Value, y: Value, name: str | None = None) -> Value:
    """``x / y``: one rounding for a constant denominator, else ``x * reciprocal(y)``.

    Raises:
        BadInput: a constant denominator has a zero in it.
    """
    if y.constant is None:
        return multiply(b, x, b.add("reciprocal", y), name)
    if not np.all(as_numpy(y.constant) != 0):
        raise BadInput(
            f"{b.where or name or 'div'}: the denominator {y.name or 'constant'!r} has a zero in it"
        )
    return b.add("div", *b.broadcast(x, y), name=name)


def _mul(b: Builder, call: Call) -> Value:
    return multiply(b, operand(b, call.arg(0)), operand(b, call.arg(1)), call.name)


def _div(b: Builder, call: Call) -> Value:
    return divide(b, operand(b, call.arg(0)), operand(b, call.arg(1)), call.name)


def _onnx_div(b: Builder, call: Call) -> Value:
    x, y = call.arg(0), call.arg(1)
    if x.constant is None or y.constant is None:
        return _div(b, call)
    top, bottom = as_numpy(x.constant), as_numpy(y.constant)
    if not np.issubdtype(top.dtype, np.integer):
        return _div(b, call)
    if not np.all(bottom != 0):
        raise BadInput(f"{call.where or call.name}: integer division by zero")
    quotient = np.abs(top) // np.abs(bottom) * np.sign(top) * np.sign(bottom)  # towards zero
    return b.constant(quotient.astype(top.dtype), call.name)


def _aten_div_mode(b: Builder, call: Call) -> Value:
    if call.arg(2) is not None:
        raise Unsupported(f"{call.where or call.name}: division with rounding_mode={call.arg(2)!r}")
    return _div(b, call)


_ROW = np.array([1.5, -2.0, 0.25])

REGISTRY.add(
    Op(
        "mul",
        _multiply,
        elementwise_shape,
        (
            Example(((2, 3), _ROW)),
            Example((_ROW, (2, 3))),
            Example(((2, 1), np.array([[3.0, -1.0, 0.0, 0.5]]))),
            Example(((2, 3), (2, 3))),
            Example(((2, 3), (1, 3)), low=0.0),
            Example(((3, 1), (1, 2)), low=-3.0, high=-1.0),
        ),
        affine=affine_rule(
            _multiply, weights=(0, 1), transpose=_multiply_transpose, summands=_summands
        ),
        relaxed=RelaxedRule(_interval, _relax, _slopes, inner=_inner),
        onnx={"Mul": _mul},
        aten={
            f"aten.{n}": _mul
            for n in ("mul.Tensor", "mul.Scalar", "mul_.Tensor", "mul_.Scalar", "multiply.Tensor")
        },
        float32_roundings=1,
        summary="x * y elementwise; McCormick planes where both vary",
    )
)

affine(
    "div",
    _divide,
    shape=elementwise_shape,
    weights=(1,),
    transpose=_divide_transpose,
    summands=_summands,
    roundings=1,
    examples=(
        Example(((2, 3), np.array([1.5, -3.0, 7.0]))),
        Example(((2, 1), np.array([[0.3, -0.7]]))),
    ),
    onnx={"Div": _onnx_div},
    aten={
        "aten.div.Tensor": _div,
        "aten.div.Scalar": _div,
        "aten.true_divide.Tensor": _div,
        "aten.divide.Tensor": _div,
        "aten.div_.Tensor": _div,
        "aten.div_.Scalar": _div,
        "aten.div.Tensor_mode": _aten_div_mode,
        "aten.div.Scalar_mode": _aten_div_mode,
    },
    float32_roundings=1,
    summary="x / c for a constant c; a variable denominator becomes x * reciprocal(y)",
)
