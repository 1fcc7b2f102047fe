"""The one oracle behind every scalar activation: the tightest line of a given slope.

For any slope k, ``k z + m(k)`` with ``m(k) = min over [l, u] of h(z) - k z`` lies below h, and no
line of that slope lies higher. A function only says where candidates for the minimum are; upper
lines come from ``-h``. Soundness never depends on k, so optimisers may choose it freely, and
``dm/dk = -z*`` (envelope theorem) is what automatic differentiation finds here, because interior
candidates are computed without a graph.

Everything is float64. ``sign`` is +1 for lines below h and -1 for lines below -h. Bounds are
``(B, 1, *shape)``, slopes ``(B, 1 or R, *shape)``. Each candidate carries an a-priori bound of its
rounding error: a few units of roundoff times the magnitudes involved, under the assumption that
torch's float64 elementary functions (exp, log, tanh, erf, erfc, atan, pow, sin, cos ...) are
accurate to 4 units in the last place (SLEEF and MKL state 1).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

EPS = 2.0**-52  # twice the unit roundoff of float64
TINY = 2.0**-1000  # far above the denormals, far below anything that matters
FAR = 2.0**500  # bounds beyond it are treated as infinite, so products cannot overflow
HUGE = 2.0**1000  # what an overflowed value is at least

# Both searches only affect tightness.
HULL_STEPS = 10  # cuts of the supporting-line search ...
SETTLED = 1e-5  # ... which ends where a cut gains this little of the first one
TANGENT_STEPS = 4


class Candidate(NamedTuple):
    """A place where ``sign h(z) - k z`` may be smallest.

    Attributes:
        z: the place; differentiable in the bounds, not in k.
        value: ``sign h(z)``, or its limit from one side.
        error: what ``value - k z`` may be too large by.
    """

    z: Tensor
    value: Tensor
    error: Tensor | float


class Tail(NamedTuple):
    """How h behaves far out: its slope tends to ``slope``; ``bounded``: h - slope z has a limit,
    reached to within roundoff at distance ``at`` from 0, which stands in for an infinite bound.
    ``bend`` is +1 convex, -1 concave, 0 straight."""

    slope: float
    bounded: bool
    bend: int = 0
    at: float = FAR


FLAT = Tail(0.0, True)


@dataclass(frozen=True)
class Profile(ABC):
    """A scalar function with what is known about it.

    Attributes:
        f, df: value and derivative, float64 tensors; ``df`` at a kink is that of the curved side.
        left, right: behaviour at the two infinities.
        low, high: bounds of the function's values.
        monotone: +1 increasing, -1 decreasing, 0 neither, on every valid interval.
        steepest: a bound of ``|df|``, or None where the ends of an interval have the steepest.
        valid: ``(l, u) -> mask`` where h is defined and finite inside; None: everywhere.
        sag: ``(start, amount)``: beyond ``start`` the true function may lie lower by ``amount``.
        centre: h(-z) = 2 centre - h(z), where the function has that symmetry.
    """

    f: Callable[[Tensor], Tensor]
    df: Callable[[Tensor], Tensor]
    left: Tail = FLAT
    right: Tail = FLAT
    low: float = -inf
    high: float = inf
    monotone: int = 0
    steepest: float | None = 1.0
    valid: Callable[[Tensor, Tensor], Tensor] | None = None
    sag: tuple[float, float] | None = None
    centre: float | None = None

    @abstractmethod
    def candidates(
        self, sign: int, low: Tensor, high: Tensor, k: Tensor, *, rough: bool = False
    ) -> Iterator[Candidate]:
        """Every place where ``sign h(z) - k z`` can be smallest on ``[low, high]``; ``rough``
        drops the error terms, for searches."""

    @abstractmethod
    def slack(self, z: Tensor, value: Tensor) -> Tensor:
        """A bound of the error of ``f(z)``, which came out as ``value`` (either sign)."""

    def slope(self, sign: int, low: Tensor, high: Tensor) -> Tensor:
        """The slope of the line below ``sign h`` with the least area under h: it supports the
        convex envelope at the midpoint."""
        return supporting(self, sign, low, high)

    def slope_range(self, sign: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes outside this range give lines that another slope beats everywhere."""
        ends = self.df(low) * sign, self.df(high) * sign
        return ends[0].minimum(ends[1]), ends[0].maximum(ends[1])


