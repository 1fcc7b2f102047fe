"""The largest and the smallest element along axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certify.core.graph import Shape
from certify.ops.arguments import axes_of, axis_of
from certify.ops.builder import Builder, Call, Value
from certify.ops.families import per_row
from certify.ops.outward import above, reach, slack
from certify.ops.record import REGISTRY, Example, Interval, Op, RelaxedRule, Site, Slope

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def reduced_shape(attrs: Any, x: Shape) -> Shape:
    """The shape left after reducing ``attrs["axes"]`` (negative), kept as ones or dropped."""
    axes = {axis + len(x) for axis in attrs["axes"]}
    if not all(0 <= axis < len(x) and x[axis] > 0 for axis in axes):
        raise ValueError(f"axes {tuple(attrs['axes'])} of shape {x}")
    if attrs["keepdims"]:
        return tuple(1 if i in axes else n for i, n in enumerate(x))
    return tuple(n for i, n in enumerate(x) if i not in axes)


def gathered(site: Site, x: Tensor) -> Tensor:
    """``(..., *shape)`` with the reduced axes flattened at the end: ``(..., *kept, n)``."""
    axes = tuple(site.attrs["axes"])
    return (
        x.movedim(axes, tuple(range(-len(axes), 0))).flatten(-len(axes))
        if axes
        else x.unsqueeze(-1)
    )


def scattered(site: Site, x: Tensor) -> Tensor:
    """The inverse of `gathered`."""
    axes = tuple(site.attrs["axes"])
    if not axes:
        return x.squeeze(-1)
    sizes = [site.shapes[0][axis] for axis in axes]
    whole: Tensor = x.reshape(*x.shape[:-1], *sizes)
    return whole.movedim(tuple(range(-len(axes), 0)), axes)


def spread_rows(site: Site, A: Tensor) -> Tensor:
    """Result-shaped ``(..., *site.shape)`` as ``(..., *kept, 1)``, beside `gathered` operands."""
    lead = A.shape[: A.dim() - len(site.shape)]
    axes = {axis + len(site.shapes[0]) for axis in site.attrs["axes"]}
    kept = [n for i, n in enumerate(site.shapes[0]) if i not in axes]
    return A.reshape(*lead, *kept, 1)


@dataclass(frozen=True)
class Coupled:
    """Planes over `gathered` axes: ``low . x + low_c <= result <= up . x + up_c``.

    Coefficients are ``(B, 1 or R, *kept, n)``, intercepts ``(B, 1 or R, *kept)``.
    """

    site: Site
    low: Tensor
    low_c: Tensor
    up: Tensor
    up_c: Tensor

    def backward(self, A: Tensor) -> tuple[tuple[Tensor | None, ...], Tensor]:
        """See `Relaxation.backward`."""
        import torch

        rows = spread_rows(self.site, A)
        positive, negative = rows.clamp(min=0), rows.clamp(max=0)
        found = scattered(self.site, positive * self.low + negative * self.up)
        bias = A.new_zeros(A.shape[:2])
        for part, c in ((positive, self.low_c), (negative, self.up_c)):
            term = torch.where(part == 0, 0.0, part * c.unsqueeze(-1))
            bias = bias + per_row(term).sum(-1)
        return (found,), bias

    def weight(self, magnitudes: tuple[Tensor | None, ...]) -> Tensor:
        """See `Relaxation.weight`; ``(B, *shape)``."""
        size = magnitudes[0]
        total = self.low_c.detach().abs().maximum(self.up_c.detach().abs()).amax(1)
        if size is not None:
            largest = self.low.detach().abs().maximum(self.up.detach().abs()).amax(1)
            total = total + (largest * gathered(self.site, size)).sum(-1)
        return total.reshape(total.shape[0], *self.site.shape)


def _turn(x: Interval) -> Interval:
    return Interval(-x.upper, -x.lower)


def _box(site: Site, x: Interval, sign: int) -> Interval:
    box = Interval(gathered(site, x.lower), gathered(site, x.upper))
    return box if sign > 0 else _turn(box)


def _only(index: Tensor, like: Tensor) -> Tensor:
    import torch

    return torch.zeros_like(like).scatter(-1, index, 1.0)


def _winner(box: Interval) -> Tensor:
    """A one-hot mask over elements that are never below any other; zero where there is none."""
    import torch

    lower, upper = (t.detach() for t in box)
    index = lower.argmax(-1, keepdim=True)
    rivals = upper.scatter(-1, index, -torch.inf).amax(-1, keepdim=True)
    return _only(index, lower) * (lower.gather(-1, index) >= rivals)


def _starts(box: Interval) -> tuple[Tensor, Tensor]:
    """Default weights of the lower plane and slopes of the upper one, ``(B, *kept, n)``.

    Lower: the element with the largest midpoint, which is the best of the simplex there. Upper:
    with u the largest upper bound, of element i, and v the largest of all other upper bounds,
    ``max(x) <= max(x_i, v) <= v + (u - v) / (u - l_i) (x_i - l_i)``: it never exceeds u, and no
    affine bound is lower at the centre of the box, for x_i at u or l_i with probability one half
    each and v otherwise attain it.
    """
    import torch

    lower, upper = (t.detach() for t in box)
    winner = _winner(box)
    found = winner.sum(-1, keepdim=True) > 0
    middle = (lower / 2 + upper / 2).nan_to_num(-torch.inf, torch.inf, -torch.inf)
    weights = torch.where(found, winner, _only(middle.argmax(-1, keepdim=True), lower))
    index = upper.argmax(-1, keepdim=True)
    top, bottom = upper.gather(-1, index), lower.gather(-1, index)
    second = upper.scatter(-1, index, -torch.inf).amax(-1, keepdim=True)
    width = torch.where(top > bottom, top - bottom, 1.0)
    rise = ((top - second) / width).nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)
    return weights, torch.where(found, winner, _only(index, lower) * rise)


def _upper_intercept(box: Interval, a: Tensor) -> Tensor:
    """The least c with ``max(x) <= a . x + c`` over the box, for slopes in [0, 1], rounded up.

    For each i, ``x_i - a . x`` is largest at ``x_i = u_i`` and ``x_j = l_j`` elsewhere.
    """
    import torch

    low = torch.where(a == 0, 0.0, a * box.lower)
    high = torch.where(a == 1, 0.0, (1 - a) * box.upper)
    found = (low + high).amax(-1) - low.sum(-1)
    big = reach(*box)
    size = torch.where(a == 0, 0.0, a * big).sum(-1) + big.amax(-1)
    copied = (a == _winner(box)).all(-1) & (a.sum(-1) == 1)
    return torch.where(copied, 0.0, above(found, size, a.shape[-1] + 4))


def _planes(box: Interval, slopes: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Lower weights and intercept, upper slopes and intercept, for a box ``(B, 1, *kept, n)``."""
    import torch

    raw, a = slopes
    total = raw.sum(-1, keepdim=True)
    weights = torch.where(total > 0, raw / torch.where(total > 0, total, 1.0), _starts(box)[0])
    one_hot = ((weights == 0) | (weights == 1)).all(-1)
    big = torch.where(weights > 0, reach(*box), 0.0).amax(-1)
    # Rounded weights add up to one only up to n + 1 roundings.
    low_c = -torch.where(one_hot, 0.0, slack(big, weights.shape[-1] + 3))
    return weights, low_c, a, _upper_intercept(box, a)


