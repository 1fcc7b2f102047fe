"""The larger and the smaller of two tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from certify.core.errors import BadInput
from certify.ops.arguments import operand
from certify.ops.builder import Builder, Call, Value
from certify.ops.outward import above, reach, slack
from certify.ops.products import Planes, elementwise_shape, least_at
from certify.ops.record import REGISTRY, Example, Interval, Op, RelaxedRule, Site, Slope

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Pair = tuple[Interval, Interval]


def _boxes(site: Site, operands: tuple[Any, ...]) -> Pair:
    """Both operands as intervals with a batch axis; a constant is a point."""
    found = []
    for value, varies in zip(operands, site.varies, strict=True):
        point = value if varies else value.unsqueeze(0)
        found.append(Interval(*point) if varies else Interval(point, point))
    return found[0], found[1]


def _turned(pair: Pair) -> Pair:
    x, y = pair
    return Interval(-x.upper, -x.lower), Interval(-y.upper, -y.lower)


def _starts(x: Interval, y: Interval) -> tuple[Tensor, Tensor, Tensor]:
    """Default slopes of ``max(x, y)``: lower ``alpha`` (x gets alpha, y 1 - alpha), upper a and b.

    Where one operand dominates, it alone. Otherwise the lower line is the operand with the larger
    midpoint (the adaptive choice for a ReLU of x - y), and the upper one the facet of the concave
    envelope that never exceeds ``max(u_x, u_y)``: it is level in the operand with the smaller u.
    """
    import torch

    xl, xu, yl, yu = (t.detach() for t in (*x, *y))
    x_wins, y_wins = xl >= yu, yl >= xu
    one, zero = torch.ones_like(x_wins, dtype=xl.dtype), torch.zeros_like(x_wins, dtype=xl.dtype)
    middle = torch.where((xl + xu) >= (yl + yu), one, zero)
    alpha = torch.where(x_wins, one, torch.where(y_wins, zero, middle))

    def rise(upper: Tensor, lower: Tensor, other: Tensor) -> Tensor:
        gain, width = (upper - other).clamp(min=0), upper - lower
        return (gain / torch.where(width > 0, width, one)).nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)

    a = torch.where(x_wins, one, torch.where(y_wins, zero, rise(xu, xl, yu)))
    b = torch.where(x_wins, zero, torch.where(y_wins, one, rise(yu, yl, xu)))
    return alpha, a, b


def _planes(pair: Pair, slopes: tuple[Tensor, ...]) -> tuple[Any, Any, Any, Any]:
    """Coefficients and intercepts of the lower and the upper plane of ``max(x, y)``.

    For slopes a, b in [0, 1] the maximum of ``max(x, y) - a x - b y`` over the box is attained with
    the larger operand at its upper and the other at its lower bound, hence
    ``c = max((1 - a) u_x - b l_y, (1 - b) u_y - a l_x)``.
    """
    import torch

    x, y = pair
    alpha, a, b = slopes
    rest = 1 - alpha
    # 1 - alpha is off by one rounding unless alpha is 0 or 1.
    exact = (alpha == 0) | (alpha == 1)
    low_c = -torch.where(exact, 0.0, slack(reach(*x).maximum(reach(*y)), 2))

    def at(slope: Tensor, bound: Tensor) -> Tensor:
        return torch.where(slope == 0, 0.0, slope * bound)

    found = torch.maximum(at(1 - a, x.upper) - at(b, y.lower), at(1 - b, y.upper) - at(a, x.lower))
    up_c = above(found, reach(*x) + reach(*y), 6)
    x_wins, y_wins = x.lower >= y.upper, y.lower >= x.upper
    copied = (x_wins & (a == 1) & (b == 0)) | (y_wins & (b == 1) & (a == 0))
    return (alpha, rest), low_c, (a, b), torch.where(copied, 0.0, up_c)


def _relax_as(sign: int) -> Callable[..., Planes]:
    def relax(site: Site, slopes: tuple[Tensor, ...] | None, *operands: Any) -> Planes:
        pair = _boxes(site, operands)
        pair = pair if sign > 0 else _turned(pair)
        chosen = slopes or tuple(t[:, None] for t in _starts(*pair))
        wide = tuple(Interval(v.lower[:, None], v.upper[:, None]) for v in pair)
        low, low_c, up, up_c = _planes((wide[0], wide[1]), chosen)
        if sign < 0:
            low, low_c, up, up_c = up, -up_c, low, -low_c
        low_c = _constants(site, operands, low, low_c, -1)
        return Planes(site, low, low_c, up, _constants(site, operands, up, up_c, 1))

    return relax


def _inner_as(sign: int) -> Callable[..., Tensor]:
    def inner(
        site: Site, weight: Tensor, slopes: tuple[Tensor, ...], *operands: Any, soft: float = 0.0
    ) -> Tensor:
        """`RelaxedRule.inner`: linear on either side of the diagonal, so least at a corner of the
        box or where the diagonal meets its border."""
        import torch

        x, y = (Interval(v.lower.double()[:, None], v.upper.double()[:, None])
                for v in _boxes(site, operands))
        pick = torch.maximum if sign > 0 else torch.minimum
        places = [(a, b, pick(a, b)) for a in x for b in y]
        least, most = torch.maximum(x.lower, y.lower), torch.minimum(x.upper, y.upper)
        meet = least <= most
        for t in (least, most):  # only where the diagonal crosses the box
            at = torch.where(meet, t, x.lower), torch.where(meet, t, y.lower)
            places.append((*at, pick(*at)))
        given = iter(slopes)
        both = tuple(next(given) if v else torch.zeros_like(weight) for v in site.varies)
        return least_at(places, weight, both, soft)

    return inner


def _constants(site: Site, operands: tuple[Any, ...], parts: Any, c: Tensor, way: int) -> Tensor:
    """Move the constant operand's share of a plane into its intercept, rounded the right way."""
    import torch

    for value, varies, part in zip(operands, site.varies, parts, strict=True):
        if not varies:
            term = part * value
            size = term.abs() + c.abs().nan_to_num(posinf=0.0)
            moved = c + term + way * slack(size, 3)
            exact = (c == 0) & ((part == 0) | (part == 1))
            return torch.where(exact, term, moved)
    return c


