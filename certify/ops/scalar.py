"""The family of elementwise functions of one variable: a record from a function's profile alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from certify.core.graph import Shape
from certify.ops.builder import Builder, Call, Value
from certify.ops.directed import round_down, round_up
from certify.ops.families import Lines
from certify.ops.oracle import EPS, FAR, HUGE, Profile, extreme_slope, intercept, nearer
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

    rule = RelaxedRule(interval=interval, relax=relax, slopes=slopes, elementwise=True)
    op = Op(name, call, shape, examples, relaxed=rule, **names)
    REGISTRY.add(op)
    return op


def bound(p: Profile, x: Interval) -> Interval:
    """Sound bounds of ``h`` on ``x`` in the precision of ``x``; infinite where h is undefined."""
    import torch

    dtype = x.lower.dtype
    low, high = _ends(x)
    if p.monotone and not _any_far(low, high):
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


def lines(p: Profile, site: Site, slopes: tuple[Tensor, ...] | None, x: Interval) -> Lines:
    """The tightest lines of the given slopes (below, above), or those of least area."""

    dtype = x.lower.dtype
    low, high = _ends(x)
    if p.centre is not None:
        return _odd_lines(p, site, slopes, low, high, dtype)
    found: list[tuple[Tensor, Tensor]] = []
    for side, sign in enumerate((1, -1)):
        given = default_slope(p, sign, low, high, dtype) if slopes is None else slopes[side]
        m = intercept(p, sign, low, high, sign * given.double())
        found.append((given, round_down(m, dtype)))
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

    count = low.shape[0]
    both = _mirrored(low, high)
    k = default_slope(p, 1, *both, dtype) if slopes is None else torch.cat(_alike(*slopes))
    m = intercept(p, 1, *both, k.double())
    centre = 2 * (p.centre or 0.0)
    up = round_up(centre - m[count:] + 2 * EPS * centre, dtype)
    return Lines(site, (k[:count],), round_down(m[:count], dtype), (k[count:],), up)


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
    k = extreme_slope(p, sign, low, high, p.slope(sign, *nearer(p, low, high)))
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
    ends = _hull_slopes(p, sign, *nearer(p, low, high))[::sign]
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


def _any_far(low: Tensor, high: Tensor) -> bool:
    return bool(((low < -FAR) | (high > FAR)).any())


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