def _slopes_as(sign: int) -> Callable[..., tuple[Slope, ...]]:
    def slopes(site: Site, x: Interval) -> tuple[Slope, ...]:
        starts = _starts(_box(site, x, sign))
        return tuple(Slope(t.unsqueeze(1), t.new_zeros(()), t.new_ones(())) for t in starts)

    return slopes


def _relax_as(sign: int) -> Callable[..., Coupled]:
    def relax(site: Site, slopes: tuple[Tensor, ...] | None, x: Interval) -> Coupled:
        box = Interval(*(t.unsqueeze(1) for t in _box(site, x, sign)))
        chosen = slopes or _starts(box)
        low, low_c, up, up_c = _planes(box, (chosen[0], chosen[1]))
        if sign < 0:  # min(x) = -max(-x): the planes swap and their intercepts turn over
            low, low_c, up, up_c = up, -up_c, low, -low_c
        return Coupled(site, low, low_c, up, up_c)

    return relax


# ------------------------------------------------------------------------------- translations


def reduction(op: str) -> Callable[[Builder, Call], Value]:
    """A translation of an ONNX reduction whose axes are an attribute or (later) an operand."""

    def translate(b: Builder, call: Call) -> Value:
        x: Value = call.arg(0)
        axes = call.attr("axes", call.static(1))
        keep = bool(call.attr("keepdims", 1))
        if axes is None or len(axes) == 0:
            if call.attr("noop_with_empty_axes", 0):
                return x
            axes = None
        return b.add(op, x, axes=axes_of(call, axes, x.rank), keepdims=keep, name=call.name)

    return translate


