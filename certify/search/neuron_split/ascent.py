"""Slopes, multipliers and row weights of a batch of sub-problems, improved together.

Projected Adam (Kingma and Ba 2015) on the sum of all margins, which are independent of each other;
the best of every sub-problem is kept, and what is refuted leaves the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certify.bounds.crown import State
from certify.core.region import Product, Region
from certify.ops.record import Interval
from certify.search.neuron_split.bounding import Known, Variables, opened, searched
from certify.search.neuron_split.domains import Domains
from certify.search.neuron_split.root import Chooser, Root

_NOISE = 1e-6  # gradients below this share of the largest count as zero
_CHECK = 4  # iterations between looks at what is refuted
_SHRINK = 0.75  # share of a batch that is left when it is worth copying it into a smaller one


@dataclass(frozen=True)
class Pace:
    """Settings.

    Attributes:
        iterations: gradient steps.
        slopes, multipliers, weights: first steps, as shares of the range, of the scale and of 1.
        decay: factor on all of them per iteration.
        enough: relative margin in plain floats that will survive the proof.
    """

    iterations: int = 12
    slopes: float = 0.15
    multipliers: float = 0.15
    weights: float = 0.1
    decay: float = 0.95
    enough: float = 1e-5


class _Group:
    """One variable tensor ``(N, k)`` with Adam's moments, its range, and what a step of 1 means."""

    def __init__(
        self, value: Tensor, rate: float, low: Tensor, high: Tensor, reach: Tensor
    ) -> None:
        self.value = value.clone().requires_grad_()
        self.best = value.clone()
        self.rate, self.low, self.high, self.reach = rate, low, high, reach
        self.first, self.second = torch.zeros_like(value), torch.zeros_like(value)

    def step(self, gradient: Tensor, factor: float, count: int) -> None:
        """One step uphill, the ``count``-th."""
        self.first.lerp_(gradient, 0.1)
        self.second.lerp_(gradient * gradient, 0.001)
        scale = (self.second / (1 - 0.999**count)).sqrt_()
        # Relative, or rounding noise in a gradient that is zero would become a full step.
        scale = scale + scale.amax(-1, keepdim=True) * _NOISE + 1e-30
        move = self.first / (1 - 0.9**count) / scale * (self.rate * factor)
        value = torch.addcmul(self.value.detach(), move, self.reach)
        self.value = value.maximum(self.low).minimum(self.high).requires_grad_()

    def take(self, index: Tensor) -> None:
        """Keep some sub-problems."""
        for name in ("best", "first", "second", "low", "high", "reach"):
            setattr(self, name, getattr(self, name)[index])
        self.value = self.value.detach()[index].requires_grad_()


def improved(
    root: Root, domains: Domains, pace: Pace, known: Known | None = None
) -> tuple[Domains, Tensor]:
    """Sub-problems with better slopes, multipliers and weights, and their margins in plain floats.

    Raises:
        OutOfTime: the deadline passed.
    """
    with torch.no_grad():
        state, empty = opened(root, domains, known, rigorous=False)
    run = _Ascent(root, domains, state, pace)
    with torch.enable_grad():
        run.go()
    margin = torch.where(empty, torch.inf, run.margin)
    done = replace(domains, slopes=run.slopes, beta=run.beta, weight=run.weight)
    return done, margin


class _Ascent:
    """One batch in progress; results are collected at the places of the whole batch."""

    def __init__(self, root: Root, domains: Domains, state: State, pace: Pace) -> None:
        self.root, self.domains, self.state, self.pace = root, domains, state, pace
        like = state.program.dtype
        self.chooser = Chooser(state, root.layout, len(domains))
        self.slopes = self.chooser.inside(domains.slopes)
        self.beta, self.weight = domains.beta.to(like).clone(), domains.weight.to(like).clone()
        self.margin = self.beta.new_full((len(domains),), -torch.inf)
        self.place = torch.arange(len(domains), device=self.margin.device)
        low, high, scale = self.chooser.low, self.chooser.high, domains.scale.to(like)
        used = root.clauses.used[domains.clause].to(like)
        nothing, endless = torch.zeros_like, torch.full_like
        self.groups = [
            _Group(self.slopes, pace.slopes, low, high, high - low),
            _Group(self.beta, pace.multipliers, nothing(scale), endless(scale, torch.inf), scale),
            _Group(self.weight, pace.weights, nothing(used), used, used),
        ]
        self.best = self.margin.clone()

    def go(self) -> None:
        """All iterations."""
        factor = 1.0
        for iteration in range(self.pace.iterations + 1):
            chosen = Variables(*(g.value for g in self.groups))
            values = searched(self.root, self.state, self.chooser, self.domains, chosen)
            self._keep(values.detach())
            if iteration == self.pace.iterations or not values.requires_grad:
                break
            self._ascend(values, factor, iteration + 1)
            factor *= self.pace.decay
            if iteration % _CHECK == 0 and not self._shrunk():
                return
        self._collect()

    def _keep(self, values: Tensor) -> None:
        better = values > self.best
        for group in self.groups:
            group.best = torch.where(better[:, None], group.value.detach(), group.best)
        self.best = torch.where(better, values, self.best)

    def _ascend(self, values: Tensor, factor: float, count: int) -> None:
        finite = torch.where(values.isfinite(), values, torch.zeros_like(values))
        variables = [g.value for g in self.groups]
        gradients = torch.autograd.grad(finite.sum(), variables, allow_unused=True)
        for group, gradient in zip(self.groups, gradients, strict=True):
            if gradient is not None and gradient.numel():
                group.step(gradient.nan_to_num(0.0, 0.0, 0.0), factor, count)

    def _shrunk(self) -> bool:
        """Drop what is refuted; whether anything is left."""
        threshold = self.root.clauses.threshold(self.domains.clause, self.groups[2].best)
        left = ~(self.best > self.pace.enough * (1 + threshold.abs()))
        count = int(left.sum())
        if count > _SHRINK * len(left):
            return True
        self._collect()
        if not count:
            return False
        index = left.nonzero()[:, 0]
        self.place, self.best = self.place[index], self.best[index]
        self.domains = self.domains.take(index)
        for group in self.groups:
            group.take(index)
        self.state = taken(self.state, index)
        self.chooser = Chooser(self.state, self.root.layout, count)
        return True

    def _collect(self) -> None:
        """Write the best so far to its places."""
        for whole, group in zip((self.slopes, self.beta, self.weight), self.groups, strict=True):
            whole[self.place] = group.best
        self.margin[self.place] = self.best


def taken(state: State, index: Tensor) -> State:
    """Some sub-problems of a state."""

    def cut(box: Interval | None) -> Interval | None:
        return None if box is None else Interval(box.lower[index], box.upper[index])

    bounds = [cut(box) for box in state.bounds]
    region = state.region
    if _batched(region):
        region = region.rows(index.cpu().numpy() if not _tensors(region) else index)
    return State(state.program, region, state.semantics, state.limits, bounds)


def _batched(region: Region) -> bool:
    return region.batch > 1


def _tensors(region: Region) -> bool:
    part = region.parts[0] if isinstance(region, Product) else region
    return isinstance(getattr(part, part.cut_axis[0]), Tensor)


def pieces(count: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size``."""
    return (slice(i, min(count, i + size)) for i in range(0, count, size))
