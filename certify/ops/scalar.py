"""The family of elementwise functions of one variable: a record from a function's profile alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from certify.core.graph import Shape
from certify.ops.builder import Builder, Call, Value
from certify.ops.directed import round_down, round_up
from certify.ops.families import Lines
from certify.ops.oracle import (
    EPS,
    FAR,
    HUGE,
    TINY,
    Profile,
    any_far,
    extreme_slope,
    intercept,
    nearer,
    touching,
)
from certify.ops.record import REGISTRY, Example, Interval, Op, RelaxedRule, Site, Slope

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Declare = Callable[..., Profile]  # keyword settings -> profile

# Intervals for the generated tests: around zero, one-sided, wide, narrow.
RANGES = ((-2.0, 2.0), (0.1, 3.0), (-4.0, -0.1), (-9.0, 7.0), (0.3, 0.31))


def same_shape(attrs: Any, x: Shape, *others: Shape) -> Shape:
    """The shape rule of elementwise functions."""
    return x


def examples(*ranges: tuple[float, float], **attrs: Any) -> tuple[Example, ...]:
    """One example per range."""
    return tuple(Example(((2, 3),), attrs, low, high) for low, high in ranges or RANGES)


def scalar(
    name: str,
    forward: Callable[..., Tensor],
    declare: Declare,
    *,
    examples: tuple[Example, ...] = examples(),
    shape: Callable[..., Shape] = same_shape,
    **names: Any,
) -> Op:
    """Register an elementwise function.

    Args:
        name: registry key.
        forward: ``(x, **attrs) -> h(x)`` in torch.
        declare: ``(**attrs) -> Profile``; every rule follows from it.
        names: ``onnx``, ``aten``, ``float32_roundings``, ``summary`` of the record.
    """
    profile = lru_cache(maxsize=256)(declare)

    def call(site: Site, x: Tensor) -> Tensor:
        return forward(x, **site.attrs)

    def interval(site: Site, x: Interval) -> Interval:
        return bound(profile(**site.attrs), x)

    def relax(site: Site, slopes: tuple[Tensor, ...] | None, x: Interval) -> Any:
        return lines(profile(**site.attrs), site, slopes, x)

    def slopes(site: Site, x: Interval) -> tuple[Slope, ...]:
        return slope_ranges(profile(**site.attrs), x)

    def inner(
        site: Site, weight: Tensor, given: tuple[Tensor, ...], x: Interval, *, soft: float = 0.0
    ) -> Tensor:
        return scalar_inner(profile(**site.attrs), weight, given[0], x)

    rule = RelaxedRule(
        interval=interval, relax=relax, slopes=slopes, elementwise=True, inner=inner
    )
    op = Op(name, call, shape, examples, relaxed=rule, **names)
    REGISTRY.add(op)
    return op


def bound(p: Profile, x: Interval) -> Interval:
    """Sound bounds of ``h`` on ``x`` in the precision of ``x``; infinite where h is undefined."""
    import torch

    quick = _rising(p, x) if p.monotone > 0 and p.valid is None and p.sag is None else None
    if quick is not None:
        return quick
    dtype = x.lower.dtype
    low, high = _ends(x)
    if p.monotone and not any_far(low, high):
        ends = (low, high) if p.monotone > 0 else (high, low)
        least, most = p.f(ends[0]).clamp(max=HUGE), p.f(ends[1]).clamp(min=-HUGE)
        least, most = least - p.slack(ends[0], least), most + p.slack(ends[1], most)
        if p.sag is not None:
            least = least - p.sag[1] * (high > p.sag[0])
        ok = high >= low if p.valid is None else (high >= low) & p.valid(low, high)
        least = torch.where(ok & (least == least), least, -torch.inf)
        most = torch.where(ok & (most == most), most, torch.inf)
    else:
        flat = low.new_zeros(())
        least, most = intercept(p, 1, low, high, flat), -intercept(p, -1, low, high, flat)
    defined = least > -torch.inf
    least = torch.where(defined, least.clamp(p.low, p.high), least)
    most = torch.where(most < torch.inf, most.clamp(p.low, p.high), most)
    return Interval(round_down(least, dtype).squeeze(1), round_up(most, dtype).squeeze(1))


def scalar_inner(p: Profile, weight: Tensor, slope: Tensor, x: Interval) -> Tensor:
    """Lower bound of ``weight h(z) - slope z`` over an interval: the oracle, scaled.

    Where the weight is next to nothing, h is bounded by its interval instead.
    """
    import torch

    low, high = _ends(x)
    w, k = weight.double(), slope.double()
    size = w.abs()
    faint = size < TINY
    unit = torch.where(faint, 0.0, k / torch.where(faint, 1.0, size))
    m = torch.where(w > 0, intercept(p, 1, low, high, unit), intercept(p, -1, low, high, unit))
    reach = torch.maximum(low.abs(), high.abs())
    lost = torch.where(k == 0, 0.0, (8 * EPS * k.abs() + TINY * size) * reach)
    found = size * m - 4 * EPS * (size * m).abs() - lost - TINY
    if bool(faint.any()):
        h = bound(p, Interval(low.squeeze(1), high.squeeze(1)))
        ends = torch.where(k == 0, 0.0, torch.minimum(-k * low, -k * high))
        flat = ends - TINY * torch.maximum(h.lower.abs(), h.upper.abs()).unsqueeze(1) - lost - TINY
        found = torch.where(faint, flat, found)
    return torch.where(found == found, found, -torch.inf)


def _rising(p: Profile, x: Interval) -> Interval | None:
    """Bounds of an increasing function defined everywhere; None where an input is extreme.

    Both ends in one tensor: the lower bound, and below it the upper one with its sign changed.
    """
    import torch

    dtype, shape = x.lower.dtype, x.lower.shape
    ends = torch.stack(x).reshape(2, -1).double()
    if not _plain(ends, dtype):
        return None
    value = p.f(ends)
    sign, edge = _sides(p.low, p.high, ends.device)
    moved = value * sign - p.slack(ends, value)
    if not (math.isfinite(p.low) and math.isfinite(p.high)):  # an overflow may have left NaN
        moved = torch.where(moved == moved, moved, -torch.inf)
    least, most = round_down(moved.maximum(edge), dtype).unbind()
    return Interval(least.reshape(shape), most.neg().reshape(shape))


def _plain(ends: Tensor, dtype: torch.dtype) -> bool:
    """Whether all intervals ``(2, n)`` are finite, not far out, and in order."""
    import torch

    if not ends.numel():
        return False
    low, high = ends.detach().unbind()
    least, most = (high - low).aminmax()  # a NaN or an infinity anywhere shows in one of them
    near = torch.finfo(dtype).max <= FAR or float(ends.detach().abs().amax()) <= FAR
    return near and float(least) >= 0 and float(most) < math.inf


@lru_cache(maxsize=256)
def _sides(low: float, high: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """``(1, -1)`` and ``(low, -high)`` as columns."""
    import torch

    pair = torch.tensor([[1.0, low], [-1.0, -high]], dtype=torch.float64, device=device)
    return pair[:, :1], pair[:, 1:]


def lines(p: Profile, site: Site, slopes: tuple[Tensor, ...] | None, x: Interval) -> Lines:
    """The tightest lines of the given slopes (below, above), or those of least area."""

    dtype = x.lower.dtype
    low, high = _ends(x)
    if p.centre is not None:
        return _odd_lines(p, site, slopes, low, high, dtype)
    found: list[tuple[Tensor, Tensor]] = []
    for side, sign in enumerate((1, -1)):
        given = default_slope(p, sign, low, high, dtype) if slopes is None else slopes[side]
        found.append((given, _line(p, sign, low, high, given)))
    (a, c), (b, d) = found
    return Lines(site, (a,), c, (b,), -d)


def _odd_lines(
    p: Profile,
    site: Site,
    slopes: tuple[Tensor, ...] | None,
    low: Tensor,
    high: Tensor,
    dtype: torch.dtype,
) -> Lines:
    """Both lines in one go: the one above is the one below on the mirrored interval, mirrored."""
    import torch

    both = _mirrored(low, high)
    k = default_slope(p, 1, *both, dtype) if slopes is None else torch.cat(_alike(*slopes))
    c, d = _line(p, 1, *both, k, 2 * (p.centre or 0.0)).chunk(2)
    a, b = k.chunk(2)
    return Lines(site, (a,), c, (b,), -d)


def _line(p: Profile, sign: int, low: Tensor, high: Tensor, k: Tensor, off: float = 0.0) -> Tensor:
    """The intercept of the line of slope ``sign k`` below ``sign h``, in the precision of ``k``.

    With ``off``, that much less for the second half of the batch.
    """
    import torch

    if (
        torch.is_grad_enabled()
        and k.requires_grad
        and not (low.requires_grad or high.requires_grad)
    ):
        found: Tensor = _sliding().apply(p, sign, low, high, k, off)
        return found
    return _rounded(intercept(p, sign, low, high, sign * k.double()), off, k.dtype)


def _rounded(m: Tensor, off: float, dtype: torch.dtype) -> Tensor:
    import torch

    if off:
        first, second = m.chunk(2)
        m = torch.cat((first, second - off - 2 * EPS * abs(off)))
    return round_down(m, dtype)


@cache
def _sliding() -> Any:
    import torch

    class Sliding(torch.autograd.Function):
        """`_line` where only the slope varies: the intercept falls by the touching place."""

        @staticmethod
        def forward(ctx: Any, *args: Any) -> Tensor:
            p, sign, low, high, k, off = args
            m, z = touching(p, sign, low, high, sign * k.double(), place=True)
            ctx.save_for_backward(z.to(k.dtype).expand(m.shape))
            ctx.slopes, ctx.sign = k.shape, sign
            return _rounded(m, off, k.dtype)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            (z,) = ctx.saved_tensors
            slope = (grads[0] * z).sum_to_size(ctx.slopes) * -ctx.sign
            return None, None, None, None, slope, None

    return Sliding


def _mirrored(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The intervals, and after them their mirror images."""
    import torch

    return torch.cat((low, -high)), torch.cat((high, -low))