def _aten_over_axes(op: str) -> Callable[[Builder, Call], Value]:
    def translate(b: Builder, call: Call) -> Value:
        x = call.arg(0)
        axes = axes_of(call, call.arg(1), x.rank)
        return b.add(op, x, axes=axes, keepdims=bool(call.arg(2, False)), name=call.name)

    return translate


def _aten_one_axis(op: str) -> Callable[[Builder, Call], tuple[Value, ...]]:
    """``max.dim``: only the values; where they are is not a function this toolkit bounds."""

    def translate(b: Builder, call: Call) -> tuple[Value, ...]:
        x = call.arg(0)
        axes = (axis_of(call, call.arg(1), x.rank),)
        return (b.add(op, x, axes=axes, keepdims=bool(call.arg(2, False)), name=call.name),)

    return translate


def _register(op: str, sign: int, onnx: str, aten: str, summary: str) -> None:
    def forward(site: Site, x: Tensor) -> Tensor:
        axes, keep = tuple(site.attrs["axes"]), site.attrs["keepdims"]
        if not axes:
            return x
        return x.amax(axes, keepdim=keep) if sign > 0 else x.amin(axes, keepdim=keep)

    def interval(site: Site, x: Interval) -> Interval:
        return Interval(forward(site, x.lower), forward(site, x.upper))

    def contested(site: Site, x: Interval) -> Tensor:
        """Elements that may attain the maximum, where more than one may."""
        axes = tuple(site.attrs["axes"])
        if not axes:
            return x.lower != x.lower
        lower, upper = (x.lower, x.upper) if sign > 0 else (-x.upper, -x.lower)
        rivals = ~(upper <= lower.amax(axes, keepdim=True))  # a NaN bound is a rival
        found: Tensor = rivals & (rivals.sum(axes, keepdim=True) > 1)
        return found

    REGISTRY.add(
        Op(
            op,
            forward,
            reduced_shape,
            (
                Example(((2, 4),), {"axes": (-1,), "keepdims": False}),
                Example(((3, 2, 2),), {"axes": (-3, -1), "keepdims": True}),
                Example(((2, 3),), {"axes": (-2, -1), "keepdims": False}),
                Example(((3, 1),), {"axes": (-1,), "keepdims": True}),
            ),
            relaxed=RelaxedRule(interval, _relax_as(sign), _slopes_as(sign), contested),
            onnx={onnx: reduction(op)},
            aten={
                f"aten.a{aten}.default": _aten_over_axes(op),
                f"aten.{aten}.dim": _aten_one_axis(op),
                f"aten.{aten}.default": _aten_over_axes(op),
            },
            linear_when=lambda site: False,
            float32_roundings=0,
            summary=summary,
        )
    )


_register("reduce_max", 1, "ReduceMax", "max", "the largest element along axes")
_register("reduce_min", -1, "ReduceMin", "min", "the smallest element along axes")
