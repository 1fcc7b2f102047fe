"""The whole road from targets to an outcome for small networks, without torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from certify.bounds.budget import Limits
from certify.core.certificate import Counterexample, Verdict
from certify.core.graph import Graph
from certify.core.semantics import Semantics
from certify.core.spec import Spec
from certify.search.outcome import Outcome, Proof
from certify.search.problem import Findings, Problem
from certify.search.small import compiled
from certify.search.small.confirm import confirmed, labelled
from certify.search.small.memory import Question
from certify.search.small.search import question_of, search_question

if TYPE_CHECKING:
    from certify.search.target import Target
    from certify.settings import Options

_FEW_FREE = 10  # inputs up to which halving boxes is the best there is, and gets all the time
_TRY = 0.3  # share of the time otherwise
_COMPILING = 0.5  # share of the time for the first compilation
_MOST_TARGETS = 64
_METHOD = "search"


@dataclass
class _Road:
    """Targets being decided one after the other."""

    graph: Graph
    options: Options
    deadline: float
    proofs: dict[tuple[int, int], Proof] = field(default_factory=dict)
    found: Counterexample | None = None

    def decide(self, target: Target, question: Question) -> Findings:
        """Search one target until the deadline."""
        return search_question(self._problem(target, question, self.deadline), question)

    def _problem(self, target: Target, question: Question | None, deadline: float) -> Problem:
        def suspect(x: np.ndarray) -> bool:
            if question is None:
                return False
            found = confirmed(self.graph, target.place, _spec(target), x, question)
            if found is not None:
                self.found = labelled(found, target.case, target.example)
            return found is not None

        return Problem(
            self.graph,
            target.region,
            _spec(target).rows(),
            semantics=Semantics(self.options.semantics),
            limits=Limits(self.options.memory, deadline),
            device=self.options.device,
            workers=self.options.workers,
            suspect=suspect if self.options.attack else None,
            say=self.options.say,
            seed=self.options.seed + 7919 * target.case + target.example,
        )


def small_route(
    graph: Graph, targets: Sequence[Target], options: Options, deadline: float
) -> Outcome | None:
    """Decide all targets by the compiled search of small networks.

    Args:
        deadline: as `time.monotonic` tells it.

    Returns:
        None: not a question for this search, or more than it could do in its share of the time.
    """
    known = graph.source.get("format") == "onnx"
    if options.method != "auto" or not known or len(targets) > _MOST_TARGETS:
        return None
    if time.monotonic() >= deadline:
        reason = f"the time limit of {options.timeout:g} s passed before the search"
        return Outcome(Verdict.TIMEOUT, _METHOD, "cpu", None, reason)
    road = _Road(graph, options, deadline)
    questions = []
    for target in targets:
        question = question_of(road._problem(target, None, deadline))
        if question is None:
            return None
        questions.append(question)
    if not compiled.ready(_COMPILING * max(0.0, deadline - time.monotonic())):
        return None
    hard = max(len(q.free) for q in questions) > _FEW_FREE
    if hard:
        now = time.monotonic()
        road.deadline = now + _TRY * max(0.0, deadline - now)
    return _travel(road, list(zip(targets, questions, strict=True)), hard)


def _spec(target: Target) -> Spec:
    return target.spec.only(target.example)


def _travel(road: _Road, pairs: list[tuple[Target, Question]], hard: bool) -> Outcome | None:
    margin = np.inf
    for target, question in pairs:
        findings = road.decide(target, question)
        margin = min(margin, findings.margin)
        if findings.verdict is Verdict.VIOLATED:
            return Outcome(Verdict.VIOLATED, _METHOD, "cpu", None, counterexample=road.found)
        if findings.verdict is not Verdict.HOLDS:
            if hard or findings.verdict is Verdict.UNKNOWN:
                road.options.say(f"search of small networks: {findings.reason}")
                return None
            reason = (
                f"the time limit of {road.options.timeout:g} s passed during the search, with "
                f"{100 * findings.open_share:.3g} % of the region open; hardest: {findings.hardest}"
            )
            return Outcome(Verdict.TIMEOUT, _METHOD, "cpu", None, reason)
        road.proofs[target.key] = Proof(_METHOD, None, {})
    shown = float(margin) if np.isfinite(margin) else None
    return Outcome(Verdict.HOLDS, _METHOD, "cpu", shown, proofs=road.proofs)
