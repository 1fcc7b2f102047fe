"""Branch and bound over the pieces of nonlinearities (beta-CROWN, Wang et al. 2021).

Each round takes the sub-problems with the worst margins, splits each at one element of one
nonlinearity's operand, and bounds both children with slopes and multipliers of their own, searched
in plain float32 and then proved in float64 with all rounding accounted for. Both children share the
splitting point, so they always cover their parent.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from certify.bounds.budget import OutOfTime
from certify.bounds.selftest import check_arithmetic
from certify.core.certificate import Verdict
from certify.core.graph import Graph
from certify.ops.record import Interval
from certify.search.neuron_split.anatomy import taken_apart
from certify.search.neuron_split.ascent import Pace, improved, pieces
from certify.search.neuron_split.bounding import Known, opened, proved, tightened
from certify.search.neuron_split.branching import offers
from certify.search.neuron_split.children import best_halves
from certify.search.neuron_split.domains import NONE, Domains, Open
from certify.search.neuron_split.hunt import Hunt
from certify.search.neuron_split.polish import polished
from certify.search.neuron_split.root import Chooser, Root, prepare_root
from certify.search.neuron_split.tree import Forest, Leaves
from certify.search.problem import Findings, Problem

_RESERVE = (0.2, 0.05)  # seconds, and share of the time left, kept for the answer
_ROUND = 2.0  # seconds a round may take
_CHEAPER = 0.8  # of the last round's seconds per sub-problem
_LONGEST = 0.2  # share of the time left that a round may take
_LARGEST = 1024  # sub-problems in a round
_COPIES = 40  # tensors of the largest size alive at once per sub-problem
_CHOICES = 3  # splits tried by each of both estimates

_SMALL = 160  # inputs and elements before nonlinearities; below, more work on each part pays
_ROOT = Pace(iterations=40)


# Sub-problems that cover the region, in batches of at most a size.
Start = Callable[[Root, int], Iterator[Domains]]


def split_neurons(problem: Problem, start: Start | None = None) -> Findings:
    """Decide a problem by splitting the operands of nonlinearities.

    Args:
        start: where to begin instead of at the whole region; no trees are kept then.

    Returns:
        See `Findings`. ``open_share`` counts halves of halves, averaged over the clauses.

    Raises:
        BrokenArithmetic: this machine's arithmetic cannot carry a proof.
    """
    check_arithmetic(problem.device)
    left = problem.limits.remaining()
    deadline = problem.limits.deadline - min(_RESERVE[0], _RESERVE[1] * max(0.0, left))
    limits = replace(problem.limits, deadline=deadline)
    try:
        root = prepare_root(problem, limits)
    except OutOfTime:
        return Findings(Verdict.TIMEOUT, -np.inf, 1.0, reason="the time limit passed")
    return _Search(root, start).run()


class _Search:
    """One search in progress.

    Attributes:
        current: sub-problems taken off the list and not dealt with yet.
        proved: the smallest margin by which anything was refuted.
        stuck: a sub-problem that offers nothing to split.
    """

    def __init__(self, root: Root, start: Start | None) -> None:
        self.root, self.problem, self.start = root, root.problem, start
        self.list = Open()
        self.hunt = Hunt(root)
        self.current: Domains | None = None
        self.stuck: Domains | None = None
        self.forest: Forest | None = None
        if start is None:
            self.forest = Forest(root.layout, root.clauses.used.sum(1).tolist())
        self.proved, self.violated = np.inf, False
        self.leaves, self.size, self.said = 0, 4, time.monotonic()
        self.each = np.inf  # seconds a sub-problem took in the last round
        self.pace = Pace()
        program = root.fast
        wide = (*root.operands, *program.inputs)
        self.small = sum(math.prod(program.shape(i)) for i in wide) <= _SMALL
        self.counts: Counter[str] = Counter()

    def run(self) -> Findings:
        """Until everything is decided, or no time is left."""
        try:
            self._first()
            while self.list.count and not self.violated and self.stuck is None:
                self.root.limits.check()
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

    # -- one round ----------------------------------------------------------------------------

    def _first(self) -> None:
        """The whole region, one sub-problem per clause; or where a proof is resumed."""
        if self.start is not None:
            self._resume(self.start)
            return
        every = self._whole()
        self.current = every
        parts = [self._bounded(every.take(p), _ROOT) for p in pieces(len(every), self._most())]
        self.current = None
        for part in parts:
            self._settle(part)

    def _resume(self, start: Start) -> None:
        """What the sub-problems' own slopes and multipliers do not refute is bounded anew."""
        for part in start(self.root, self._most()):
            self.root.limits.check()
            self.leaves += len(part)
            with torch.no_grad():
                known = tightened(self.root, part) if self.small else None
                done = replace(part, margin=proved(self.root, part, known))
            gone = self.root.clauses.refuted(done.clause, done.margin)
            self._settle(done.take(gone))
            if not bool(gone.all()):
                self._settle(self._bounded(done.take(~gone), self.pace))

    def _whole(self) -> Domains:
        root, clauses = self.root, self.root.clauses
        count, device = len(clauses), root.fast.device
        numbers = torch.arange(count, device=device)
        weight = clauses.used.float() / clauses.used.sum(1, keepdim=True)
        none = torch.zeros(count, 0, device=device)
        whole = torch.zeros(count, 0, dtype=torch.int64, device=device)
        slopes = torch.full((count, root.layout.size), torch.nan, device=device)
        worst = torch.full((count,), -torch.inf, dtype=torch.float64, device=device)
        zero = torch.zeros_like(numbers)
        return Domains(
            numbers,
            weight,
            whole,
            whole,
            none.double(),
            whole,
            none,
            none,
            slopes,
            worst,
            zero,
            zero,
        )

    def _round(self) -> None:
        domains = self.current = self.list.pop(self._batch())
        started = time.perf_counter()
        with torch.no_grad():
            state, _ = opened(self.root, domains, rigorous=False)
            anatomy = taken_apart(self.root, state, domains)
            if self.hunt.found(anatomy, domains):
                self.violated = True
                return
            found = offers(self.root, anatomy, _CHOICES)
            possible = (found.step >= 0).any(1)
            if not bool(possible.all()):
                self.stuck = domains.take(~possible)
                return
            children = best_halves(self.root, domains, found, self._most(), state)
        children = self._grown(domains, children)
        bounded = self._bounded(children, self.pace)
        self._settle(bounded)
        self.current = None
        self._learn(len(domains), time.perf_counter() - started)

    def _grown(self, domains: Domains, children: Domains) -> Domains:
        """Children with their places in the tree."""
        if self.forest is None:
            return children
        if self.forest.full:
            self.forest = None
            return children
        count = len(domains)
        last = (children.depth[:count] - 1)[:, None]
        step, element, point = (
            getattr(children, n)[:count].gather(1, last)[:, 0].tolist()
            for n in ("step", "element", "point")
        )
        first = [
            self.forest.split(*split)
            for split in zip(
                domains.clause.tolist(), domains.node.tolist(), step, element, point, strict=True
            )
        ]
        node = torch.tensor(first, device=domains.node.device)
        return replace(children, node=torch.cat([node, node + 1]))

    def _bounded(self, domains: Domains, pace: Pace) -> Domains:
        """The sub-problems with better slopes and multipliers, and with proved margins."""
        with torch.no_grad():
            known = tightened(self.root, domains) if self.small else None
        better, _ = improved(self.root, domains, pace, known)
        self.leaves += len(domains)
        margin = proved(self.root, better, known)
        better, margin = self._polished(better, margin, known)
        return replace(better, margin=margin.maximum(domains.margin))

    def _polished(
        self, domains: Domains, margin: Tensor, known: Known | None
    ) -> tuple[Domains, Tensor]:
        """Multipliers from linear programs for what is open in small networks."""
        left = ~self.root.clauses.refuted(domains.clause, margin) & (domains.depth > 0)
        if known is None or not self.root.box or not bool(left.any()):
            return domains, margin
        index = left.nonzero()[:, 0]
        some = [None if k is None else Interval(*(t[index] for t in k)) for k in known]
        tried = polished(self.root, domains.take(index), some)
        again = proved(self.root, tried, some)
        self.counts["linear programs"] += len(index)
        better = again > margin[index]
        beta = domains.beta.clone()
        beta[index] = torch.where(better[:, None], tried.beta, beta[index])
        return replace(domains, beta=beta), margin.index_copy(
            0, index, again.maximum(margin[index])
        )

    def _settle(self, domains: Domains) -> None:
        """Refuted sub-problems become leaves, the others stay open."""
        gone = self.root.clauses.refuted(domains.clause, domains.margin)
        if bool(gone.any()):
            leaves = domains.take(gone)
            self.proved = min(self.proved, float(leaves.margin.min()))
            self._close(leaves)
        if not bool(gone.all()):
            self.list.push(domains.take(~gone))

    def _close(self, leaves: Domains) -> None:
        if self.forest is None:
            return
        shares = self._shares(leaves) if self.forest.slopes else None
        arrays = (
            getattr(leaves, n).cpu().numpy()
            for n in ("clause", "node", "depth", "margin", "beta", "weight")
        )
        clause, node, depth, margin, beta, weight = arrays
        numbers = beta.astype(np.float32), weight.astype(np.float32)
        self.forest.close(Leaves(clause, node, depth, margin, *numbers, shares))

    def _shares(self, leaves: Domains) -> np.ndarray:
        """Slopes ``(N, M)`` as shares of their ranges, in 255ths."""
        with torch.no_grad():
            state, _ = opened(self.root, leaves, rigorous=False)
            chooser = Chooser(state, self.root.layout, len(leaves))
            share = (chooser.inside(leaves.slopes) - chooser.low) / (chooser.high - chooser.low)
            return (255 * share).nan_to_num(0.0, 0.0, 0.0).round().byte().cpu().numpy()

    # -- pace ---------------------------------------------------------------------------------

    def _most(self) -> int:
        """Sub-problems that fit into the memory at once."""
        program = self.root.fast
        bytes_each = _COPIES * max(program.largest, 1) * 4 + 16 * self.root.layout.size
        return max(2, min(4 * _LARGEST, int(self.root.limits.memory // bytes_each)))

    def _batch(self) -> int:
        return max(1, min(self.size, self._most() // 2))

    def _learn(self, count: int, seconds: float) -> None:
        """Larger rounds while they are short, or while that makes each sub-problem cheaper."""
        left = max(0.1, self.root.limits.remaining())
        each = seconds / count
        cheaper = each < _CHEAPER * self.each and seconds < _LONGEST * left
        if seconds <= min(_ROUND, 0.1 * left) or cheaper:
            self.size = min(_LARGEST, max(self.size, 2 * count))
        else:
            self.size = max(2, int(count * max(0.5, min(_ROUND, 0.1 * left) / seconds)))
        self.each = each

    # -- reports ------------------------------------------------------------------------------

    def _report(self) -> None:
        now = time.monotonic()
        if now - self.said < 1.0:
            return
        self.said = now
        worst = self.list.worst()
        margin = self.proved if worst is None else float(worst.margin[0])
        share = 100 * self.list.share(len(self.root.clauses))
        self.problem.say(
            f"splits: {self.leaves} sub-problems bounded, {self.list.count} open, {share:.3g} % "
            f"left, worst margin {margin:.4g}"
        )

    def _findings(self, verdict: Verdict, reason: str) -> Findings:
        worst = self.list.worst()
        margin = self.proved if worst is None else min(self.proved, float(worst.margin[0]))
        hardest = "" if worst is None or verdict is Verdict.HOLDS else self._words(worst)
        share = 0.0 if verdict is Verdict.HOLDS else self.list.share(len(self.root.clauses))
        kept = verdict is Verdict.HOLDS and self.forest is not None and not self.forest.full
        trees = self.forest.finished() if kept and self.forest is not None else ()
        return Findings(
            verdict,
            margin,
            min(1.0, share),
            self.leaves,
            hardest,
            reason,
            trees,
            dict(self.counts),
        )

    def _words(self, domains: Domains) -> str:
        """One sub-problem in words."""
        return in_words(self.problem.graph, domains)

    def _stuck_words(self, domains: Domains) -> str:
        return (
            f"{self._words(domains)}: nothing is left to split and the margin "
            f"{float(domains.margin[0]):.3g} is still undecided"
        )


_SHOWN = 3


def in_words(graph: Graph, domains: Domains) -> str:
    """The first of some sub-problems in words."""
    found = []
    used = int((domains.step[0] != NONE).sum())
    for k in range(min(_SHOWN, used)):
        node = graph.nodes[int(domains.step[0, k])].name
        sign = ">=" if int(domains.side[0, k]) > 0 else "<="
        found.append(
            f"{node}[{int(domains.element[0, k])}] {sign} {float(domains.point[0, k]):.6g}"
        )
    more = f" and {used - _SHOWN} more splits" if used > _SHOWN else ""
    where = " and ".join(found) if found else "the whole region"
    return (
        f"clause {int(domains.clause[0])} where {where}{more}"
        if found
        else (f"clause {int(domains.clause[0])} on {where}")
    )
