"""Branch and bound over the halves of undecided units, led by linear programs, proved without them.

HiGHS solves relaxations and, for counterexamples, the whole mixed-integer program (Tjeng, Xiao and
Tedrake, 2019). What it says is only advice: a sub-problem is closed by `safe_lp_bound` with the
solver's multipliers, a counterexample by the model itself. Suited to networks with few undecided
units whose bounds by slopes converge slowly.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from certify.bounds.budget import OutOfTime
from certify.bounds.selftest import check_arithmetic
from certify.core.certificate import Verdict
from certify.search.milp_encoding import Encoding, bounded, encode, is_encodable, undecided
from certify.search.milp_programs import Advice, Programs
from certify.search.problem import Findings, Problem
from certify.search.safe_lp import (
    Dual,
    Floats,
    Ranges,
    confined,
    is_empty,
    propagated,
    safe_lp_bound,
)

MOST_UNITS = 200
_MOST_INPUTS = 2000
_RESERVE = (0.2, 0.05)  # seconds, and share of the time left, kept for the answer
_FIRST = 20  # sub-problems looked at before the mixed-integer program is asked for a point
_SHARE = 0.3  # of the time left that it may take
_ROUNDS = 3  # linear programs per sub-problem, as long as ranges get narrower
_WORTH = 4  # units decided that are worth another one
_NEAR = 1e-6  # rows this far above 0, relative to their size, are worth running the model


def suits(problem: Problem) -> bool:
    """Whether the network can be written down and has few undecided units."""
    if not is_encodable(problem):
        return False
    if sum(int(np.prod(s)) for s in problem.graph.input_shapes) > _MOST_INPUTS:
        return False
    try:
        return undecided(bounded(problem, problem.limits)) <= MOST_UNITS
    except OutOfTime:
        return False


def solve_milp(problem: Problem) -> Findings:
    """Decide a problem of affine steps and units of two straight halves.

    Returns:
        See `Findings`. ``open_share`` counts halves of halves, averaged over the clauses. A
        problem that does not suit gives UNKNOWN.

    Raises:
        BrokenArithmetic: this machine's arithmetic cannot carry a proof.
    """
    if not is_encodable(problem):
        reason = "a linear program needs a box and units of two convex straight halves"
        return Findings(Verdict.UNKNOWN, -np.inf, 1.0, reason=reason)
    check_arithmetic(problem.device)
    left = problem.limits.remaining()
    deadline = problem.limits.deadline - min(_RESERVE[0], _RESERVE[1] * max(0.0, left))
    limits = replace(problem.limits, deadline=deadline)
    try:
        state = bounded(problem, limits)
        if undecided(state) > MOST_UNITS:
            reason = f"more than {MOST_UNITS} units are undecided: split neurons instead"
            return Findings(Verdict.UNKNOWN, -np.inf, 1.0, reason=reason)
        code = encode(problem, state)
    except OutOfTime:
        return Findings(Verdict.TIMEOUT, -np.inf, 1.0, reason="the time limit passed")
    if code is None:
        reason = "something in the network has no finite bounds"
        return Findings(Verdict.UNKNOWN, -np.inf, 1.0, reason=reason)
    return _Search(replace(problem, limits=limits), code).run()


@dataclass(frozen=True, eq=False)
class _Part:
    """One sub-problem: a clause, and where a counterexample to it can still be.

    Attributes:
        margin: the best bound shown for it, its parents' included.
        split: unit to split next.
    """

    clause: int
    ranges: Ranges
    depth: int
    margin: float
    split: int = -1


class _Search:
    """One search in progress; ``open`` has the worst margin first."""

    def __init__(self, problem: Problem, code: Encoding) -> None:
        self.problem, self.code, self.programs = problem, code, Programs(code)
        self.open: list[tuple[float, int, _Part]] = []
        self.numbers = itertools.count()
        self.stuck: _Part | None = None
        self.proved, self.violated, self.asked = np.inf, False, False
        self.leaves, self.said = 0, time.monotonic()
        self.counts: Counter[str] = Counter()
        size = np.abs(code.rows.offset) + code.rows.size.sum(1)
        self.near = _NEAR * size[: len(code.group)]

    def run(self) -> Findings:
        """Until everything is decided, or no time is left."""
        try:
            whole = _Part(0, self.code.ranges, 0, -np.inf)
            self._every([replace(whole, clause=k) for k in range(len(self.code.clauses))])
            while self.open and not self.violated and self.stuck is None:
                self._ask()
                if not self.violated:
                    self._split(heapq.heappop(self.open)[2])
                self._report()
        except OutOfTime:
            return self._findings(Verdict.TIMEOUT, "the time limit passed")
        if self.violated:
            return self._findings(Verdict.VIOLATED, "")
        if self.stuck is not None:
            words = f"nothing is left to split and the margin {self.stuck.margin:.3g} is undecided"
            return self._findings(Verdict.UNKNOWN, f"clause {self.stuck.clause}: {words}")
        return self._findings(Verdict.HOLDS, "")

    def _split(self, part: _Part) -> None:
        """Both halves; they share 0, so they always cover their parent."""
        low, high = part.ranges.z_low.copy(), part.ranges.z_high.copy()
        high[part.split], low[part.split] = 0.0, 0.0
        below = replace(part, ranges=replace(part.ranges, z_high=high), depth=part.depth + 1)
        self._every([below, replace(below, ranges=replace(part.ranges, z_low=low))])

    def _every(self, parts: list[_Part]) -> None:
        """Look at all of some sub-problems; what time does not suffice for stays open."""
        for number, part in enumerate(parts):
            try:
                self._look(part)
            except OutOfTime:
                for rest in parts[number:]:
                    self._push(rest)
                raise

    def _look(self, part: _Part) -> None:
        """Close a sub-problem, or find its unit to split and put it on the list."""
        self.problem.limits.check()
        if self.violated:
            return
        self.leaves += 1
        advice: Advice | None = None
        for _ in range(_ROUNDS):
            part = replace(part, ranges=propagated(self.code.rows, self.code.curves, part.ranges))
            if is_empty(part.ranges):
                self.counts["ruled out by ranges"] += 1
                return
            left = self.problem.limits.remaining()
            advice = self.programs.relaxed(part.clause, part.ranges, left)
            self.problem.limits.check()
            if advice is None:
                break
            dual = self._safe(part, advice)
            empty = not advice.weights.any()
            if self._refuted(part.clause, dual.bound, empty):
                self.proved = self.proved if empty else min(self.proved, dual.bound)
                self.counts["contradictions"] += empty
                return
            if self._suspect(part.clause, advice.x):
                return
            before = part.ranges
            margin = part.margin if empty else max(part.margin, dual.bound)
            part = replace(part, margin=margin, ranges=confined(before, dual))
            if not self._narrower(before, part.ranges):
                break
        unit = self._choice(part, advice)
        if unit < 0:
            self.stuck = part
        self._push(replace(part, split=unit))

    @staticmethod
    def _narrower(before: Ranges, after: Ranges) -> bool:
        """Whether enough was cut off to ask again."""
        width = before.x_high - before.x_low
        kept = (after.x_high - after.x_low)[width > 0] / width[width > 0]
        units = ((after.z_low > before.z_low) | (after.z_high < before.z_high)).sum()
        return bool(units >= _WORTH or (1 - kept).sum() >= 1.0)

    def _push(self, part: _Part) -> None:
        heapq.heappush(self.open, (part.margin, next(self.numbers), part))

    def _safe(self, part: _Part, advice: Advice) -> Dual:
        code, inside = self.code, np.zeros(len(self.code.group), dtype=bool)
        inside[code.clauses[part.clause]] = True
        weights = np.where(inside, advice.weights, 0.0)  # only rows that hold together
        return safe_lp_bound(code.rows, code.curves, part.ranges, weights, advice.mu)

    def _refuted(self, clause: int, bound: float, empty: bool) -> bool:
        """Whether a bound of a clause's weighted rows refutes it; see `Rows.refuted`."""
        strict = bool(self.code.strict[self.code.clauses[clause]].all())
        return bound > 0 or (strict and not empty and bound >= 0)

    def _choice(self, part: _Part, advice: Advice | None) -> int:
        """The unit whose relaxation costs most; -1 when all are decided."""
        z_low, z_high = part.ranges.z_low, part.ranges.z_high
        both = (z_low < 0) & (z_high > 0)
        if not both.any():
            return -1
        triangle = -z_low * z_high / np.where(both, z_high - z_low, 1.0)
        price = np.ones_like(triangle)
        gap = triangle
        if advice is not None:
            y = np.concatenate([advice.weights, advice.mu])
            price = np.abs((y @ self.code.rows.M)[self.code.inputs :])
            if advice.z is not None and advice.a is not None:
                curves = self.code.curves
                line = np.where(advice.z < 0, curves.left, curves.right) * advice.z
                gap = np.abs(advice.a - line) + 1e-6 * triangle
        score = gap * (price + 1e-9 * (1 + price.max()))
        return int(np.argmax(np.where(both, score, -1.0)))

    # -- counterexamples ----------------------------------------------------------------------

    def _suspect(self, clause: int, x: Floats | None) -> bool:
        """Whether the model is unsafe at a point that looks so here."""
        if self.problem.suspect is None or x is None:
            return False
        point = np.clip(x, self.code.ranges.x_low, self.code.ranges.x_high)
        rows, _ = self.code.values(point)
        picked = self.code.clauses[clause]
        if not (rows[picked] <= self.near[picked]).all():
            return False
        self.counts["points tried"] += 1
        self.violated = self.problem.suspect(point)
        return self.violated

    def _ask(self) -> None:
        """Ask the mixed-integer program for a point, once, when the first looks did not do."""
        if self.asked or self.leaves < _FIRST or self.problem.suspect is None:
            return
        self.asked = True
        clauses = sorted({part.clause for *_, part in self.open})
        seconds = _SHARE * self.problem.limits.remaining() / max(1, len(clauses))
        for clause in clauses:
            said, x = self.programs.point(clause, min(seconds, 3600.0))
            self.counts[f"programs: {said}"] += 1
            if self._suspect(clause, x):
                return
            self.problem.limits.check()

    # -- reports ------------------------------------------------------------------------------

    def _report(self) -> None:
        now = time.monotonic()
        if now - self.said < 1.0:
            return
        self.said = now
        worst = self.open[0][0] if self.open else self.proved
        self.problem.say(
            f"linear programs: {self.leaves} sub-problems, {len(self.open)} open, "
            f"{100 * self._share():.3g} % left, worst margin {worst:.4g}"
        )

    def _share(self) -> float:
        parts = [part for *_, part in self.open]
        return min(1.0, sum(0.5**p.depth for p in parts) / len(self.code.clauses))

    def _findings(self, verdict: Verdict, reason: str) -> Findings:
        worst = min((p.margin for *_, p in self.open), default=np.inf)
        holds = verdict is Verdict.HOLDS
        hardest = ""
        if self.open and not holds:
            part = self.open[0][2]
            hardest = f"clause {part.clause} with {part.depth} units split"
        share = 0.0 if holds else self._share()
        return Findings(
            verdict,
            min(self.proved, worst),
            share,
            self.leaves,
            hardest,
            reason,
            statistics=dict(self.counts),
        )
