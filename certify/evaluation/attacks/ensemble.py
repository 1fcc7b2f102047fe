"""One attack after the other, each on the images that are still standing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from certify.bounds.program import prepare
from certify.core.errors import UsageError
from certify.core.graph import Graph
from certify.core.region import Region
from certify.evaluation.attacks.arena import Arena
from certify.evaluation.attacks.ascent import Record, apgd, pgd
from certify.evaluation.attacks.losses import (
    cross_entropy,
    dlr,
    rivals,
    targeted_dlr,
    towards,
)
from certify.evaluation.attacks.square import square
from certify.search.surrogate import surrogate

Confirm = Callable[[int, np.ndarray], bool]


@dataclass(frozen=True)
class Effort:
    """How hard to look.

    Attributes:
        names: attacks, in order.
        steps: of every attack by gradients.
        targets: classes aimed at by the targeted ones, the strongest first.
        queries: of the random search.
    """

    names: tuple[str, ...]
    steps: int
    targets: int
    queries: int = 0


EFFORTS = {
    "none": Effort((), 0, 0),
    "quick": Effort(("pgd",), 20, 4),
    "full": Effort(("pgd", "apgd-ce", "apgd-dlr", "apgd-t", "square"), 50, 9, 1000),
}


def effort_named(name: str) -> Effort:
    """The effort called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in EFFORTS:
        raise UsageError(f"there is no attack {name!r}; choose one of {', '.join(EFFORTS)}")
    return EFFORTS[name]


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Attacks on images of one network.

    Attributes:
        region: around the images, batched; all of one radius ``eps``.
        confirm: called with an example and a flat point that seems to be misclassified; runs the
            model itself and tells whether it is.
    """

    graph: Graph
    region: Region
    labels: np.ndarray
    eps: float
    confirm: Confirm
    device: str = "cpu"
    seed: int = 0

    def broken(self, effort: Effort, among: np.ndarray) -> dict[int, str]:
        """Which of the examples ``among`` are broken, each with the attack that did it."""
        found: dict[int, str] = {}
        for name in effort.names:
            open_ = np.array([i for i in among if i not in found], dtype=np.int64)
            for i in self._broken_by(name, effort, open_):
                found[i] = name
        return found

    def _broken_by(self, name: str, effort: Effort, among: np.ndarray) -> Iterator[int]:
        if not len(among):
            return
        record = _ATTACKS[name](self._arena(among), effort, self.eps)
        for place in (record.margin <= 0).nonzero()[:, 0].tolist():
            example = int(among[place])
            if self.confirm(example, record.point[place].double().cpu().numpy().reshape(-1)):
                yield example

    def _arena(self, among: np.ndarray) -> Arena:
        dtype = torch.float64 if self.graph.source.get("dtype") == "float64" else torch.float32
        with torch.no_grad():
            program = prepare(self.graph, dtype, self.device)
        labels = torch.from_numpy(self.labels[among]).to(program.device)
        return Arena(surrogate(program), self.region.rows(among), labels, seed=self.seed)


def _pgd(arena: Arena, effort: Effort, eps: float) -> Record:
    targets = rivals(arena.scores(arena.centre())[:, 0], arena.labels, effort.targets)
    starts = arena.sample(targets.shape[1], 1)
    return pgd(arena, starts, towards(arena.labels, targets), effort.steps, eps)


def _apgd_ce(arena: Arena, effort: Effort, eps: float) -> Record:
    return apgd(arena, arena.sample(1, 2), cross_entropy(arena.labels), effort.steps, eps)


def _apgd_dlr(arena: Arena, effort: Effort, eps: float) -> Record:
    return apgd(arena, arena.sample(1, 3), dlr(arena.labels), effort.steps, eps)


def _apgd_t(arena: Arena, effort: Effort, eps: float) -> Record:
    targets = rivals(arena.scores(arena.centre())[:, 0], arena.labels, effort.targets)
    starts = arena.sample(targets.shape[1], 4)
    return apgd(arena, starts, targeted_dlr(arena.labels, targets), effort.steps, eps)


def _square(arena: Arena, effort: Effort, eps: float) -> Record:
    return square(arena, effort.queries, eps)


_ATTACKS: dict[str, Callable[[Arena, Effort, float], Record]] = {
    "pgd": _pgd, "apgd-ce": _apgd_ce, "apgd-dlr": _apgd_dlr, "apgd-t": _apgd_t, "square": _square,
}
