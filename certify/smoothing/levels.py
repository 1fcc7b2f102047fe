"""Deterministic smoothing against l1 perturbations: every level of one fixed pattern is tried.

Levine and Feizi 2021 ("Improved, deterministic smoothing for L1 certified robustness"). Inputs are
whole numbers of 1/levels. A fixed pattern t of levels below L = 2 width levels is shifted by every
offset o; each element is known only by the interval between split points at (t + o) mod L + 1/2.
Counting all L offsets is exact: no samples, no alpha.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from certify.core.errors import BadInput
from certify.core.votes import Votes
from certify.smoothing import radii
from certify.smoothing.confidence import Estimate
from certify.smoothing.methods import Budget, method
from certify.smoothing.noise import Noise
from certify.smoothing.rules import Found, counted, leader, rule
from certify.smoothing.sampling import Ask, Plan
from certify.smoothing.streams import words

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SplitLevels(Noise):
    """The interval of width ``2 width`` in which each element lies, in place of the element.

    "Sample" number o is offset o. The pattern is the same for all inputs.
    """

    width: float
    levels: float = 255
    name: ClassVar[str] = "split-levels"
    norms: ClassVar[tuple[str, ...]] = ("1",)
    shared: ClassVar[bool] = True

    def __post_init__(self) -> None:
        radii.scale("width", self.width)
        if not 1 <= self.levels <= 2**16 or self.levels % 1 or (2 * self.width * self.levels) % 1:
            raise BadInput("levels must be a whole number up to 65536, and 2 width levels another")

    @property
    def offsets(self) -> int:
        """How many there are."""
        return int(2 * self.width * self.levels)

    def fill(self, x: Tensor, key: int, first: int, out: Tensor) -> None:
        """See `Noise.fill`; all in whole numbers of half a level."""
        import torch

        period = self.offsets
        pattern = words(key, 0, 1, x.numel(), out.device)[0, : x.numel()] % period
        whole = torch.round(x.double() * self.levels).long()
        offset = torch.arange(first, first + len(out), device=out.device).unsqueeze(1)
        split = 2 * ((pattern + offset) % period) + 1
        turns = torch.div(2 * whole - split, 2 * period, rounding_mode="floor")
        low = split + 2 * period * turns
        most = 2 * int(self.levels)
        middle = low.clamp_min(0) + (low + 2 * period).clamp_max(most)
        out.copy_(middle.double() / (2 * most))

    def radius(self, found: Estimate, norm: str, size: int, other: float | None = None) -> float:
        """Not from a probability: all offsets are counted; see the rule ``levels``.

        Raises:
            BadInput: always.
        """
        raise BadInput("split-levels noise is counted, not sampled: use the method levels")

    def check_input(self, x: np.ndarray) -> None:
        """See `Noise.check_input`."""
        off = np.abs(np.rint(x * self.levels) / self.levels - x).max(initial=0.0)
        if not off <= 1e-6 or (x < -1e-6).any() or (x > 1 + 1e-6).any():
            raise BadInput(
                f"split-levels needs inputs in [0, 1] that are whole numbers of 1/{self.levels:g}"
            )


@method(
    "levels", "deterministic: every offset of one pattern is tried (Levine 2021)", ("split-levels",)
)
def levels(budget: Budget, noise: Noise, size: int) -> Plan:
    """See the rule of this name; n0, n and alpha have no meaning here."""
    if not isinstance(noise, SplitLevels):
        raise BadInput("the method levels is for split-levels noise")
    counts = (yield Ask("offsets", noise.offsets)).votes[0]
    return Votes("levels", 0.0, budget.norm, {}, {"offsets": counts})


@rule("levels")
def levels_rule(votes: Votes, noise: Noise, size: int) -> Found:
    """One level of l1 distance changes at most one offset's view: theorem 2 of the paper.

    Ties go to the lower class.
    """
    counts = counted(votes, "offsets")
    if not isinstance(noise, SplitLevels) or counts.sum() != noise.offsets or votes.alpha:
        raise BadInput("the rule levels needs the counts of all offsets, and no alpha")
    label = leader(counts)
    rivals = np.delete(counts, label)
    # a rival of lower number would win a tie
    ahead = counts[label] - rivals - (np.arange(len(rivals)) < label)
    steps = int(ahead.min()) // 2
    share = counts[label] / counts.sum()
    bound = Estimate(np.array(share), np.array(1 - share))
    if steps <= 0:
        return Found(-1, 0.0, bound, "another class has nearly as many offsets")
    return Found(label, steps / noise.levels * (1 - 2.0**-44), bound)
