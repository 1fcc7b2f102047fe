"""What bounds and planes leave of boxes: which clauses stay open in them, and where."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certify.core.spec import Rows
from certify.search.boxes import Boxes, Floats
from certify.search.clip import Cuts, clip


class Settled(NamedTuple):
    """Attributes:
    boxes: the same boxes, shrunk to what open clauses leave; ``margin`` is the worst margin of
        an open clause, infinite where none is open.
    proved: ``(N,)`` the smallest margin by which anything was refuted here, 0 where cutting did
        it; infinite for nothing.
    shrunk: ``(N,)`` share of the volume that is left, 0 where no clause is open.
    """

    boxes: Boxes
    proved: Floats
    shrunk: Floats

    @property
    def alive(self) -> NDArray[np.bool_]:
        """``(N,)`` boxes with an open clause."""
        return np.asarray(self.boxes.open.any(axis=1))


class Judge:
    """Applies the verdict rule of `Rows.refuted` clause by clause."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    @cached_property
    def clauses(self) -> list[tuple[slice, Rows]]:
        """Each clause's rows, as rows of their own."""
        rows, found = self.rows, []
        starts = np.searchsorted(rows.group, np.arange(rows.group[-1] + 2))
        for a, b in zip(starts[:-1], starts[1:], strict=True):
            part = slice(int(a), int(b))
            x = None if rows.x is None else rows.x[:, part]
            group = np.zeros(b - a, dtype=np.int64)
            alone = Rows(rows.y[:, part], x, rows.bound.reshape(-1)[part], rows.strict[part], group)
            found.append((part, alone))
        return found

    def refuted(self, margins: Floats) -> NDArray[np.bool_]:
        """``(N, clauses)`` from lower bounds ``(N, R)``."""
        return np.stack([rows.refuted(margins[:, part]) for part, rows in self.clauses], axis=1)

    def settle(self, boxes: Boxes, margins: Floats, cuts: Cuts) -> Settled:
        """Refute clauses, cut boxes.

        Args:
            margins: rigorous lower bounds ``(N, R)`` of the rows over the boxes.
            cuts: planes that hold over the boxes.
        """
        rows = self.rows
        cut = clip(cuts, rows.group, boxes.lower, boxes.upper)
        best = np.fmax(margins, cut.least)
        gone = boxes.open & (self.refuted(best) | cut.empty)
        still = boxes.open & ~gone
        clause = rows.clause_margins(np.nan_to_num(best, nan=-np.inf))
        margin = np.where(still, clause, np.inf).min(axis=1)
        straight = rows.clause_margins(np.nan_to_num(margins, nan=-np.inf))
        straight = np.where(self.refuted(margins), straight, 0.0)
        proved = np.where(gone, straight, np.inf).min(axis=1)
        lower = np.where(still[..., None], cut.lower, np.inf).min(axis=1)
        upper = np.where(still[..., None], cut.upper, -np.inf).max(axis=1)
        alive = np.asarray(still.any(axis=1))[:, None]
        lower, upper = np.where(alive, lower, boxes.lower), np.where(alive, upper, boxes.upper)
        left = _left(boxes, lower, upper) * alive[:, 0]
        proved = np.where(alive[:, 0] & (left < 1), np.minimum(proved, 0.0), proved)
        margin = np.maximum(margin, boxes.margin)
        return Settled(Boxes(lower, upper, still, margin, boxes.rule, boxes.node), proved, left)


def _left(boxes: Boxes, lower: Floats, upper: Floats) -> Floats:
    before = boxes.upper - boxes.lower
    ratio = np.where(before > 0, (upper - lower) / np.where(before > 0, before, 1.0), 1.0)
    found: Floats = ratio.prod(axis=1)
    return found
