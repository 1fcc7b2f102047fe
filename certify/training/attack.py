"""Projected gradient ascent inside a training step: on the graph, so that nothing of the model
moves.

Madry et al. 2018. Batch statistics, buffers and training flags stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.core.errors import BadInput


@dataclass(frozen=True)
class Ascent:
    """How an attack goes.

    Attributes:
        steps: gradient steps; 0 leaves the random start.
        step: length of a step, in parts of the box's half width.
        restarts: random starts; the worst point of all is kept.
        decay: factor on the step length after each of two thirds and five sixths of the steps.
        enlarge: the attack's box is this many times the one that is bounded (De Palma et al. 2023).
    """

    steps: int = 8
    step: float = 0.5
    restarts: int = 1
    decay: float = 0.1
    enlarge: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.restarts < 1 or self.step <= 0 or self.enlarge <= 0:
            raise BadInput(f"an attack needs steps >= 0, restarts >= 1, a step and an enlargement "
                           f"above 0; got {self}")


def ascend(
    loss: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor, how: Ascent,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Points of the boxes ``[lower, upper] (B, *shape)`` with a large loss; no gradient.

    Args:
        loss: points ``(B, *shape)`` to a loss per example ``(B,)``.
    """
    lower, upper = lower.detach(), upper.detach()
    half = (upper - lower) / 2
    best = torch.full((len(lower),), -torch.inf, device=lower.device, dtype=lower.dtype)
    kept = (lower + upper) / 2
    for _ in range(how.restarts):
        start = torch.rand(lower.shape, generator=generator, device=lower.device, dtype=lower.dtype)
        x = lower + start * (upper - lower)
        rate = how.step
        for k in range(how.steps):
            x.requires_grad_(True)
            [slope] = torch.autograd.grad(loss(x).sum(), x)
            x = (x.detach() + rate * half * slope.sign()).clamp(lower, upper)
            if k + 1 in (2 * how.steps // 3, 5 * how.steps // 6):
                rate *= how.decay
        if how.restarts == 1:
            return x.detach()
        with torch.no_grad():
            found = loss(x)
        better = found > best
        best = torch.where(better, found, best)
        kept = torch.where(better.view(-1, *[1] * (x.dim() - 1)), x.detach(), kept)
    return kept
