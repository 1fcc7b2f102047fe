"""A lower bound from any multipliers whatever, with all rounding accounted for.

A linear program's optimum is only as good as its solver. The bound here is weak duality instead:
for *any* multipliers y the Lagrangian's minimum over the variables' own ranges is a lower bound of
the constrained minimum (Neumaier and Shcherbina, Safe bounds in linear and mixed-integer linear
programming, 2004). Multipliers that are wrong make it loose, never wrong.

Variables are free inputs x in a box, and per unit i a pair ``(z_i, a_i)`` with ``a_i = h_i(z_i)``
where ``h_i`` has slope ``left_i`` below 0 and ``right_i`` above. Writing v = (x, a), they obey

    ``z_i = M_i . v + offset_i + e_i``  with  ``|e_i| <= error_i``.

As pairs stay on the curve instead of in its convex hull, a bound is never below the dual bound of
the triangle relaxation (Ehlers 2017) for the same multipliers, and it needs no rounded chords.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.core.outward import UNDERFLOW, dot_error

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Affine:
    """Rows ``M . v + offset`` ``(R, N)``, ``(R,)``, each off by at most its ``error`` ``(R,)``."""

    M: Floats
    offset: Floats
    error: Floats

    @cached_property
    def size(self) -> Floats:
        """``|M|``."""
        return np.abs(self.M)


@dataclass(frozen=True, eq=False)
class Curves:
    """``a_i = h_i(z_i)`` up to ``stray_i``, with ``h_i`` of two straight halves; each ``(m,)``."""

    left: Floats
    right: Floats
    stray: Floats


@dataclass(frozen=True, eq=False)
class Ranges:
    """Where variables lie: x in ``[x_low, x_high]`` ``(n,)``, z in ``[z_low, z_high]`` ``(m,)``."""

    x_low: Floats
    x_high: Floats
    z_low: Floats
    z_high: Floats


@dataclass(frozen=True, eq=False)
class Dual:
    """A lower bound, and what it becomes where single variables are confined further.

    Attributes:
        bound: -inf where it is not finite or the multipliers were no good.
        reduced: ``(n,)`` what it gains per unit of the way of x from its best end.
        below, above: ``(m,)`` bounds where one unit has ``z <= 0`` or ``z >= 0``.
    """

    bound: float
    reduced: Floats
    below: Floats
    above: Floats


def safe_lp_bound(rows: Affine, curves: Curves, ranges: Ranges, weights: Any, mu: Any) -> Dual:
    """A lower bound of ``sum_k weights_k (row_k)`` over everything that obeys the equations.

    Args:
        rows: first the K rows to bound, then one row per unit, its operand z.
        weights: ``(K,)`` >= 0, of the rows to bound. All 0 asks whether anything obeys the
            equations at all: a positive bound says no.
        mu: ``(m,)`` any multipliers of the units' equations.
    """
    weights, mu = np.asarray(weights, np.float64), np.asarray(mu, np.float64)
    y = np.concatenate([weights, mu])
    if np.isfinite(y).all() and (weights >= 0).all():
        with np.errstate(all="ignore"):
            found = _bound(rows, curves, ranges, y, mu)
        if np.isfinite(found.bound):
            return found
    nothing = np.full(len(mu), -np.inf)
    return Dual(-np.inf, np.zeros(len(ranges.x_low)), nothing, nothing)


def _bound(rows: Affine, curves: Curves, ranges: Ranges, y: Floats, mu: Floats) -> Dual:
    n, size = len(ranges.x_low), np.abs(y)
    terms = len(y) + rows.M.shape[1] + 8
    reduced = y @ rows.M
    off = dot_error(terms) * (size @ rows.size) + terms * UNDERFLOW
    reach = np.maximum(np.abs(ranges.x_low), np.abs(ranges.x_high))
    at = np.where(reduced[:n] >= 0, ranges.x_low, ranges.x_high)
    below, above, lost = _halves(curves, ranges, reduced[n:], off[n:], mu)
    least = np.minimum(below, above)
    parts = np.concatenate([reduced[:n] * at, least, y * rows.offset])
    whole = np.abs(parts).sum() + UNDERFLOW * (len(parts) + terms)
    wrong = dot_error(len(parts)) * whole + size @ rows.error + off[:n] @ reach + lost
    wrong = wrong * (1 + dot_error(2 * terms)) + terms * UNDERFLOW
    total = float(parts.sum() - wrong)
    bound = total - _slack(total, wrong)
    sides = [total + (h - least) - _slack(total, wrong, h, least) for h in (below, above)]
    sides = [np.where(h == np.inf, np.inf, s) for h, s in zip((below, above), sides, strict=True)]
    return Dual(bound, reduced[:n], sides[0], sides[1])


def _slack(*values: Any) -> Any:
    """Pays for a few roundings of sums of these."""
    return 16 * np.finfo(np.float64).eps * sum(np.abs(v) for v in values)


def _halves(
    curves: Curves, ranges: Ranges, reduced: Floats, off: Floats, mu: Floats
) -> tuple[Floats, Floats, float]:
    """The least ``reduced_i h_i(z) - mu_i z`` on either side of 0, and what may be lost in all.

    On either side that is straight, so it is least at an end or at 0; infinite where the range
    has no such side.
    """
    low, high = ranges.z_low, ranges.z_high
    reach, rounding, ends = np.zeros_like(low), np.zeros_like(low), []
    for z in (low, high):
        value = np.where(z < 0, curves.left, curves.right) * z
        first, second = reduced * value, mu * z
        ends.append(first - second)
        reach = np.maximum(reach, np.abs(value))
        rounding = np.maximum(rounding, np.abs(first) + np.abs(second))
    none = np.inf
    zero = np.where((low <= 0) & (high >= 0), 0.0, none)
    below = np.minimum(ends[0], np.where(high <= 0, ends[1], zero))
    above = np.minimum(ends[1], np.where(low >= 0, ends[0], zero))
    below, above = np.where(low <= 0, below, none), np.where(high >= 0, above, none)
    reach = reach * (1 + dot_error(1)) + UNDERFLOW
    lost = dot_error(4) * rounding + off * reach + (np.abs(reduced) + off) * curves.stray
    return below, above, float(lost.sum() + len(low) * UNDERFLOW * (1 + np.abs(reduced).sum()))


def confined(ranges: Ranges, dual: Dual) -> Ranges:
    """Ranges without what the bound alone rules out wherever the weighted rows are <= 0.

    Reduced-cost tightening: a unit loses the side on which the bound is positive, an input what
    lies so far from its best end that the bound would be positive.
    """
    if not np.isfinite(dual.bound) or dual.bound > 0:
        return ranges
    with np.errstate(all="ignore"):
        room = -dual.bound / np.abs(dual.reduced) * (1 + 2.0**-40) + 2.0**-900
        up, down = ranges.x_low + room, ranges.x_high - room
        up, down = up + 2.0**-50 * np.abs(up), down - 2.0**-50 * np.abs(down)
        x_high = np.where(dual.reduced > 0, np.fmin(ranges.x_high, up), ranges.x_high)
        x_low = np.where(dual.reduced < 0, np.fmax(ranges.x_low, down), ranges.x_low)
    z_low = np.where(dual.below > 0, np.maximum(ranges.z_low, 0.0), ranges.z_low)
    z_high = np.where(dual.above > 0, np.minimum(ranges.z_high, 0.0), ranges.z_high)
    return Ranges(x_low, x_high, z_low, z_high)


def propagated(rows: Affine, curves: Curves, ranges: Ranges) -> Ranges:
    """Ranges of the operands cut down to what the equations allow by interval arithmetic."""
    K = len(rows.M) - len(ranges.z_low)
    ends = [np.where(z < 0, curves.left, curves.right) * z for z in (ranges.z_low, ranges.z_high)]
    inner = np.where((ranges.z_low < 0) & (ranges.z_high > 0), 0.0, np.inf)
    stray = curves.stray + 2.0**-50 * np.maximum(*np.abs(ends)) + UNDERFLOW
    low = np.concatenate([ranges.x_low, np.minimum(inner, np.minimum(*ends)) - stray])
    high = np.concatenate([ranges.x_high, np.maximum(*ends) + stray])
    mid, radius = 0.5 * low + 0.5 * high, 0.5 * high - 0.5 * low
    reach = np.maximum(np.abs(low), np.abs(high))
    M, size = rows.M[K:], rows.size[K:]
    offset, terms = rows.offset[K:], M.shape[1] + 8
    centre, spread = M @ mid + offset, size @ radius
    error = dot_error(2 * terms) * (size @ (reach + radius) + np.abs(offset)) + terms * UNDERFLOW
    spread = (spread + error + rows.error[K:]) * (1 + 2.0**-45)
    return Ranges(
        ranges.x_low,
        ranges.x_high,
        np.fmax(ranges.z_low, centre - spread - 2.0**-50 * np.abs(centre)),
        np.fmin(ranges.z_high, centre + spread + 2.0**-50 * np.abs(centre)),
    )


def is_empty(ranges: Ranges) -> bool:
    """Whether some variable has nowhere left to be."""
    return bool((ranges.x_low > ranges.x_high).any() or (ranges.z_low > ranges.z_high).any())