def intercept(p: Profile, sign: int, low: Tensor, high: Tensor, k: Tensor) -> Tensor:
    """``m(k)`` rounded down: ``k z + m <= sign h(z)`` on ``[low, high]``; -inf where no line of
    this slope exists or h is not defined. Never NaN."""
    return touching(p, sign, low, high, k)[0]


def touching(
    p: Profile, sign: int, low: Tensor, high: Tensor, k: Tensor, *, place: bool = False
) -> tuple[Tensor, Tensor]:
    """`intercept`, and with ``place`` where its line touches: ``-dm/dk`` (otherwise no such)."""
    import torch

    far = any_far(low, high)
    left, right = nearer(p, low, high) if far else (low, high)
    found = p.candidates(sign, left, right, k)
    z, value, error = next(found)
    best = value - k * z - error
    for there, value, error in found:
        other = value - k * there - error
        if place:
            z = z + (other < best) * (there - z)
        best = torch.minimum(best, other)
    if p.sag is not None and sign > 0:
        best = best - p.sag[1] * (right > p.sag[0])
    ok = right >= left
    if p.valid is not None:
        ok = ok & p.valid(left, right)
    if far:
        ok = ok & ~(low < -FAR) | _holds_beyond(p, sign, k, right=False) & ok
        ok = ok & ~(high > FAR) | _holds_beyond(p, sign, k, right=True) & ok
        ok = ok & (low <= FAR) & (high >= -FAR)
    if bool(ok.all()) and not math.isnan(best.detach().sum()):
        return best, z
    ok = ok & (best == best)
    return torch.where(ok, best, -inf), torch.where(ok, z, 0.0) if place else z


def any_far(low: Tensor, high: Tensor) -> bool:
    """Whether a bound is treated as infinite."""
    return bool(((low < -FAR) | (high > FAR)).any())


def _holds_beyond(p: Profile, sign: int, k: Tensor, *, right: bool) -> Tensor:
    """Whether ``sign h(z) - k z`` does not fall beyond the stand-in for infinity at that end (or
    falls towards a limit that the value there equals to within roundoff)."""
    side = 1 if right else -1
    tail = p.right if right else p.left
    limit, toward = side * sign * tail.slope, side * k
    if tail.bend * sign <= 0:  # the derivative falls to its limit
        return toward <= limit
    end = side * sign * p.df(k.new_tensor(side * tail.at))
    found: Tensor = (toward <= end) | ((toward == limit) & tail.bounded)
    return found