def _alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with as many rows as the one that has more."""
    rows = max(a.shape[1], b.shape[1])
    shape = (-1, rows, *a.shape[2:])
    return a.expand(shape), b.expand(shape)


def default_slope(p: Profile, sign: int, low: Tensor, high: Tensor, dtype: torch.dtype) -> Tensor:
    """The slope of the line of least area on that side (of h itself), finite, in ``dtype``."""
    if any_far(low, high):
        k = extreme_slope(p, sign, low, high, p.slope(sign, *nearer(p, low, high)))
    else:
        k = p.slope(sign, low, high)
    return sign * _finite(k, dtype)


def slope_ranges(p: Profile, x: Interval) -> tuple[Slope, ...]:
    """Useful slopes below and above; a single one where a bound is infinite."""
    low, high = _ends(x)
    if p.centre is None:
        return tuple(_slope_range(p, sign, low, high, x.lower.dtype) for sign in (1, -1))
    both = _slope_range(p, 1, *_mirrored(low, high), x.lower.dtype)
    halves = [k.chunk(2) for k in both]
    return tuple(Slope(*(half[side] for half in halves)) for side in (0, 1))


def _slope_range(p: Profile, sign: int, low: Tensor, high: Tensor, dtype: torch.dtype) -> Slope:
    import torch

    start = default_slope(p, sign, low, high, dtype)
    fixed = (low < -FAR) | (high > FAR)
    near = nearer(p, low, high) if any_far(low, high) else (low, high)
    ends = _hull_slopes(p, sign, *near)[::sign]
    least, most = (torch.where(fixed, start, sign * _finite(k, dtype)) for k in ends)
    return Slope(start, least.minimum(start), most.maximum(start))


def _hull_slopes(p: Profile, sign: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """About the first and the last slope of the convex envelope of ``sign h``.

    The envelope leaves an end along the flattest chord from there, or along the derivative; chords
    are tried at a few places. Slopes outside this range give lines that another one beats.
    """
    import torch

    first, last = p.slope_range(sign, low, high)
    width = (high - low).clamp(min=1e-300)
    ends = sign * p.f(low), sign * p.f(high)
    flattest, steepest = sign * p.df(low), sign * p.df(high)
    for share in _PLACES:
        value = sign * p.f(low + share * width)
        flattest = torch.fmin(flattest, (value - ends[0]) / (share * width))
        steepest = torch.fmax(steepest, (ends[1] - value) / ((1 - share) * width))
    chord = (ends[1] - ends[0]) / width
    return torch.fmin(flattest, chord).maximum(first), torch.fmax(steepest, chord).minimum(last)


_PLACES = tuple(0.5 - 0.5 * math.cos(math.pi * i / 12) for i in range(1, 12))


def _ends(x: Interval) -> tuple[Tensor, Tensor]:
    """Both ends as float64, ``(B, 1, *shape)``, without negative zeros (1 / sqrt(-0) is -inf)."""
    return x.lower.double().unsqueeze(1) + 0.0, x.upper.double().unsqueeze(1) + 0.0


def _finite(k: Tensor, dtype: torch.dtype) -> Tensor:
    import torch

    most = {16: 2.0**14, 32: 2.0**100}.get(torch.finfo(dtype).bits, FAR)
    k = k.nan_to_num(0.0, 0.0, 0.0).clamp(-most, most).to(dtype)
    return k * (k.abs() >= torch.finfo(dtype).tiny)  # a denormal slope would only be slow


def simple(op: str, **fixed: Any) -> Callable[[Builder, Call], Value]:
    """Translation of a call whose first argument is the operand and whose settings are known."""

    def translate(b: Builder, call: Call) -> Value:
        return b.add(op, call.arg(0), name=call.name, **fixed)

    return translate


def inplace(name: str, translate: Any = None) -> dict[str, Any]:
    """The ATen names of an operator and its in-place variant."""
    return {f"aten.{name}.default": translate, f"aten.{name}_.default": translate}


def number(call: Call, index: int, default: float) -> float:
    """A constant scalar argument."""
    import numpy as np

    return float(np.asarray(call.static(index, default)).reshape(()))


def torch_function(name: str) -> Any:
    """The function ``torch.name`` or ``torch.nn.functional.name``, found when called."""

    def forward(x: Tensor, **attrs: Any) -> Tensor:
        import torch

        found = getattr(torch, name, None) or getattr(torch.nn.functional, name)
        result: Tensor = found(x, **attrs)
        return result

    return forward
