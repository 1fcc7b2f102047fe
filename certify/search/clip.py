"""Cutting off parts of boxes that cannot hold a counterexample, with all rounding accounted for.

A counterexample of a clause satisfies every row of it, so ``A . x + c <= 0`` for every plane below
a row. Written from the end of the box that minimises the plane, with ``S`` the minimum of
``A . x + c`` over the box, input i alone may move by at most ``-S / |A_i|`` from that end (Clip and
Verify, Zhou et al. 2025; the same step is bound tightening in integer programming). Only ``S`` is a
sum; everything else is one division and one addition, each rounded outward.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certify.core.outward import UNDERFLOW, add_down, add_up, dot_error

Floats = NDArray[np.float64]
_AT_ONCE = 4_000_000  # numbers per array


class Cuts(NamedTuple):
    """Planes below the rows of a specification, in the free inputs of boxes.

    For every x of box b: ``row r of the specification - its threshold >= A[b, r] . x + c[b, r]``,
    exactly in real numbers. NaN and -inf in ``c`` say nothing.

    Attributes:
        A: ``(N, R, f)``.
        c: ``(N, R)``.
    """

    A: Floats
    c: Floats

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Cuts:
        """The planes of some boxes."""
        return Cuts(self.A[index], self.c[index])


class Clipped(NamedTuple):
    """Attributes:
    lower, upper: ``(N, clauses, f)``: where counterexamples of each clause can still lie; a
        clause with lower above upper anywhere has none in its box.
    least: ``(N, R)`` lower bounds of each plane over what is left.
    """

    lower: Floats
    upper: Floats
    least: Floats

    @property
    def empty(self) -> NDArray[np.bool_]:
        """``(N, clauses)``: no counterexample of the clause can lie in the box."""
        return np.asarray((self.lower > self.upper).any(axis=-1))


def least_value(cuts: Cuts, lower: Floats, upper: Floats) -> Floats:
    """Lower bounds ``(N, R)`` of ``A . x + c`` over boxes ``(N, R or 1, f)``, never too high."""
    with np.errstate(all="ignore"):
        ends = np.where(cuts.A >= 0, lower, upper)
        terms = cuts.A * ends
        terms[cuts.A == 0] = 0.0
        size = np.abs(terms).sum(axis=-1) + np.abs(cuts.c)
        count = cuts.A.shape[-1] + 2
        found: Floats = terms.sum(axis=-1) + cuts.c - (dot_error(count) * size + count * UNDERFLOW)
    return np.where(np.isfinite(found), found, -np.inf)


def clip(cuts: Cuts, group: NDArray[np.int64], lower: Floats, upper: Floats) -> Clipped:
    """Shrink boxes ``(N, f)`` clause by clause, twice.

    Args:
        group: ``(R,)`` the clause of each row, ascending.
    """
    N, R, f = cuts.A.shape
    size = max(1, _AT_ONCE // max(1, R * f))
    if size < N:
        parts = [
            clip(
                Cuts(*(t[i : i + size] for t in cuts)),
                group,
                lower[i : i + size],
                upper[i : i + size],
            )
            for i in range(0, N, size)
        ]
        return Clipped(*(np.concatenate(t) for t in zip(*parts, strict=True)))
    clauses = int(group[-1]) + 1
    starts = np.searchsorted(group, np.arange(clauses))
    low = np.repeat(lower[:, None], clauses, axis=1)
    high = np.repeat(upper[:, None], clauses, axis=1)
    for _ in range(2):
        rows_low, rows_high = _shrunk(cuts, low[:, group], high[:, group])
        low = np.maximum.reduceat(rows_low, starts, axis=1)
        high = np.minimum.reduceat(rows_high, starts, axis=1)
        # What is empty stays as it is: lower above upper is the sign of it.
    crossed = np.asarray((low > high).any(axis=-1))[:, group, None]
    ends = (
        np.where(crossed, lower[:, None], low[:, group]),
        np.where(crossed, upper[:, None], high[:, group]),
    )
    return Clipped(low, high, least_value(cuts, *ends))


def _shrunk(cuts: Cuts, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Each row's own shrinking of its box ``(N, R, f)``; an empty box may come out in any way
    that keeps it empty."""
    least = least_value(cuts, low, high)
    with np.errstate(all="ignore"):
        reach = np.nextafter(-least[..., None] / np.abs(cuts.A), np.inf)
        move = np.isfinite(reach) & (reach >= 0) & (low <= high)
        up = np.where(move & (cuts.A > 0), np.minimum(high, add_up(low, reach)), high)
        down = np.where(move & (cuts.A < 0), np.maximum(low, add_down(high, -reach)), low)
    return np.where(np.isfinite(down), down, low), np.where(np.isfinite(up), up, high)
