"""Step rules of the attack: how a batch of points moves, given gradients.

Boxes: half of the points take signed steps with momentum (Dong et al. 2018, arXiv:1710.06081), half
Adam steps (Kingma and Ba 2015) scaled to the box. Other regions: half go towards the minimiser of
the linearised loss (Frank and Wolfe 1956), half follow the normalised gradient and are projected.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from certify.search.space import Space

_MOMENTUM, _SECOND = 0.75, 0.99
_FIRST_STEP, _LAST_STEP = 0.5, 0.004  # of half the width


@dataclass
class Descent:
    """The moving averages of one round, ``(N, n)``. Local to the round."""

    space: Space
    steps: int
    mean: Tensor
    square: Tensor
    taken: int = 0

    @classmethod
    def begin(cls, space: Space, x: Tensor, steps: int) -> Descent:
        """Nothing has moved yet."""
        return cls(space, steps, torch.zeros_like(x), torch.zeros_like(x))

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The next points, inside the region."""
        self.taken += 1
        size = gradient.abs().mean(1, keepdim=True)
        unit = gradient / size.clamp(min=torch.finfo(x.dtype).tiny)
        self.mean = _MOMENTUM * self.mean + (1 - _MOMENTUM) * unit
        self.square = _SECOND * self.square + (1 - _SECOND) * unit * unit
        share = (self.taken - 1) / max(1, self.steps - 1)
        rate = _FIRST_STEP * (_LAST_STEP / _FIRST_STEP) ** share
        even = (torch.arange(len(x), device=x.device) % 2 == 0)[:, None]
        move = self._box_move(even, rate) if self.space.box else self._move(x, unit, even, rate)
        return self.space.project(x + move)

    def _box_move(self, even: Tensor, rate: float) -> Tensor:
        mean = self.mean / (1 - _MOMENTUM**self.taken)
        root = (self.square / (1 - _SECOND**self.taken)).sqrt()
        adam = mean / (root + 1e-8)
        return -rate * self.space.half * torch.where(even, mean.sign(), adam.clamp(-2, 2))

    def _move(self, x: Tensor, unit: Tensor, even: Tensor, rate: float) -> Tensor:
        towards = (self.space.minimiser(unit) - x) * (2 / (self.taken + 1))
        length = self.mean.norm(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        along = -2 * rate * self.space.half.amax() * self.mean / length
        return torch.where(even, towards, along)
