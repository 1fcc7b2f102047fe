"""What a complete search is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.bounds.budget import Limits
from certify.core.certificate import Verdict
from certify.core.graph import Graph
from certify.core.region import Region
from certify.core.semantics import Semantics
from certify.core.spec import Rows
from certify.core.split_tree import SplitTree

if TYPE_CHECKING:
    from certify.ops.record import Interval

Suspect = Callable[[np.ndarray], bool]
Say = Callable[[str], None]


def _silent(line: str) -> None:
    return


@dataclass(frozen=True, eq=False)
class Problem:
    """One example to decide completely.

    Attributes:
        graph: the network.
        region: batch 1, fitted to the graph's inputs.
        rows: of the specification, batch 1; see `Rows.refuted`.
        semantics: of the proof, rigorous.
        limits: memory and deadline. A search returns before the deadline, it does not raise.
        device: where to compute.
        workers: processes or threads that may be used at once.
        suspect: called with a flat float64 point of the region that may be unsafe; runs the model
            itself and tells whether it is. None: no counterexamples are wanted, only proofs.
        known: sound bounds per step from earlier stages, in float64 or float32; None for none.
        say: progress, a line at a time.
        seed: of every random choice.
    """

    graph: Graph
    region: Region
    rows: Rows
    semantics: Semantics = Semantics.REAL
    limits: Limits = Limits()
    device: str = "cpu"
    workers: int = 1
    suspect: Suspect | None = None
    known: list[Interval | None] | None = None
    say: Say = _silent
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Findings:
    """What a search came to.

    Attributes:
        verdict: HOLDS only when every leaf was refuted with all rounding accounted for; VIOLATED
            only when `Problem.suspect` confirmed a point; TIMEOUT; or UNKNOWN, with a reason.
        margin: the smallest deciding margin over all leaves proved and open: what has been
            shown so far.
        open_share: how much of the region is undecided, from 0 to 1, by volume or by halves.
        leaves: sub-problems looked at.
        hardest: in words, the sub-problem with the worst margin; "" when nothing is open.
        reason: why it is undecided; "" otherwise.
        trees: splits and leaves of a proof, one tree per clause, in clause order; () where they
            are not kept.
        statistics: counters for `--explain`.
    """

    verdict: Verdict
    margin: float
    open_share: float = 0.0
    leaves: int = 0
    hardest: str = ""
    reason: str = ""
    trees: tuple[SplitTree, ...] = ()
    statistics: dict[str, Any] = field(default_factory=dict)
