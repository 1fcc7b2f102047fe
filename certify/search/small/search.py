"""Complete search of small networks: boxes are bounded, clipped and halved by compiled code."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from certify.core.certificate import Verdict
from certify.core.region import Product, Region
from certify.core.region_box import BoxShaped
from certify.core.semantics import Semantics
from certify.search.problem import Findings, Problem
from certify.search.small import compiled
from certify.search.small.attack import suspects
from certify.search.small.magnitude import may_overflow
from certify.search.small.memory import Memory, Question
from certify.search.small.network import enabled, lower

MOST_FREE = 32  # inputs; halving more of them seldom ends
_SLICE = 0.05  # seconds between looks at the clock
_MOST_BOXES = 2**16  # of one slice
_FIRST = 128  # boxes before the first attack
_ATTACK_SHARE = 0.1  # of the time, for attacks between slices
_FEW = 8  # points of one attack that are run through the model
_MOST_SUSPECTS = 200  # points run through the model itself


def question_of(problem: Problem) -> Question | None:
    """The problem for the kernels; None where it does not suit them."""
    if not enabled() or problem.device not in ("cpu", "auto"):
        return None
    if problem.semantics is not Semantics.REAL:
        return None
    parts = problem.region.parts if isinstance(problem.region, Product) else (problem.region,)
    if not all(isinstance(p, BoxShaped) for p in parts) or len(problem.rows.y) != 1:
        return None
    ends = [_ends(part) for part in parts]
    low, high = (np.concatenate(side) for side in zip(*ends, strict=True))
    if int((low < high).sum()) > MOST_FREE:
        return None
    layers = lower(problem.graph, problem.rows)
    if layers is None or may_overflow(problem.graph, np.maximum(abs(low), abs(high))):
        return None
    return Question.of(layers, problem.rows, low, high)


def qualifies(problem: Problem) -> bool:
    """Whether `split_small` can take the problem."""
    return question_of(problem) is not None


def _ends(part: Region) -> tuple[np.ndarray, np.ndarray]:
    lower, upper = (np.asarray(end, dtype=np.float64).reshape(-1) for end in part.ends())
    return lower, upper


@dataclass
class _Run:
    """One search in progress."""

    problem: Problem
    question: Question
    crew: list[Memory]
    asked: int = 0  # points run through the model
    rounds: int = 0
    spent: float = 0.0  # seconds of attacks
    safe: set[bytes] = field(default_factory=set)

    def dangerous(self, point: np.ndarray) -> bool:
        """Whether the model itself confirms a point."""
        suspect, key = self.problem.suspect, point.tobytes()
        if suspect is None or self.asked >= _MOST_SUSPECTS or key in self.safe:
            return False
        self.asked += 1
        self.safe.add(key)
        return suspect(point.copy())

    def attacked(self) -> bool:
        """One round of attack from new starts; True when a point was confirmed."""
        if self.problem.suspect is None:
            return False
        begun = time.monotonic()
        seed = self.problem.seed + 1009 * self.rounds
        self.rounds += 1
        points = itertools.islice(suspects(self.question, seed), _FEW)
        found = any(self.dangerous(p) for p in points)
        self.spent += time.monotonic() - begun
        return found

    def step(self, memory: Memory, budget: int) -> int:
        """One slice of one worker."""
        return compiled.step(self.question, memory, budget)

    def findings(self, verdict: Verdict, reason: str = "") -> Findings:
        """What was found so far."""
        totals = np.sum([m.counts for m in self.crew], axis=0)
        margin = float(min(m.counts[4] for m in self.crew))
        share = 0.0 if verdict is Verdict.HOLDS else max(0.0, 1.0 - float(totals[3]))
        busy = next((m for m in self.crew if m.top), None)
        return Findings(
            verdict,
            margin if verdict is Verdict.HOLDS else -np.inf,
            share,
            int(totals[1]),
            "" if busy is None or verdict is Verdict.HOLDS else _words(busy),
            reason,
            (),
            {"boxes": int(totals[1]), "leaves": int(totals[2]), "points run": self.asked},
        )


def _words(memory: Memory) -> str:
    top = memory.top - 1
    lower, upper = memory.stack[0][top], memory.stack[1][top]
    shown = ", ".join(f"[{a:.5g}, {b:.5g}]" for a, b in list(zip(lower, upper, strict=True))[:8])
    return f"inputs in {shown}{', ...' if len(lower) > 8 else ''}"


def split_small(problem: Problem) -> Findings:
    """Decide a problem that `qualifies`, by halving boxes depth first.

    No torch is imported. A box counts as proved only by bounds with all rounding accounted for;
    a counterexample only when `Problem.suspect` confirms it.

    Raises:
        TypeError: the problem does not qualify.
    """
    question = question_of(problem)
    if question is None:
        raise TypeError("the problem does not suit the search of small networks")
    return search_question(problem, question)


def search_question(problem: Problem, question: Question) -> Findings:
    """As `split_small`, for a question already made of the problem."""
    compiled.load(question)
    crew = [Memory(question) for _ in range(max(1, min(2, problem.workers)))]
    crew[0].push(question.lower, question.upper, 1.0)
    run = _Run(problem, question, crew)
    found = _slice(run, crew[:1], _FIRST, None)
    if found is None and run.attacked():
        found = run.findings(Verdict.VIOLATED)
    if found is not None:
        return found
    if len(crew) == 1:
        return _loop(run, None)
    with ThreadPoolExecutor(len(crew)) as pool:
        return _loop(run, pool)


def _loop(run: _Run, pool: ThreadPoolExecutor | None) -> Findings:
    """Slices until something is decided or the time is up."""
    budget, begun = _FIRST, time.monotonic()
    said = begun
    while True:
        if run.problem.limits.remaining() <= 0:
            return run.findings(Verdict.TIMEOUT, "the time limit passed during the search")
        before = time.monotonic()
        busy = _share(run.crew)
        found = _slice(run, busy, budget, pool)
        if found is not None:
            return found
        now = time.monotonic()
        left = min(_SLICE, max(1e-3, run.problem.limits.remaining()))
        wanted = budget * left / max(1e-6, now - before)
        budget = int(np.clip(wanted, 16, min(4 * budget, _MOST_BOXES)))
        if run.spent < _ATTACK_SHARE * (now - begun) and run.attacked():
            return run.findings(Verdict.VIOLATED)
        if now - said > 1.0:
            said = now
            totals = np.sum([m.counts for m in run.crew], axis=0)
            run.problem.say(f"search: {totals[1]:.0f} boxes, {100 * totals[3]:.3g} % proved")


def _share(crew: list[Memory]) -> list[Memory]:
    """Workers with something to do, after the busy ones have given to the idle."""
    for idle in crew:
        rich = max(crew, key=lambda m: m.top)
        if idle.top == 0 and rich.top >= 2:
            rich.give_half(idle)
    return [m for m in crew if m.top]


def _slice(
    run: _Run, busy: list[Memory], budget: int, pool: ThreadPoolExecutor | None
) -> Findings | None:
    """One slice of every worker; the findings when they decide."""
    if pool is None or len(busy) == 1:
        statuses = [run.step(m, budget) for m in busy]
    else:
        statuses = list(pool.map(lambda m: run.step(m, budget), busy))
    for memory, status in zip(busy, statuses, strict=True):
        if status == compiled.FULL:
            memory.grow()
        if status in (compiled.POINT, compiled.SOLID) and run.dangerous(memory.found):
            return run.findings(Verdict.VIOLATED)
    if compiled.SOLID in statuses:
        return run.findings(Verdict.UNKNOWN, "a box of neighbouring floats stays undecided")
    if not any(m.top for m in run.crew):
        return run.findings(Verdict.HOLDS)
    return None
