"""Log-sum-exp and log-softmax.

``LSE(x) = log sum_j exp(x_j)`` is convex, so any tangent plane is a lower bound (Gibbs: for any
weights s on the simplex, ``LSE(x) >= s . x - sum s log s``). Above, every exponential is replaced by
its chord over the box and the logarithm, which is concave, by a tangent. Everything is computed
for ``x - M`` with M the largest upper bound of a row, so nothing overflows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from certify.ops.arguments import axes_of, axis_of
from certify.ops.builder import Builder, Call, Value
from certify.ops.outward import EXP_ROUNDINGS, above, below, reach
from certify.ops.record import REGISTRY, Composite, Example, Interval, Op, RelaxedRule, Site, Slope
from certify.ops.reduce_max import Coupled, gathered, reduced_shape, reduction

if TYPE_CHECKING:
    from torch import Tensor


def bounded(box: Interval) -> tuple[Interval, Tensor]:
    """The box with rows that have an infinite bound set to zero, and a mask of the finite rows.

    Masks and rows are over the last axis; the mask keeps it with size one.
    """
    import torch

    finite = (box.lower.isfinite() & box.upper.isfinite()).all(-1, keepdim=True)
    return Interval(*(torch.where(finite, t, 0.0) for t in box)), finite


def at(box: Interval, point: Tensor) -> Tensor:
    """The point a fraction ``point`` in [0, 1] of the way from the lower to the upper bound."""
    return (1 - point) * box.lower + point * box.upper


def chords(box: Interval) -> tuple[Tensor, Tensor]:
    """Slopes k >= 0 and intercepts c with ``exp(x) <= k x + c`` over the box, rounded up.

    For any slope the convex difference is largest at an end, so only the intercept is rounded.
    """
    import torch

    low, high = box.lower.exp(), box.upper.exp()
    width = box.upper - box.lower
    wide = width > 0
    slope = torch.where(wide, (high - low) / torch.where(wide, width, 1.0), high)
    slope = torch.minimum(torch.maximum(slope, low), high)
    ends = torch.maximum(low - slope * box.lower, high - slope * box.upper)
    return slope, above(ends, high + slope * reach(*box), EXP_ROUNDINGS + 4)


def lse_sizes(x: Tensor) -> Tensor:
    """Size of the rounding error of a log-sum-exp over the last axis per unit of roundoff."""
    return 1 + x.detach().abs().amax(-1) + x.detach().logsumexp(-1).abs()


def lse_lower(box: Interval, point: Tensor) -> tuple[Tensor, Tensor]:
    """A tangent plane below LSE over the last axis: weights ``(..., n)`` and intercept ``(...)``."""
    x = at(box, point)
    n = x.shape[-1]
    value, weights = x.logsumexp(-1), x.softmax(-1)
    # The stored weights are softmax weights up to a relative error, which moves the plane by that
    # error times the distance to the tangent point; x itself needs no accuracy.
    size = lse_sizes(x) + 2 * (weights.detach() * reach(*box)).sum(-1)
    count = (EXP_ROUNDINGS + n + 4) * (1 + 0 * size)
    return weights, below(value - (weights * x).sum(-1), size * (1 + _spread(box)), count)


def _spread(box: Interval) -> Tensor:
    return (box.upper - box.lower).detach().amax(-1)
