"""One run through the stages: what is open, what each stage does to it, what is known so far."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from certify.bounds.alpha import Alpha
from certify.bounds.decide import Decision, Means, decide
from certify.core.certificate import Counterexample, Verdict
from certify.core.graph import Graph
from certify.core.split_tree import SplitTree
from certify.ops.record import Interval
from certify.search.attack import AttackSettings, attack
from certify.search.outcome import Proof
from certify.search.problem import Findings, Problem
from certify.search.replay import confirm
from certify.search.strategy import outcome_words, search
from certify.search.target import Target
from certify.settings import Options
from certify.targets import groups, question

_LEAST_MEMORY = 2**26
# Margins this close to unsafe, relative to the thresholds, are worth running the model.
_NEAR = 1e-6


@dataclass
class Climb:
    """One run in progress.

    Attributes:
        open: targets nothing has decided yet.
        proofs, margins, known: by target key; ``known`` are sound intervals per step.
        found: the counterexample that ended the run.
        last: the stage that ran last, and ``cost`` its seconds.
        stuck: what a search that did not decide came to.
        trees: proofs by cases from elsewhere, to take up first; nothing in them is believed.
    """

    graph: Graph
    options: Options
    means: Means
    open: list[Target]
    proofs: dict[tuple[int, int], Proof] = field(default_factory=dict)
    margins: dict[tuple[int, int], float] = field(default_factory=dict)
    known: dict[tuple[int, int], list[Interval | None]] = field(default_factory=dict)
    found: Counterexample | None = None
    last: str = "none"
    cost: float = 0.0
    stuck: Findings | None = None
    trees: Mapping[tuple[int, int], tuple[SplitTree, ...]] = field(default_factory=dict)

    def attack(self, settings: AttackSettings, seconds: float, count: int | None = None) -> None:
        """Look for a counterexample in the open targets, the least robust first."""
        until = min(self.means.limits.deadline, time.monotonic() + seconds)
        order = sorted(self.open, key=lambda t: self.margins.get(t.key, 0.0))[:count]
        settings = replace(settings, device=self.means.device)
        for target in order:
            if time.monotonic() > until:
                return
            for candidate in self._candidates(target, settings, until):
                if self.suspect(target, candidate.x):
                    self.last = "attack"
                    return

    def suspect(self, target: Target, x: np.ndarray) -> bool:
        """Whether the model itself is unsafe at a point; if so, that is the answer."""
        self.found = confirm(
            self.graph,
            target.place,
            target.spec,
            x,
            self.options.semantics,
            case=target.case,
            example=target.example,
        )
        return self.found is not None

    def _candidates(self, target: Target, settings: AttackSettings, until: float) -> Iterator[Any]:
        spec = target.spec.only(target.example)
        seed = self.options.seed + 7919 * target.case + target.example
        for candidate in attack(
            self.graph, target.region, spec, deadline=until, seed=seed, settings=settings
        ):
            if candidate.margin <= _NEAR * (1 + float(np.abs(spec.rows().bound).max())):
                yield candidate  # the model itself may round the other way

    def bound(self, method: str) -> None:
        """Try to prove the open targets."""
        before = time.monotonic()
        self.last = method
        for group in groups(self.graph, self.open):
            decision = self._decide(group, method)
            best = group[0].spec.rows().clause_margins(decision.margins).min(axis=1)
            for i, target in enumerate(group):
                margin = float(np.nan_to_num(best[i], nan=-np.inf))
                self.margins[target.key] = max(margin, self.margins.get(target.key, -np.inf))
                if not decision.proved[i]:
                    self.known[target.key] = decision.bounds_of(i)
                else:
                    self.margins[target.key] = margin  # what was proved, not what was searched
                    self.proofs[target.key] = Proof(
                        method, decision.margins[i], self._slopes(decision, group)
                    )
        self.open = [t for t in self.open if t.key not in self.proofs]
        self.cost = time.monotonic() - before
        self.options.say(
            f"{method}: {len(self.open)} open, worst margin {self.worst():.4g}, {self.cost:.2f} s"
        )

    def _decide(self, group: list[Target], method: str) -> Decision:
        """As `decide`; when memory runs out, with half as much, down to a floor."""
        limits = self.means.limits
        while True:
            try:
                return decide(
                    self.graph, question(group), method, replace(self.means, limits=limits)
                )
            except (MemoryError, RuntimeError) as problem:
                if not is_memory(problem) or limits.memory <= _LEAST_MEMORY:
                    raise
                limits = replace(limits, memory=limits.memory // 2)
                self.options.say(f"out of memory; going on with {limits.memory / 2**20:.0f} MiB")

    def _slopes(self, decision: Decision, group: list[Target]) -> dict[str, tuple[np.ndarray, ...]]:
        if decision.evidence.slopes is None or len(group) > 1:
            return {}
        names = [node.name for node in self.graph.nodes]
        return {
            names[i]: tuple(t.cpu().numpy().astype(np.float32) for t in tensors)
            for i, tensors in decision.evidence.slopes.items()
        }

    def worst(self) -> float:
        """The smallest margin over all targets."""
        return min(self.margins.values(), default=-np.inf)

    def search(self) -> None:
        """Decide the open targets completely, the least robust first."""
        self.last = "search"
        for target in sorted(self.open, key=lambda t: self.margins.get(t.key, 0.0)):
            found = self._searched(target)
            self.margins[target.key] = found.margin
            if found.verdict is Verdict.HOLDS:
                self.proofs[target.key] = Proof("search", trees=found.trees)
            elif found.verdict is not Verdict.VIOLATED:
                self.stuck = found
            if found.verdict is not Verdict.HOLDS:
                break
        self.open = [t for t in self.open if t.key not in self.proofs]

    def _searched(self, target: Target) -> Findings:
        problem, trees = self._problem(target), self.trees.get(target.key)
        if trees:
            from certify.search.leaves import prove_trees  # late: only a second look needs it

            found = prove_trees(problem, trees)
            self.options.explained(f"search from {len(trees)} trees: {outcome_words(found)}")
            if found.verdict is Verdict.HOLDS:
                return found
        return search(problem, self.options.explained)

    def _problem(self, target: Target) -> Problem:
        spec = target.spec.only(target.example)
        return Problem(
            self.graph,
            target.region,
            spec.rows(),
            self.means.semantics,
            self.means.limits,
            self.means.device,
            self.options.workers,
            partial(self.suspect, target) if self.options.attack else None,
            self.known.get(target.key),
            self.options.say,
            self.options.seed,
        )

    def affordable_alpha(self) -> Alpha:
        """Slope optimisation that fits into a quarter of the time left, judged by the last
        stage."""
        alpha = self.means.alpha
        fits = int(0.25 * self.means.limits.remaining() / max(1e-3, 4 * self.cost))
        return replace(alpha, unit_iterations=min(alpha.unit_iterations, fits if fits >= 2 else 0))


def is_memory(problem: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    words = ("not enough memory", "out of memory", "can't allocate memory")
    return isinstance(problem, MemoryError) or any(w in str(problem).lower() for w in words)
