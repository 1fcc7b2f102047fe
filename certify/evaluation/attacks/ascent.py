"""Two ways up: plain projected steps, and APGD, which chooses its step length itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from certify.core.region import L1, L2, Region
from certify.evaluation.attacks.arena import Arena, Loss, margins

_MOMENTUM = 0.75
_SHARE = 0.05  # of the inputs that one step in the l1 norm changes
_FIRST, _SHRINK, _SHORTEST = 0.22, 0.03, 0.06  # checkpoints of APGD, as shares of all steps
_RISES = 0.75  # of the steps between two checkpoints that must have helped


@dataclass
class Record:
    """The best point of each example so far. Local to one attack.

    Attributes:
        point: ``(B, *shape)``.
        margin: its margin ``(B,)``, see `certify.evaluation.attacks.arena.margins`.
    """

    point: Tensor
    margin: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.margin = self.point.new_full((len(self.point),), torch.inf)

    def note(self, x: Tensor, found: Tensor) -> None:
        """Look at points ``(B, N, *shape)`` with margins ``(B, N)``."""
        least, at = found.min(1)
        better = least < self.margin
        rows = torch.arange(len(x), device=x.device)
        wide = better.reshape(-1, *(1,) * (self.point.dim() - 1))
        self.point = torch.where(wide, x[rows, at], self.point)
        self.margin = torch.where(better, least, self.margin)

    @property
    def done(self) -> bool:
        """All examples are misclassified."""
        return bool((self.margin <= 0).all())


def steepest(region: Region, gradient: Tensor) -> Tensor:
    """Directions of unit length in the region's norm along which a linear function grows most.

    For l1 a share of the inputs moves, not one alone (Croce and Hein 2021, arXiv:2103.01208).
    """
    flat = gradient.flatten(2)
    if isinstance(region, L2):
        length = flat.norm(dim=2, keepdim=True)
        unit: Tensor = flat / length.clamp(min=torch.finfo(flat.dtype).tiny)
        return unit.reshape(gradient.shape)
    if isinstance(region, L1):
        count = max(1, round(_SHARE * flat.shape[2]))
        floor = flat.abs().topk(count, dim=2).values[..., -1:]
        return (flat.sign() * (flat.abs() >= floor) / count).reshape(gradient.shape)
    return torch.sign(gradient)


def pgd(arena: Arena, x: Tensor, loss: Loss, steps: int, eps: float) -> Record:
    """Projected steps with momentum, from eps down to a hundredth of it (Madry et al. 2018)."""
    record = Record(arena.centre()[:, 0])
    mean = torch.zeros_like(x)
    for step in range(steps):
        gradient, _, scores = arena.climb(x, loss)
        record.note(x, margins(scores, arena.labels))
        if record.done:
            return record
        size = gradient.abs().flatten(2).mean(2).clamp(min=torch.finfo(x.dtype).tiny)
        mean = _MOMENTUM * mean + gradient / size.reshape(*size.shape, *(1,) * (x.dim() - 2))
        length = eps * 0.01 ** (step / max(1, steps - 1))
        x = arena.region.project(x + length * steepest(arena.region, mean))
    record.note(x, margins(arena.scores(x), arena.labels))
    return record


def apgd(arena: Arena, x: Tensor, loss: Loss, steps: int, eps: float) -> Record:
    """Auto-PGD (Croce and Hein 2020, arXiv:2003.01690, algorithm 1)."""
    record = Record(arena.centre()[:, 0])
    walk = _Walk.begin(arena, x, loss, record, 2 * eps)
    checkpoints = _checkpoints(steps)
    for step in range(1, steps + 1):
        if record.done:
            break
        walk.step(record)
        if step in checkpoints:
            walk.check(checkpoints[step])
    return record


def _checkpoints(steps: int) -> dict[int, int]:
    """Steps at which the step length is looked at, each with the steps since the last one."""
    found, before, at, length = {}, 0, _FIRST, _FIRST
    while at < 1:
        step = max(before + 1, round(at * steps))
        found[step] = step - before
        before, length = step, max(length - _SHRINK, _SHORTEST)
        at += length
    return found


@dataclass
class _Walk:
    """All points of one APGD run, ``(B, N, *shape)``. Local to the run."""

    arena: Arena
    loss: Loss
    x: Tensor
    last: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    value: Tensor
    best_value: Tensor
    length: Tensor
    rises: Tensor
    halved: Tensor
    value_then: Tensor

    @classmethod
    def begin(cls, arena: Arena, x: Tensor, loss: Loss, record: Record, length: float) -> _Walk:
        x = arena.region.project(x)
        gradient, value, scores = arena.climb(x, loss)
        record.note(x, margins(scores, arena.labels))
        none = torch.zeros_like(value)
        return cls(arena, loss, x, x, gradient, x, gradient, value, value, none + length, none,
                   none.bool(), value)

    def step(self, record: Record) -> None:
        """One move with momentum."""
        region, share = self.arena.region, _MOMENTUM
        up = region.project(self.x + self._wide(self.length) * steepest(region, self.gradient))
        new = self.x + share * (up - self.x) + (1 - share) * (self.x - self.last)
        self.last, self.x = self.x, region.project(new)
        self.gradient, value, scores = self.arena.climb(self.x, self.loss)
        record.note(self.x, margins(scores, self.arena.labels))
        self.rises = self.rises + (value > self.value)
        self.value = value
        better = value > self.best_value
        wide = self._wide(better)
        self.best = torch.where(wide, self.x, self.best)
        self.best_gradient = torch.where(wide, self.gradient, self.best_gradient)
        self.best_value = torch.where(better, value, self.best_value)

    def check(self, steps: int) -> None:
        """Halve the step, from the best point on, where too few of the last steps helped."""
        few = self.rises < _RISES * steps
        stuck = ~self.halved & (self.best_value <= self.value_then)
        halve = few | stuck
        wide = self._wide(halve)
        self.length = torch.where(halve, self.length / 2, self.length)
        self.x = torch.where(wide, self.best, self.x)
        self.last = torch.where(wide, self.best, self.last)
        self.gradient = torch.where(wide, self.best_gradient, self.gradient)
        self.value = torch.where(halve, self.best_value, self.value)
        self.rises = torch.zeros_like(self.rises)
        self.halved, self.value_then = halve, self.best_value

    def _wide(self, v: Tensor) -> Tensor:
        return v.reshape(*v.shape, *(1,) * (self.x.dim() - 2))
