"""Which way of bounding boxes pays: tried side by side on the same boxes, now and then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from certify.search.leaf_bounds import Way

_GROWTH = 3.0  # boxes until the next trial, as a multiple of those so far
_SAMPLE = 48  # boxes of a trial
_FIRST = 24  # boxes before the second trial
_SLIGHT = 0.05  # gain on margins that is worth nothing when no volume was removed


@dataclass(frozen=True)
class Result:
    """What one way did to a sample.

    Attributes:
        removed: share of the sample's volume.
        margin: mean of the margins, infinite ones left out.
        seconds: per box.
    """

    removed: float
    margin: float
    seconds: float


Try = Callable[[Way], Result]


@dataclass(eq=False)
class Trials:
    """Chooses a way of bounding.

    Attributes:
        exact32: whether float32 is to be had.
        way: the best so far.
        due: number of boxes at which the next trial takes place.
    """

    exact32: bool
    way: Way = field(init=False)
    due: float = 0.0

    def __post_init__(self) -> None:
        self.way = Way(True, 0, not self.exact32)

    def run(self, attempt: Try, boxes: int) -> None:
        """Compare the ways on one sample, the precisions for the best of them.

        Nothing more is tried once everything is refuted; a way that ran out of time has lost.
        """
        self.due = max(_FIRST, _GROWTH * boxes)
        single = not self.exact32
        best = self.way = Way(False, 0, single)
        found = {best: attempt(best)}
        if found[best].removed >= 1:
            return
        found[Way(True, 0, single)] = attempt(Way(True, 0, single))
        best = self.way = _better(found)
        if found[best].removed >= 1:
            return
        if best.refine:
            found = {best: found[best], Way(True, 8, single): attempt(Way(True, 8, single))}
            best = _better(found)
        if self.exact32:
            other = best._replace(double=True)
            best = _better({best: found[best], other: attempt(other)})
        self.way = best

    @property
    def sample(self) -> int:
        """Boxes a trial looks at."""
        return _SAMPLE


def _better(found: dict[Way, Result]) -> Way:
    """The way that removes most volume per second; without any, the one whose margins are
    clearly better, or else the first."""
    (first, a), (second, b) = found.items()
    if not np.isfinite(b.seconds):
        return first
    if a.removed > 0 or b.removed > 0:
        return first if a.removed / a.seconds >= b.removed / b.seconds else second
    clearly = b.margin - a.margin > _SLIGHT * abs(a.margin)
    return second if clearly else first
