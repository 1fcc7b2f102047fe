"""Complete search over substitutions: one position after the other is settled.

A sub-problem is again a region of substitutions: positions that are replaced for good, positions
that stay, and what is left of the budget. Linear bounds prove many of them; where few sequences are
left, each is bounded as a point, and one that is not proved is given to the model itself.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from certify.bounds.budget import OutOfTime
from certify.bounds.decide import Means, Question, decide
from certify.bounds.evaluate import evaluate
from certify.core.certificate import Verdict
from certify.core.region import Box, Region, Substitutions
from certify.core.region_substitutions import every_member
from certify.search.problem import Findings, Problem

_AT_ONCE = 64
_POINTS_AT_ONCE = 512
_FEW = 16384  # sequences of a sub-problem that are tried one by one
_COUNTED = 4  # substitutions, where members are counted


@dataclass
class _Search:
    """Sub-problems still open, a row each.

    Attributes:
        chosen: ``(N, L)``: -1 free, -2 stays, else the candidate that replaces the position.
        budget: ``(N,)`` positions that may still change.
    """

    problem: Problem
    region: Substitutions
    chosen: np.ndarray
    budget: np.ndarray
    worst: float = np.inf
    looked_at: int = 0

    def __post_init__(self) -> None:
        self._real = _real(self.region)

    def run(self) -> Findings:
        """Until nothing is open, something is violated, or time is up."""
        while len(self.budget):
            if time.monotonic() > self.problem.limits.deadline:
                return self._stopped(Verdict.TIMEOUT, "")
            chosen, budget = self.chosen[-_AT_ONCE:], self.budget[-_AT_ONCE:]
            self.chosen, self.budget = self.chosen[:-_AT_ONCE], self.budget[:-_AT_ONCE]
            answer = self._look(chosen, budget)
            if answer is not None:
                return answer
        return Findings(Verdict.HOLDS, self.worst, 0.0, self.looked_at)

    def _look(self, chosen: np.ndarray, budget: np.ndarray) -> Findings | None:
        """Prove sub-problems or split them."""
        few = _count(self.region, chosen, budget) <= _FEW
        for i in np.flatnonzero(few):
            here = slice(i, i + 1)
            answer = self._one_by_one(
                self._region(self._sequences(chosen[here]), chosen[here], budget[here]))
            if answer is not None:
                return answer
        chosen, budget = chosen[~few], budget[~few]
        if not len(budget):
            return None
        centres = self._sequences(chosen)
        proved = self._prove(self._region(centres, chosen, budget), "crown-ibp")
        chosen, budget, centres = chosen[~proved], budget[~proved], centres[~proved]
        if not len(budget):
            return None
        margins, gains = self._gains(centres)
        for i in np.flatnonzero(margins <= 0):
            if self.problem.suspect is not None and self.problem.suspect(centres[i].reshape(-1)):
                return self._stopped(Verdict.VIOLATED, "")
        gains = np.where((chosen == -1)[:, :, None] & self._real[None], gains, np.inf)
        position = gains.min(2).argmin(1)
        self._split(chosen, budget, position)
        return None

    def _split(self, chosen: np.ndarray, budget: np.ndarray, position: np.ndarray) -> None:
        """The position stays, or is replaced by one of its candidates."""
        every = np.arange(len(budget))
        for candidate in range(-1, self._real.shape[1]):
            here = every if candidate < 0 else every[self._real[position, candidate]]
            part = chosen[here].copy()
            part[np.arange(len(here)), position[here]] = -2 if candidate < 0 else candidate
            self.chosen = np.concatenate([self.chosen, part])
            self.budget = np.concatenate([self.budget, budget[here] - (candidate >= 0)])

    def _one_by_one(self, region: Substitutions) -> Findings | None:
        """Bound single sequences, many at once; the first that is not proved ends the search."""
        members, shape = every_member(region), self.problem.graph.input_shapes[0]
        while points := list(itertools.islice(members, _POINTS_AT_ONCE)):
            stacked = np.stack(points)
            for i in np.flatnonzero(~self._prove(Box(stacked, stacked).batched(shape), "ibp")):
                unsafe = self.problem.suspect is not None and self.problem.suspect(
                    points[i].reshape(-1))
                return self._stopped(
                    Verdict.VIOLATED if unsafe else Verdict.UNKNOWN,
                    "" if unsafe else "a single sequence is too close to call")
        return None

    def _prove(self, region: Region, method: str) -> np.ndarray:
        problem = self.problem
        rows = problem.rows
        bound = np.broadcast_to(rows.bound, (region.batch, rows.bound.shape[-1])).copy()
        means = Means(problem.semantics, problem.device, problem.limits)
        found = decide(problem.graph, Question(region, rows, bound), method, means)
        self.looked_at += region.batch
        margins = rows.clause_margins(np.nan_to_num(found.margins, nan=-np.inf)).min(axis=1)
        self.worst = min(self.worst, float(margins[found.proved].min(initial=np.inf)))
        return found.proved

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        candidates = np.asarray(self.region.candidates)[0]
        return np.asarray(self.region.center).reshape(len(candidates), -1), candidates

    def _sequences(self, chosen: np.ndarray) -> np.ndarray:
        """Sub-problems' sequences with nothing free replaced, ``(N, L, d)``."""
        center, candidates = self._arrays()
        picked = candidates[np.arange(len(center)), np.maximum(chosen, 0)]
        found: np.ndarray = np.where((chosen >= 0)[..., None], picked, center)
        return found

    def _region(self, centres: np.ndarray, chosen: np.ndarray, budget: np.ndarray
                ) -> Substitutions:
        _, candidates = self._arrays()
        free = (chosen == -1)[..., None, None]
        allowed = np.where(free, candidates[None], centres[:, :, None])
        return Substitutions(centres, allowed, budget).batched(self.problem.graph.input_shapes[0])

    def _gains(self, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Margins of sequences ``(N,)`` in plain floats, and how each candidate would change the
        worst row's value by its gradient, ``(N, L, C)``."""
        problem = self.problem
        shape = problem.graph.input_shapes[0]
        with torch.enable_grad():
            x = torch.from_numpy(centres.astype(np.float32)).reshape(-1, *shape).requires_grad_()
            values = evaluate(problem.graph, x).flatten(1)
            margins = self._margins(values)
            (gradient,) = torch.autograd.grad(margins.sum(), x)
        slope = gradient.numpy().reshape(centres.shape)
        _, candidates = self._arrays()
        moves = candidates[None] - centres[:, :, None]
        gains: np.ndarray = np.einsum("nld,nlcd->nlc", slope, moves)
        return margins.detach().numpy().astype(np.float64), gains

    def _margins(self, values: Tensor) -> Tensor:
        """The deciding margin of each sequence: the worst clause's best row."""
        rows = self.problem.rows
        y = torch.from_numpy(rows.y[0]).to(values.dtype)
        each = values @ y.reshape(len(y), -1).T - torch.from_numpy(rows.bound).to(values.dtype)
        group = torch.from_numpy(rows.group)
        clauses = [each[:, group == g].amax(1) for g in torch.unique(group)]
        return torch.stack(clauses, 1).amin(1)

    def _stopped(self, verdict: Verdict, reason: str) -> Findings:
        share = 0.0 if verdict is Verdict.VIOLATED else 1.0
        return Findings(verdict, -np.inf, share, self.looked_at, reason=reason)


def can_list(region: Region) -> bool:
    """Whether a region of one example has so few members that they are tried one by one at once."""
    if not isinstance(region, Substitutions):
        return False
    length = np.asarray(region.candidates).shape[1]
    return bool(_count(region, np.full((1, length), -1), np.asarray(region.budget))[0] <= _FEW)


def _count(region: Substitutions, chosen: np.ndarray, budget: np.ndarray) -> np.ndarray:
    """Members of sub-problems, ``(N,)``; for larger budgets than `_COUNTED`, no fewer."""
    options = ((chosen == -1) * _real(region).sum(1)).astype(np.float64)
    ways = np.zeros((len(chosen), _COUNTED + 1))  # by number of substitutions
    ways[:, 0] = 1.0
    for column in options.T:
        ways[:, 1:] += ways[:, :-1] * column[:, None]
    allowed = np.arange(_COUNTED + 1) <= np.asarray(budget)[:, None]
    found: np.ndarray = np.where(np.asarray(budget) <= _COUNTED, (ways * allowed).sum(1),
                                 np.exp(np.minimum(np.log1p(options).sum(1), 700.0)))
    return found


def _real(region: Substitutions) -> np.ndarray:
    """Candidates ``(L, C)`` that differ from what they replace."""
    candidates = np.asarray(region.candidates)[0]
    center = np.asarray(region.center).reshape(len(candidates), 1, -1)
    found: np.ndarray = (candidates != center).any(-1)
    return found


def split_substitutions(problem: Problem) -> Findings:
    """Decide a question over substitutions of one example."""
    region = problem.region
    if not isinstance(region, Substitutions):
        raise TypeError(f"{type(region).__name__} is not a region of substitutions")
    length = np.asarray(region.candidates).shape[1]
    chosen = np.full((1, length), -1)
    try:
        return _Search(problem, region, chosen, np.asarray(region.budget).astype(int)).run()
    except OutOfTime:
        return Findings(Verdict.TIMEOUT, -np.inf, 1.0, 0)