def nearer(p: Profile, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The bounds with infinite ones replaced by where the tails have reached their limits."""
    import torch

    far_left, far_right = low < -FAR, high > FAR
    left = torch.where(far_left, high.clamp(-FAR, -p.left.at), low.clamp(-FAR, FAR))
    return left, torch.where(far_right, low.clamp(p.right.at, FAR), high.clamp(-FAR, FAR))


def extreme_slope(p: Profile, sign: int, low: Tensor, high: Tensor, k: Tensor) -> Tensor:
    """``k``, replaced where a bound is infinite by the slope nearest 0 that has a finite line."""
    import torch

    far_left, far_right = low < -FAR, high > FAR
    least = torch.where(far_left, sign * p.left.slope, -inf)
    most = torch.where(far_right, sign * p.right.slope, inf)
    nearest = torch.zeros_like(k).maximum(least).minimum(most).clamp(-FAR, FAR)
    return torch.where(far_left | far_right, nearest, k)


def supporting(p: Profile, sign: int, low: Tensor, high: Tensor) -> Tensor:
    """The slope supporting the convex envelope of ``sign h`` at the midpoint, by cutting planes.

    ``k mid + m(k)`` is concave in k. Two touching points on either side of the midpoint give the
    next k as the slope of their chord, and its touching point replaces one of them (Kelley 1960):
    exact after a few steps for piecewise linear h, superlinear otherwise. Only elements that are
    not settled go on.
    """
    import torch

    with torch.no_grad():
        ends = low.reshape(-1), high.reshape(-1)
        a, b, touches = _hull_points(p, sign, *ends)
        va, vb = a[1].reshape(low.shape), b[1].reshape(low.shape)
        left, right = a[0].reshape(low.shape), b[0].reshape(low.shape)
    # Once more with a graph: by the envelope theorem the slope feels the ends it touches, and
    # touching points inside only to second order.
    va = torch.where(left == low, sign * p.f(low), va)
    vb = torch.where(right == high, sign * p.f(high), vb)
    left, right = torch.where(left == low, low, left), torch.where(right == high, high, right)
    tangent = sign * p.df(0.5 * low + 0.5 * high)
    return torch.where(touches.reshape(low.shape), tangent, chord(left, va, right, vb, tangent))


def _hull_points(
    p: Profile, sign: int, low: Tensor, high: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """For vectors: the envelope's touching points ``(z, value)`` left and right of the midpoints,
    and where the tangent at the midpoint is the envelope."""
    import torch

    mid = 0.5 * low + 0.5 * high
    tangent, there = sign * p.df(mid), sign * p.f(mid)
    z, v = _lowest(p, sign, low, high, tangent)
    touches = v + tangent * (mid - z) >= there - 2.0**-40 * there.abs()
    z_a, v_a, z_b, v_b = low.clone(), sign * p.f(low), high.clone(), sign * p.f(high)
    first, open_ = torch.full_like(low, inf), (~touches).nonzero().squeeze(1)
    for _ in range(HULL_STEPS):
        if not len(open_):
            break
        a, va, b, vb = z_a[open_], v_a[open_], z_b[open_], v_b[open_]
        k = chord(a, va, b, vb, tangent[open_])
        z, v = _lowest(p, sign, low[open_], high[open_], k)
        gap = (va - v) - k * (a - z)  # how far the chord is from being below the function
        first[open_] = torch.minimum(first[open_], gap.nan_to_num(inf))
        noise = 16 * EPS * (v.abs() + va.abs() + vb.abs() + (k * z).abs())
        go, left = gap > SETTLED * first[open_].clamp(min=0) + noise, z < mid[open_]
        z_a[open_] = torch.where(go & left, z, a)
        v_a[open_] = torch.where(go & left, v, va)
        z_b[open_] = torch.where(go & ~left, z, b)
        v_b[open_] = torch.where(go & ~left, v, vb)
        open_ = open_[go]
    return (z_a, v_a), (z_b, v_b), touches


def between(z: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``z`` limited to ``[low, high]``; unlike clamp, its gradient reaches equal limits."""
    import torch

    return torch.minimum(torch.maximum(z, low), high)


def chord(a: Tensor, va: Tensor, b: Tensor, vb: Tensor, otherwise: Tensor) -> Tensor:
    """The slope from ``(a, va)`` to ``(b, vb)``, or ``otherwise`` where the two places agree."""
    import torch

    apart = b - a
    same = apart == 0
    return torch.where(same, otherwise, (vb - va) / torch.where(same, 1.0, apart))


def _lowest(p: Profile, sign: int, low: Tensor, high: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The touching point of the line of slope ``k`` and ``sign h`` there (no error terms)."""
    import torch

    found = p.candidates(sign, low, high, k, rough=True)
    z, value, _ = next(found)
    least = value - k * z
    for other, there, _ in found:
        total = there - k * other
        better = total < least
        z, value = torch.where(better, other, z), torch.where(better, there, value)
        least = torch.where(better, total, least)
    return z, value
