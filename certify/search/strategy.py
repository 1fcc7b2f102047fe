"""Which complete search suits a question, and why."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from certify.core.certificate import Verdict
from certify.core.region import Region, Substitutions
from certify.search.boxes import Frame
from certify.search.milp import solve_milp, suits
from certify.search.problem import Findings, Problem

_FEW_INPUTS = 10  # halving boxes is worth more than halving neurons up to about here
_SOME_INPUTS = 24  # and may still be worth a try up to here
_ADVICE = 0.05  # share of the time for linear programs, whose points are often counterexamples
_FIRST_TRY = 0.4  # share of the time for a first try that may fail


@dataclass(frozen=True)
class Choice:
    """One search to run.

    Attributes:
        name: ``"input"``, ``"neuron"``, ``"milp"`` or ``"substitutions"``.
        share: of the time left that it may take.
        why: in words.
    """

    name: str
    share: float
    why: str


def choose(problem: Problem) -> list[Choice]:
    """The searches to run one after the other, the last with all the time that is left."""
    if isinstance(problem.region, Substitutions):
        return [Choice("substitutions", 1.0, "positions are settled one after the other")]
    free = free_inputs(problem.region)
    if free is None:
        return [Choice("neuron", 1.0, "the region is no box, so its neurons are split")]
    if free <= _FEW_INPUTS:
        return [Choice("input", 1.0, f"{free} free inputs: boxes are halved and clipped")]
    found = []
    if problem.suspect is not None and suits(problem):
        why = "few undecided neurons: a linear program often ends in a counterexample"
        found.append(Choice("milp", _ADVICE, why))
    if free <= _SOME_INPUTS:
        found.append(Choice("input", _FIRST_TRY, f"{free} free inputs: boxes are halved first"))
    found.append(Choice("neuron", 1.0, f"{free} free inputs are many: neurons are split"))
    return found


def search(problem: Problem, explain: Callable[[str], None]) -> Findings:
    """Run the searches that `choose` names until one decides."""
    best: Findings | None = None
    choices = choose(problem)
    for number, choice in enumerate(choices):
        explain(f"search by {_SEARCHES[choice.name]}: {choice.why}")
        left = problem.limits.remaining()
        until = problem.limits.deadline
        if number + 1 < len(choices):
            until = time.monotonic() + choice.share * left
        limits = replace(problem.limits, deadline=until)
        found = _run(choice.name, replace(problem, limits=limits))
        explain(f"search by {_SEARCHES[choice.name]}: {outcome_words(found)}")
        if found.verdict in (Verdict.HOLDS, Verdict.VIOLATED):
            return found
        if best is None or found.margin > best.margin:
            best = found
        if problem.limits.remaining() <= 0:
            break
    if best is None:
        raise TypeError("no search was chosen")
    return best


_SEARCHES = {"input": "input splits", "neuron": "neuron splits", "milp": "linear programs",
             "substitutions": "splits of positions"}


def _run(name: str, problem: Problem) -> Findings:
    if name == "milp":
        return solve_milp(problem)
    if name == "input":
        from certify.search.input_split import split_inputs

        return split_inputs(problem)
    if name == "substitutions":
        from certify.search.substitutions import split_substitutions

        return split_substitutions(problem)
    from certify.search.neuron_split.engine import split_neurons

    return split_neurons(problem)


def outcome_words(found: Findings) -> str:
    """What a search came to, in one line."""
    counters = ", ".join(f"{v} {k}" for k, v in found.statistics.items())
    words = f"{found.verdict.value}, {found.leaves} sub-problems, margin {found.margin:.4g}"
    if found.open_share:
        words += f", {100 * found.open_share:.3g} % open"
    return f"{words}{' (' + counters + ')' if counters else ''}"


def free_inputs(region: Region) -> int | None:
    """Inputs of a box that are not fixed; None where the region is no box."""
    frame = Frame.of(region)
    return None if frame is None else len(frame.free)
