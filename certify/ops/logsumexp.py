"""Log-sum-exp and log-softmax.

``LSE(x) = log sum_j exp(x_j)`` is convex, so any tangent plane is a lower bound (Gibbs: for
weights s on the simplex, ``LSE(x) >= s . x - sum s log s``). Above, every exponential is replaced
by its chord over the box and the logarithm, which is concave, by a tangent. Chords are those of
``exp(x - M)`` with M the largest upper bound of a row, so nothing overflows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from certify.ops.arguments import axes_of, axis_of
from certify.ops.builder import Builder, Call, Value
from certify.ops.outward import EXP_ROUNDINGS, above, below, reach
from certify.ops.record import REGISTRY, Composite, Example, Interval, Op, RelaxedRule, Site, Slope
from certify.ops.reduce_max import Coupled, gathered, reduced_shape, reduction

if TYPE_CHECKING:
    from collections.abc import Callable

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


def chords(box: Interval, top: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes k >= 0 and intercepts c with ``exp(x - top) <= k (x - top) + c``, rounded up.

    For any slope the convex difference is largest at an end, so only the intercept is rounded.
    """
    import torch

    lower, upper = box.lower - top, box.upper - top
    low, high, width = lower.exp(), upper.exp(), upper - lower
    wide = width > 0
    slope = torch.where(wide, (high - low) / torch.where(wide, width, 1.0), high)
    slope = torch.minimum(torch.maximum(slope, low), high)
    ends = torch.maximum(low - slope * lower, high - slope * upper)
    size = (high + slope) * (1 + reach(lower, upper))
    return slope, above(ends, size, EXP_ROUNDINGS + 4)


def lse_lower(box: Interval, point: Tensor) -> tuple[Tensor, Tensor]:
    """A tangent plane below LSE over the last axis: weights ``(..., n)``, intercept ``(...)``.

    The stored weights miss the simplex by n roundings at most, which costs that much of the largest
    ``|x|``; missing the softmax of the tangent point only costs the square of the miss.
    """
    import torch

    x = at(box, point)
    n = x.shape[-1]
    value, weights = x.logsumexp(-1), x.softmax(-1)
    size = 2 + math.log(n) + 6 * torch.where(weights > 0, reach(*box), 0.0).amax(-1)
    return weights, below(value - (weights * x).sum(-1), size, n + 2 * EXP_ROUNDINGS + 8)


def lse_upper(box: Interval, point: Tensor) -> tuple[Tensor, Tensor]:
    """An affine bound above LSE over the last axis: slopes ``(..., n)``, intercept ``(...)``.

    ``LSE(x) - M <= log s - 1 + S(x) / s`` for any s > 0, S being the sum of chords; ``point`` in
    [0, 1], shaped like the intercept, puts s between the values of S at the box's ends.
    """
    n, top = box.lower.shape[-1], box.upper.detach().amax(-1, keepdim=True)
    slope, c = chords(box, top)
    low, high = ((t - top).exp().sum(-1) for t in box)
    s = ((1 - point) * low + point * high).clamp(min=1e-30)
    a, m = slope / s.unsqueeze(-1), top.squeeze(-1)
    found = s.log() - 1 + m + (c / s.unsqueeze(-1)).sum(-1) - (a * top).sum(-1)
    far = reach(*box) + 2 * top.abs()
    size = s.log().abs() + 2 + m.abs() + (a.detach() * far + (c.abs() / s.unsqueeze(-1))).sum(-1)
    return a, above(found, size, n + 2 * EXP_ROUNDINGS + 8)


def lse_interval(box: Interval) -> Interval:
    """LSE is monotone; both ends are rounded outward."""
    n = box.lower.shape[-1]
    low, high = (t.logsumexp(-1) for t in box)
    count = n + 2 * EXP_ROUNDINGS + 8
    sizes = [2 + 2 * math.log(n) + 2 * t.detach().abs() for t in (low, high)]
    return Interval(below(low, sizes[0], count), above(high, sizes[1], count))


def _box(site: Site, x: Interval) -> Interval:
    return Interval(gathered(site, x.lower), gathered(site, x.upper))


