"""Branch and bound over boxes of inputs: complete for networks with few free inputs.

Each round takes the boxes with the worst margins, bounds the specification's rows over them, cuts
off what cannot hold a counterexample, splits the rest and cuts the halves by the planes that are
already there. Both halves are closed and share the splitting plane, so they always cover their
parent; what is cut off is refuted with all rounding accounted for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from certify.bounds.budget import OutOfTime
from certify.bounds.selftest import check_arithmetic
from certify.core.certificate import Verdict
from certify.core.split_tree import SplitTree
from certify.search.box_tree import BoxTree
from certify.search.boxes import Boxes, Floats, Frame, WorkList, joined
from certify.search.clip import Cuts
from certify.search.dimension import RULES, Dimensions, best_rows
from certify.search.leaf_bounds import Bounded, Bounder, Way
from certify.search.probes import Probes
from certify.search.problem import Findings, Problem
from certify.search.settle import Judge, Settled
from certify.search.trials import Result, Trials

_RESERVE = (0.1, 0.05)  # seconds, and share of the time left, kept for the answer
_ROUND = 0.25  # seconds a round may take
_LARGEST = 2048  # boxes in a round
_LONG = 200_000  # open boxes from which on the nearest to a proof come first
_TRIAL = 0.1  # share of the time left that one way of bounding may take in a trial
_FREE_SPLIT = 0.45  # a box cut down to this share of its volume needs no split
_COPIES = 16  # coefficient tensors of one size alive at once
_NOISE = 1.5  # float32 margins this many times their usual error from a proof are tried in float64


def split_inputs(problem: Problem, start: Boxes | None = None) -> Findings:
    """Decide a problem by splitting its input box.

    Args:
        start: boxes to begin with instead of the whole region; no trees are kept then. Together
            they hold every point of the region, once per clause.

    Returns:
        See `Findings`. ``open_share`` is by volume in the inputs that are not fixed. A region that
        is no box gives UNKNOWN.

    Raises:
        BrokenArithmetic: this machine's arithmetic cannot carry a proof.
    """
    frame = Frame.of(problem.region)
    if frame is None:
        reason = "inputs are split only where the region is a box; split neurons instead"
        return Findings(Verdict.UNKNOWN, -np.inf, 1.0, reason=reason)
    check_arithmetic(problem.device)
    with _threads(problem.workers):
        return _Search(problem, frame, start).run()


@contextmanager
def _threads(workers: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(workers, before)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Search:
    """One search in progress.

    Attributes:
        current: boxes taken off the list and not dealt with yet.
        proved: the smallest margin by which anything was refuted.
        stuck: a box too small to split.
    """

    def __init__(self, problem: Problem, frame: Frame, start: Boxes | None = None) -> None:
        left = problem.limits.remaining()
        deadline = problem.limits.deadline - min(_RESERVE[0], _RESERVE[1] * max(0.0, left))
        self.problem, self.frame, self.started = problem, frame, time.perf_counter()
        self.limits = replace(problem.limits, deadline=deadline)
        self.bounder = Bounder(problem, frame, self.limits)
        self.judge = Judge(problem.rows)
        self.dimensions = Dimensions(np.random.default_rng(problem.seed))
        self.probes = Probes(self.bounder, self.started)
        self.trials = Trials(self.bounder.exact32)
        self.list = WorkList(_LONG)
        self.current: Boxes | None = None
        self.stuck: Boxes | None = None
        self.start = start
        self.tree = BoxTree(int(problem.rows.group[-1]) + 1) if start is None else None
        self.violated = False
        self.proved, self.noise, self.pace, self.size = np.inf, 0.0, 0.0, 16
        self.leaves, self.said = 0, time.monotonic()
        self.counts: Counter[str] = Counter()

    def run(self) -> Findings:
        self.list.push(self._whole() if self.start is None else self.start)
        try:
            while self.list.count and not self.violated and self.stuck is None:
                self.limits.check()
                self._round()
                self._report()
        except OutOfTime:
            if self.current is not None:
                self.list.push(self.current)
            return self._findings(Verdict.TIMEOUT, "the time limit passed")
        if self.violated:
            return self._findings(Verdict.VIOLATED, "")
        if self.stuck is not None:
            self.list.push(self.stuck)
            return self._findings(Verdict.UNKNOWN, self._stuck_words(self.stuck))
        return self._findings(Verdict.HOLDS, "")

    def _whole(self) -> Boxes:
        lower, upper = (e[self.frame.free][None] for e in (self.frame.lower, self.frame.upper))
        every = np.ones((1, int(self.problem.rows.group[-1]) + 1), dtype=bool)
        none = np.zeros(1, np.int64)
        return Boxes(lower, upper, every, np.array([-np.inf]), none, none)

    # -- one round ----------------------------------------------------------------------------

    def _round(self) -> None:
        boxes = self.current = self.list.pop(self._batch())
        first = None
        if self.leaves >= self.trials.due:
            first = self._trial(boxes.take(slice(self.trials.sample)))
        settled, cuts, margins = self._bounded(boxes, first)
        self.leaves += len(boxes)
        self.dimensions.learn(boxes.rule, _gains(boxes.margin, settled))
        self.proved = min(self.proved, float(settled.proved.min(initial=np.inf)))
        alive = settled.alive
        left, cuts = settled.boxes.take(alive), cuts.take(alive)
        best = best_rows(self.problem.rows, margins[alive], left.open)
        if self.probes.found(left, cuts, best):
            self.violated = True
            self.list.push(left)
            return
        small = settled.shrunk[alive] <= _FREE_SPLIT
        self.counts["cut"] += int(small.sum())
        after = [left.take(small)]
        if not small.all():
            children = self._split(left.take(~small), cuts.take(~small), best[~small])
            if children is None:
                self.list.push(left.take(small))
                return
            after.append(children)
        self.list.push(joined(after))
        self.current = None

    def _bounded(self, boxes: Boxes, found: Bounded | None) -> tuple[Settled, Cuts, Floats]:
        """What the way in use makes of boxes; near misses of float32 are tried in float64.

        Args:
            found: by that way, if a trial has bounded these very boxes.
        """
        way = self.trials.way
        if found is None or len(found.margins) != len(boxes):
            found = self.bounder.bound(boxes.lower, boxes.upper, self._wanted(boxes), way)
        self.pace = found.seconds if not self.pace else 0.5 * (self.pace + found.seconds)
        self.counts[str(way)] += len(boxes)
        margins, cuts = found.margins, found.cuts
        settled = self.judge.settle(boxes, margins, cuts)
        near = settled.alive & (settled.boxes.margin > -_NOISE * self.noise) & (not way.double)
        if near.any():
            some = boxes.take(near)
            way = way._replace(double=True)
            again = self.bounder.bound(some.lower, some.upper, self._wanted(some), way)
            self.counts[str(way)] += len(some)
            self._measure(boxes.open[near], margins[near], again.margins)
            margins[near] = np.fmax(margins[near], again.margins)
            cuts.A[near], cuts.c[near] = again.cuts
            settled = self.judge.settle(boxes, margins, cuts)
        return settled, cuts, margins

    def _wanted(self, boxes: Boxes) -> Any:
        return np.asarray(boxes.open.any(axis=0))[self.problem.rows.group]

    def _split(self, boxes: Boxes, cuts: Cuts, best: Any) -> Boxes | None:
        """Both halves of every box, cut by its planes; None when a box is too small to split."""
        middle = 0.5 * boxes.lower + 0.5 * boxes.upper
        possible = (boxes.lower < middle) & (middle < boxes.upper)
        if not possible.any(axis=1).all():
            self.stuck = boxes
            return None
        width = np.where(possible, boxes.upper - boxes.lower, 0.0)
        picked, rule = self.dimensions.choose(cuts, best, width, width / self.frame.width)
        every = np.arange(len(boxes))
        point = middle[every, picked]
        low, high = boxes.lower.copy(), boxes.upper.copy()
        high[every, picked], low[every, picked] = point, point
        first, second = self._grown(boxes, picked, point)
        boxes = replace(boxes, rule=rule)
        halves = joined(
            [
                replace(boxes, upper=high, node=first),
                replace(boxes, lower=low, node=second),
            ]
        )
        twice = Cuts(np.concatenate([cuts.A, cuts.A]), np.concatenate([cuts.c, cuts.c]))
        nothing = np.full(twice.c.shape, -np.inf)
        settled = self.judge.settle(halves, nothing, twice)
        self.proved = min(self.proved, float(settled.proved.min(initial=np.inf)))
        done = ~settled.alive
        self.dimensions.learn(halves.rule[done], np.ones(int(done.sum())))
        self.counts["refuted by parents"] += int(done.sum())
        return settled.boxes.take(settled.alive)

    def _grown(self, boxes: Boxes, picked: Any, point: Floats) -> Any:
        """Places of both halves in the tree."""
        if self.tree is not None and self.tree.full:
            self.tree = None
        return (boxes.node,) * 2 if self.tree is None else self.tree.split(boxes, picked, point)

    # -- pace ---------------------------------------------------------------------------------

    def _batch(self) -> int:
        """Boxes for the next round."""
        program = self.bounder.program(self.trials.way.double)
        rows = max(1, len(self.problem.rows.strict))
        bytes_each = _COPIES * rows * program.largest * program.dtype.itemsize
        size = min(_LARGEST, 2 * self.size, int(self.limits.memory // bytes_each))
        if self.pace:
            seconds = min(_ROUND, 0.5 * max(0.0, self.limits.remaining()))
            size = min(size, int(seconds / self.pace))
        self.size = max(4, size)
        return self.size

    def _trial(self, sample: Boxes) -> Bounded | None:
        """Choose the way to go on with; returns what it made of the sample."""
        every: dict[Way, Bounded] = {}
        wanted = self._wanted(sample)

        def attempt(way: Way) -> Result:
            until = time.monotonic() + max(1.0, _TRIAL * self.limits.remaining())
            try:
                found = self.bounder.bound(
                    sample.lower, sample.upper, wanted, way, until if every else np.inf
                )
            except OutOfTime:
                self.limits.check()
                return Result(0.0, -np.inf, np.inf)
            settled = self.judge.settle(sample, found.margins, found.cuts)
            every[way] = found
            raw = self.problem.rows.clause_margins(found.margins)
            worst = np.where(sample.open, raw, np.inf).min(axis=1)
            mean = float(np.maximum(worst, -1e300).mean())
            return Result(float(1 - settled.shrunk.mean()), mean, found.effort)

        self.trials.run(attempt, self.leaves)
        way = self.trials.way
        self.pace = 0.0
        single, double = (every.get(way._replace(double=d)) for d in (False, True))
        if single is not None and double is not None:
            self._measure(sample.open, single.margins, double.margins)
        return every.get(way)

    def _measure(self, still: Any, single: Floats, double: Floats) -> None:
        """What float32 loses on margins, from the same boxes in both precisions."""
        clauses = [self.problem.rows.clause_margins(m) for m in (single, double)]
        with np.errstate(invalid="ignore"):
            gap = clauses[1] - clauses[0]
        gap = gap[still & np.isfinite(gap)]
        if len(gap):
            self.noise = max(0.0, float(np.quantile(gap, 0.9)))

    # -- reports ------------------------------------------------------------------------------

    def _report(self) -> None:
        now = time.monotonic()
        if now - self.said < 1.0:
            return
        self.said = now
        worst = self.list.worst()
        margin = -np.inf if worst is None else float(worst.margin[0])
        self.problem.say(
            f"boxes: {self.leaves} bounded, {self.list.count} open, "
            f"{100 * self.list.volume(self.frame):.3g} % of the volume, worst margin "
            f"{margin:.4g}, by {self.trials.way}"
        )

    def _findings(self, verdict: Verdict, reason: str) -> Findings:
        worst = self.list.worst()
        margin = self.proved if worst is None else min(self.proved, float(worst.margin[0]))
        hardest = ""
        if worst is not None and verdict is not Verdict.HOLDS:
            hardest = self.frame.words(worst.lower[0], worst.upper[0])
        rules = self.dimensions.gain / self.dimensions.weight
        shown: dict[str, Any] = {k: v for k, v in self.counts.items() if v}
        shown["rule"] = RULES[int(rules.argmax())]
        share = 0.0 if verdict is Verdict.HOLDS else min(1.0, self.list.volume(self.frame))
        trees: tuple[SplitTree, ...] = ()
        if verdict is Verdict.HOLDS and self.tree is not None and not self.tree.full:
            inputs = self.bounder.program(True).inputs
            trees = self.tree.finished(self.frame, list(inputs), margin)
        return Findings(verdict, margin, share, self.leaves, hardest, reason, trees, shown)

    def _stuck_words(self, boxes: Boxes) -> str:
        width = (boxes.upper - boxes.lower).max(axis=1, initial=0.0)
        worst = boxes.take(np.argsort(width)[:1])
        return (
            f"{self.frame.words(worst.lower[0], worst.upper[0])} is too small to split and its "
            f"margin {float(worst.margin[0]):.3g} still undecided"
        )


def _gains(before: Floats, settled: Settled) -> Floats:
    """Shares of the way to a proof that bounds made good since the parents' bounds."""
    after = settled.boxes.margin
    known = np.isfinite(before)
    scale = np.where(known & (before < 0), -before, 1.0)
    part = np.where(known, after - np.where(known, before, 0.0), 0.0) / scale
    gained = np.where(known, np.clip(part, 0.0, 1.0), np.isfinite(after))
    return np.where(settled.alive, gained, 1.0)
