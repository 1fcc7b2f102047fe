"""Which input to split: several rules, each used as often as it has paid."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from certify.core.spec import Rows
from certify.search.boxes import Floats
from certify.search.clip import Cuts

SLOPE, WIDTH, MIXED = 0, 1, 2
RULES = ("slope", "width", "mixed")
_ANYWAY = 0.1  # share of boxes that go to the rules that have paid less
_MEMORY = 0.9  # weight of the past per batch


@dataclass(eq=False)
class Dimensions:
    """Chooses split inputs and learns from what became of the halves.

    ``slope`` multiplies width and the size of the plane's coefficient, summed over the best rows
    of open clauses (smart branching of input splits, Xu et al. 2021); where relaxations are so
    loose that planes say nothing, ``width`` is better: the input that is widest compared with the
    whole region. ``mixed`` is the geometric middle of both.
    """

    generator: np.random.Generator
    gain: Floats = field(default_factory=lambda: np.zeros(len(RULES)))
    weight: Floats = field(default_factory=lambda: np.full(len(RULES), 1e-9))

    def choose(
        self, cuts: Cuts, best: NDArray[np.bool_], width: Floats, share: Floats
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The input to split for every box, ``(N,)``, and the rule that chose it.

        Args:
            cuts: planes of the boxes.
            best: ``(N, R)``: the rows to look at.
            width: ``(N, f)``, 0 where a box cannot be split.
            share: the same compared with the whole region.
        """
        with np.errstate(all="ignore"):
            size = np.where(best[..., None], np.abs(cuts.A), 0.0)
            slope = np.nan_to_num(size.sum(axis=1), nan=0.0, posinf=0.0) * width
        share = np.where(width > 0, share, 0.0)
        top = np.maximum(slope.max(axis=1, keepdims=True), 1e-300)
        # A plane may be flat where the relaxation is loose: then width decides.
        scores = np.stack(
            [slope / top + 1e-9 * share, share, np.sqrt((slope / top + 1e-3) * share)]
        )
        rule = self._rules(len(width))
        picked = scores.argmax(axis=2)[rule, np.arange(len(width))]
        blocked = width[np.arange(len(width)), picked] <= 0
        return np.where(blocked, width.argmax(axis=1), picked), rule

    def _rules(self, count: int) -> NDArray[np.int64]:
        chosen = np.full(count, int(np.argmax(self.gain / self.weight + self._unknown())))
        other = self.generator.random(count) < _ANYWAY
        chosen[other] = self.generator.integers(0, len(RULES), int(other.sum()))
        return chosen

    def _unknown(self) -> Floats:
        """Nothing known yet: the first rule goes first."""
        return np.where(self.weight < 1, [1e-3, 0.0, 5e-4], 0.0)

    def learn(self, rule: NDArray[np.int64], gain: Floats) -> None:
        """What boxes gained on their parents' margins, from 0 to 1 (refuted)."""
        for i in range(len(RULES)):
            mine = gain[rule == i]
            if len(mine):
                self.gain[i] = _MEMORY * self.gain[i] + mine.sum()
                self.weight[i] = _MEMORY * self.weight[i] + len(mine)


def best_rows(rows: Rows, margins: Floats, open_clauses: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``(N, R)``: the row of each open clause that is nearest to being refuted."""
    filled = np.nan_to_num(margins, nan=-np.inf)
    group = rows.group
    best = filled == rows.clause_margins(filled)[:, group]
    first = np.zeros_like(best)
    starts = np.searchsorted(group, np.arange(group[-1] + 1))
    for a, b in zip(starts, [*starts[1:], len(group)], strict=True):
        place = a + best[:, a:b].argmax(axis=1)
        first[np.arange(len(best)), place] = True
    return np.asarray(first & open_clauses[:, group])