def _slopes_as(sign: int) -> Callable[..., tuple[Slope, ...]]:
    def slopes(site: Site, *operands: Any) -> tuple[Slope, ...]:
        pair = _boxes(site, operands)
        starts = _starts(*(pair if sign > 0 else _turned(pair)))
        return tuple(Slope(t[:, None], t.new_zeros(()), t.new_ones(())) for t in starts)

    return slopes


def _register(name: str, sign: int, onnx: str, aten: tuple[str, ...], summary: str) -> None:
    import numpy as np

    def forward(site: Site, x: Tensor, y: Tensor) -> Tensor:
        return x.maximum(y) if sign > 0 else x.minimum(y)

    def interval(site: Site, *operands: Any) -> Interval:
        x, y = _boxes(site, operands)
        return Interval(forward(site, x.lower, y.lower), forward(site, x.upper, y.upper))

    def translate(b: Builder, call: Call) -> Value:
        return fold(b, name, [operand(b, v) for v in call.inputs if v is not None], call)

    REGISTRY.add(
        Op(
            name,
            forward,
            elementwise_shape,
            (
                Example(((2, 3), (2, 3))),
                Example(((2, 3), (1, 3))),
                Example(((2, 3), np.array([0.5, -1.0, 3.0]))),
                Example((np.array([[0.0], [1.0]]), (2, 3))),
            ),
            relaxed=RelaxedRule(
                interval, _relax_as(sign), _slopes_as(sign), inner=_inner_as(sign)
            ),
            onnx={onnx: translate},
            aten=dict.fromkeys(aten, translate),
            linear_when=lambda site: False,
            float32_roundings=0,
            summary=summary,
        )
    )


def fold(b: Builder, name: str, values: list[Value], call: Call) -> Value:
    """The maximum (minimum) of any number of tensors, pairwise as in a tournament.

    Raises:
        BadInput: there are no operands.
    """
    if not values:
        raise BadInput(f"{call.where or call.name}: {call.kind} without operands")
    values = [
        *(v for v in values if v.constant is not None),
        *(v for v in values if v.constant is None),
    ]
    while len(values) > 1:
        pairs = [values[i : i + 2] for i in range(0, len(values), 2)]
        values = [_pair(b, name, *p) if len(p) == 2 else p[0] for p in pairs]
    return values[0]


def _pair(b: Builder, name: str, x: Value, y: Value) -> Value:
    return x if x.constant is None and x.name == y.name else b.add(name, *b.broadcast(x, y))


_register(
    "maximum", 1, "Max", ("aten.maximum.default", "aten.max.other"), "the larger of two tensors"
)
_register(
    "minimum", -1, "Min", ("aten.minimum.default", "aten.min.other"), "the smaller of two tensors"
)
