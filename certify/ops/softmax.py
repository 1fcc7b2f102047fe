"""Softmax with tangent planes of convex lower and concave upper bounds.

Wei, Wu, Wu, Chen, Barrett, Farchi, *Convex bounds on the softmax function with applications to
robustness verification* (AISTATS 2023). For one row x with bounds l, u and ``p_k = softmax(x)_k``:

* ``L_LSE``: ``exp(x_k) / S(x)``, S the sum of the chords of all ``exp(x_j)``; log-convex.
* ``L_ER``: ``1 / D_k(x)``, ``D_k = 1 + sum of the chords of exp(x_j - x_k)``; convex.
* ``U_LSE``: the chord of exp over the range of ``log p_k = x_k - LSE(x)``, which is concave.

A bound used here is the tangent plane of one of these at any point, so the point is free to be
optimised. Each intercept is rounded outward for the coefficients as stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.graph import Shape
from certify.ops.arguments import axis_of
from certify.ops.builder import Builder, Call, Value
from certify.ops.families import per_row
from certify.ops.logsumexp import at, bounded, flattened
from certify.ops.masking import unmasked
from certify.ops.outward import reach, slack
from certify.ops.record import REGISTRY, Example, Interval, Op, RelaxedRule, Site, Slope
from certify.ops.softmax_planes import (
    Rank1,
    er_plane,
    log_bounds,
    lse_plane,
    probability_bounds,
    upper_plane,
)

if TYPE_CHECKING:
    from torch import Tensor

DENSE = 2**24  # the most elements of a dense Jacobian; beyond it L_LSE is used alone


def _forward(site: Site, x: Tensor) -> Tensor:
    import torch

    mask = site.attrs.get("mask")
    if mask is not None:
        x = x.masked_fill(~torch.as_tensor(mask, device=x.device), -torch.inf)
    return x.softmax(site.attrs["axis"])


def _shape(attrs: Any, x: Shape) -> Shape:
    axis, mask = attrs["axis"], attrs.get("mask")
    if not -len(x) <= axis < 0 or x[axis] < 1:
        raise ValueError(f"softmax along axis {axis} of shape {x}")
    if mask is not None and not np.broadcast_to(mask, x).any(axis).all():
        raise ValueError("a row with every element masked")
    return x


def _rows(site: Site, x: Interval) -> tuple[Interval, Tensor, Tensor | None]:
    """Bounds with the softmax axis last, ``(B, *kept, n)``: finite rows, which those are, mask.

    A row with an infinite bound is set to zero. A masked element (by the record's mask, or by
    adding minus infinity before) is put so far below all others that its exponential is zero in
    floating point; a bound may count it, for being positive it only makes a sum of exponentials
    larger, and in a tangent plane of LSE its weight is exactly zero.
    """
    import torch

    lower, upper = (t.movedim(site.attrs["axis"], -1) for t in x)
    seen = _seen(site, upper)
    if seen is None:
        box, finite = bounded(Interval(lower, upper))
        return box, finite, None
    some = seen.any(-1, keepdim=True)
    seen = seen | ~some  # a row without any element has no value; its bounds become [0, 1]
    box, finite = bounded(Interval(*(torch.where(seen, t, 0.0) for t in (lower, upper))))
    least = torch.where(seen, box.lower, torch.inf).amin(-1, keepdim=True).detach()
    far = least + 2 * math.log(torch.finfo(lower.dtype).tiny)
    return Interval(*(torch.where(seen, t, far) for t in box)), finite & some, seen


def _seen(site: Site, upper: Tensor) -> Tensor | None:
    """Which elements count, ``(B, *kept, n)``; None for all of them."""
    import torch

    seen, mask = upper > -torch.inf, site.attrs.get("mask")
    if mask is not None:
        whole = np.moveaxis(np.broadcast_to(mask, site.shape), site.attrs["axis"], -1)
        seen = seen & torch.tensor(np.ascontiguousarray(whole), device=upper.device)
    return None if bool(seen.all()) else seen


def _interval(site: Site, x: Interval) -> Interval:
    import torch

    box, finite, seen = _rows(site, x)
    found = probability_bounds(log_bounds(box))
    if not bool(finite.all()):
        found = Interval(
            torch.where(finite, found.lower, 0.0), torch.where(finite, found.upper, 1.0)
        )
    if seen is not None:
        found = Interval(*(torch.where(seen, t, 0.0) for t in found))
    return Interval(*(t.movedim(-1, site.attrs["axis"]) for t in found))


# -------------------------------------------------------------------------------------- planes


@dataclass(frozen=True)
class _Softmax:
    """`Relaxation`: ``low`` plus ``dense @ x`` below and ``up`` above, the softmax axis last.

    ``dense`` is ``(B, 1 or R, *kept, n, n)`` or None; its intercept is part of ``low.c``.
    """

    site: Site
    low: Rank1
    dense: Tensor | None
    up: Rank1

    def backward(self, A: Tensor) -> tuple[tuple[Tensor | None, ...], Tensor]:
        import torch

        axis = self.site.attrs["axis"]
        rows = A.movedim(axis, -1)
        positive, negative = rows.clamp(min=0), rows.clamp(max=0)
        found = self.low.pull(positive) + self.up.pull(negative)
        if self.dense is not None:
            found = found + self._dense_pull(positive)
        bias = A.new_zeros(A.shape[:2])
        for part, c in ((positive, self.low.c), (negative, self.up.c)):
            bias = bias + per_row(torch.where(part == 0, 0.0, part * c)).sum(-1)
        return (found.movedim(-1, axis),), bias

    def _dense_pull(self, A: Tensor) -> Tensor:
        dense = self.dense
        if dense is None:
            return A.new_zeros(())
        if dense.shape[1] == 1:  # one Jacobian for all rows: R becomes a matrix axis
            return (A.movedim(1, -2) @ dense.squeeze(1)).movedim(-2, 1)
        return (A.unsqueeze(-2) @ dense).squeeze(-2)

    def weight(self, magnitudes: tuple[Tensor | None, ...]) -> Tensor:
        """As documented, times the number of roundings in the longest sum of ``backward``."""
        size = magnitudes[0]
        total = self.low.c.detach().abs().maximum(self.up.c.detach().abs())
        if size is not None:
            x = size.movedim(self.site.attrs["axis"], -1).unsqueeze(1)
            for plane in (self.low, self.up):
                far = x + (plane.q.detach().abs() * x).sum(-1, keepdim=True)
                total = total + plane.scale.detach().abs() * far
            if self.dense is not None:
                total = total + (self.dense.detach().abs() @ x.unsqueeze(-1)).squeeze(-1)
        n = total.shape[-1]
        return (total.amax(1) * (n + 4)).movedim(-1, self.site.attrs["axis"])


def _start(site: Site, x: Interval) -> tuple[Tensor, Tensor, Tensor]:
    """Tangent points at the middle; the share of L_ER: 1 where it is the higher one there."""
    import torch

    rows, _, _ = _rows(site, x)
    box = Interval(*(t.detach().unsqueeze(1) for t in rows))
    half = torch.full_like(box.lower, 0.5)
    if _too_large(half):
        return half, torch.zeros_like(half), half
    middle = at(box, half)
    dense, c, usable = er_plane(box, half)
    er = (dense @ middle.unsqueeze(-1)).squeeze(-1) + c
    better = usable & (er > lse_plane(box, half).value(middle))
    return half, better.to(half.dtype), half


def _too_large(point: Tensor) -> bool:
    return math.prod(point.shape) * point.shape[-1] > DENSE


def _slopes(site: Site, x: Interval) -> tuple[Slope, ...]:
    starts = _start(site, x)
    return tuple(Slope(t, t.new_zeros(()), t.new_ones(())) for t in starts)


def _lower(
    box: Interval, floor: Tensor, point: Tensor, part: Tensor
) -> tuple[Rank1, Tensor | None]:
    """``1 - part`` of L_LSE plus ``part`` of L_ER, or the constant ``floor`` where that is higher.

    Both shares are rounded, which costs a rounding of each plane's size.
    """
    import torch

    plane = lse_plane(box, point)
    dense = None
    scale, c = plane.scale, plane.c
    middle = at(box, torch.full_like(box.lower, 0.5)).detach()
    if not _too_large(point) and bool((part > 0).any()):
        er, er_c, usable = er_plane(box, point)
        part = torch.where(usable, part, 0.0)
        dense = torch.where(part.unsqueeze(-1) > 0, part.unsqueeze(-1) * er, 0.0)
        mixed = (1 - part) * c + torch.where(part > 0, part * er_c, 0.0)
        both = (part > 0) & (part < 1)
        c = torch.where(both, mixed - _mixing_slack(box, plane, er, er_c), mixed)
        scale = (1 - part) * scale
    value = Rank1(scale, plane.q, c).value(middle)
    if dense is not None:
        value = value + (dense @ middle.unsqueeze(-1)).squeeze(-1)
    keep = (value >= floor).detach()
    dense = None if dense is None else torch.where(keep.unsqueeze(-1), dense, 0.0)
    return Rank1(torch.where(keep, scale, 0.0), plane.q, torch.where(keep, c, floor)), dense


def _mixing_slack(box: Interval, plane: Rank1, er: Tensor, er_c: Tensor) -> Tensor:
    far = reach(*box)
    size = plane.scale * (1 + far + (plane.q * far).sum(-1, keepdim=True)) + plane.c.abs()
    size = size + er_c.abs() + (er.abs() * far.unsqueeze(-2)).sum(-1) + 1
    return slack(size.nan_to_num(0.0, 0.0, 0.0), 6)


def _relax(site: Site, slopes: tuple[Tensor, ...] | None, x: Interval) -> _Softmax:
    import torch

    low_at, part, up_at = slopes or _start(site, x)
    rows, finite, seen = _rows(site, x)
    box, finite = Interval(*(t.unsqueeze(1) for t in rows)), finite.unsqueeze(1)
    seen = None if seen is None else seen.unsqueeze(1)
    logs = log_bounds(box)
    low, dense = _lower(box, probability_bounds(logs).lower, low_at, part)
    up = upper_plane(box, logs, up_at)
    for usable, ends in ((finite, (0.0, 1.0)), (seen, (0.0, 0.0))):
        if usable is not None and not bool(usable.all()):
            low, up = (
                Rank1(torch.where(usable, p.scale, 0.0), p.q, torch.where(usable, p.c, end))
                for p, end in zip((low, up), ends, strict=True)
            )
            dense = None if dense is None else torch.where(usable.unsqueeze(-1), dense, 0.0)
    return _Softmax(site, low, dense, up)


# ------------------------------------------------------------------------------- translations


def probabilities(b: Builder, scores: Value, axis: int, name: str | None = None) -> Value:
    """The softmax of ``scores`` along a negative axis; constant minus infinities mask."""
    value, seen = unmasked(b, scores)
    settings = {} if seen is None else {"mask": seen}
    return b.add("softmax", value, axis=axis, name=name, **settings)


def _aten(b: Builder, call: Call) -> Value:
    x = call.arg(0)
    return probabilities(b, x, axis_of(call, call.arg(1), x.rank), call.name)


def _onnx(b: Builder, call: Call) -> Value:
    return flattened(b, call, call.arg(0), lambda y, axis: probabilities(b, y, axis))


_SOME = np.array([[True, False], [True, True], [False, True]])

REGISTRY.add(
    Op(
        "softmax",
        _forward,
        _shape,
        (
            Example(((2, 4),), {"axis": -1}),
            Example(((3, 2),), {"axis": -2}, low=-6.0, high=6.0),
            Example(((2, 1),), {"axis": -1}),
            Example(((2, 2, 3),), {"axis": -1}, low=-30.0, high=30.0),
            Example(((3, 3),), {"axis": -1, "mask": np.tri(3, dtype=bool)}),
            Example(((2, 3, 2),), {"axis": -2, "mask": _SOME}, low=-5.0, high=5.0),
        ),
        relaxed=RelaxedRule(_interval, _relax, _slopes),
        onnx={"Softmax": _onnx},
        aten={
            "aten.softmax.int": _aten,
            "aten._softmax.default": _aten,
            "aten._safe_softmax.default": _aten,
        },
        linear_when=lambda site: False,
        summary="softmax along an axis; tangent planes of log-sum-exp bounds",
    )
)