def _forward(site: Site, x: Tensor) -> Tensor:
    axes = tuple(site.attrs["axes"])
    return x.logsumexp(axes, keepdim=site.attrs["keepdims"]) if axes else x


def _interval(site: Site, x: Interval) -> Interval:
    found = lse_interval(_box(site, x))
    return Interval(*(t.reshape(t.shape[0], *site.shape) for t in found))


def _slopes(site: Site, x: Interval) -> tuple[Slope, ...]:
    lower = gathered(site, x.lower.detach()).unsqueeze(1)
    zero, one = lower.new_zeros(()), lower.new_ones(())
    middle = lower.new_full(lower.shape, 0.5)
    return Slope(middle, zero, one), Slope(middle[..., 0], zero, one)


def _relax(site: Site, slopes: tuple[Tensor, ...] | None, x: Interval) -> Coupled:
    import torch

    raw = Interval(*(t.unsqueeze(1) for t in _box(site, x)))
    low_at, up_at = slopes or tuple(s.start for s in _slopes(site, x))
    box, finite = bounded(raw)
    low, low_c = lse_lower(box, low_at)
    up, up_c = lse_upper(box, up_at)
    if not bool(finite.all()):
        plain, row = lse_interval(raw), finite.squeeze(-1)
        low, up = (torch.where(finite, t, 0.0) for t in (low, up))
        low_c = torch.where(row, low_c, plain.lower)
        up_c = torch.where(row, up_c, plain.upper)
    return Coupled(site, low, low_c, up, up_c)


# ------------------------------------------------------------------------------- translations


def log_softmax(b: Builder, x: Value, axis: int, name: str | None = None) -> Value:
    """``x - LSE(x)`` along ``axis``."""
    total = b.add("logsumexp", x, axes=(axis,), keepdims=True)
    return b.add("sub", x, total, name=name)


def _aten_logsumexp(b: Builder, call: Call) -> Value:
    x = call.arg(0)
    axes = axes_of(call, call.arg(1), x.rank)
    return b.add("logsumexp", x, axes=axes, keepdims=bool(call.arg(2, False)), name=call.name)


def _aten_log_softmax(b: Builder, call: Call) -> Value:
    x = call.arg(0)
    return log_softmax(b, x, axis_of(call, call.arg(1), x.rank), call.name)


def _onnx_log_softmax(b: Builder, call: Call) -> Value:
    x = call.arg(0)
    return flattened(b, call, x, lambda y, axis: log_softmax(b, y, axis))


def flattened(b: Builder, call: Call, x: Value, apply: Callable[[Value, int], Value]) -> Value:
    """``apply(x, axis)`` with ONNX's default axis; before opset 13 over the flattened tail.

    Until opset 12, Softmax and LogSoftmax work on the matrix whose columns are all axes from
    ``axis`` (default 1) on; since 13 on ``axis`` (default -1) alone.
    """
    axis = axis_of(call, call.attr("axis", 1 if call.opset < 13 else -1), x.rank)
    if call.opset >= 13 or axis == -1:
        return apply(x, axis)
    tail = math.prod(x.shape[axis:])
    flat = b.add("reshape", x, shape=(*x.shape[:axis], tail))
    return b.add("reshape", apply(flat, -1), shape=x.shape)


REGISTRY.add(
    Op(
        "logsumexp",
        _forward,
        reduced_shape,
        (
            Example(((2, 4),), {"axes": (-1,), "keepdims": False}),
            Example(((3, 2, 2),), {"axes": (-3, -1), "keepdims": True}, low=-8.0, high=8.0),
            Example(((2, 1),), {"axes": (-1,), "keepdims": True}),
        ),
        relaxed=RelaxedRule(_interval, _relax, _slopes),
        onnx={"ReduceLogSumExp": reduction("logsumexp")},
        aten={"aten.logsumexp.default": _aten_logsumexp},
        linear_when=lambda site: False,
        summary="log of a sum of exponentials along axes",
    )
)

REGISTRY.add(
    Composite(
        "log_softmax",
        onnx={"LogSoftmax": _onnx_log_softmax},
        aten={
            "aten.log_softmax.int": _aten_log_softmax,
            "aten._log_softmax.default": _aten_log_softmax,
        },
        summary="x - logsumexp(x)",
    )
)
