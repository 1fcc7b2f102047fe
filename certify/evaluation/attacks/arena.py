"""Where attacks take place: a network, regions around many images, their labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.core.region import Region
from certify.search.surrogate import Surrogate

Loss = Callable[[Tensor, slice], Tensor]
"""Scores ``(b, N, K)`` of the examples of a slice -> what is to grow, ``(b, N)``."""


@dataclass(frozen=True, eq=False)
class Arena:
    """A network and B examples; points are ``(B, N, *shape)``, N for each example.

    Attributes:
        model: gives scores in the order of the outputs, before any softmax.
        region: batched, B examples.
        labels: ``(B,)``.
        memory: bytes that intermediate results of one batch may take.
        seed: of all random choices.
    """

    model: Surrogate
    region: Region
    labels: Tensor
    memory: int = 2**28
    seed: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return self.model.program.shape(self.model.program.inputs[0])

    def random(self, salt: int) -> torch.Generator:
        """A stream of its own for each use."""
        return torch.Generator().manual_seed(1_000_003 * self.seed + salt)

    def like(self, x: Tensor) -> Tensor:
        """``x`` in the network's precision and on its device."""
        return x.to(self.model.program.device, self.model.program.dtype)

    def centre(self) -> Tensor:
        """The images themselves, ``(B, 1, *shape)``, where they lie in their regions."""
        lower, upper = (torch.as_tensor(e) for e in self.region.ends())
        found: Tensor = self.region.project(self.like(0.5 * lower + 0.5 * upper).unsqueeze(1))
        return found

    def sample(self, count: int, salt: int) -> Tensor:
        """``count`` points of each region."""
        found: Tensor = self.region.sample(max(2, count), self.random(salt))
        return self.like(found[:, -count:])

    def scores(self, x: Tensor) -> Tensor:
        """``(B, N, K)``."""
        with torch.no_grad():
            parts = torch.split(x.flatten(0, 1), self._chunk())
            scores = torch.cat([self.model.run((part,))[1] for part in parts])
        return scores.reshape(*x.shape[:2], -1)

    def climb(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients ``(B, N, *shape)`` of a loss, its values ``(B, N)``, and the scores."""
        count = max(1, self._chunk() // x.shape[1])
        found = [self._part(x, loss, slice(i, i + count)) for i in range(0, len(x), count)]
        gradients, values, scores = zip(*found, strict=True)
        return torch.cat(gradients), torch.cat(values), torch.cat(scores)

    def _part(self, x: Tensor, loss: Loss, at: slice) -> tuple[Tensor, Tensor, Tensor]:
        flat = x[at].flatten(0, 1).detach().requires_grad_(True)
        with torch.enable_grad():
            own = self.model.run((flat,))[1].reshape(*x[at].shape[:2], -1)
            values = loss(own, at)
            (gradient,) = torch.autograd.grad(values.sum(), flat)
        return gradient.nan_to_num(0, 0, 0).reshape(x[at].shape), values.detach(), own.detach()

    def rows(self, index: Tensor) -> Arena:
        """Some of the examples."""
        return Arena(self.model, self.region.rows(index.cpu().numpy()),
                     self.labels[index.to(self.labels.device)], self.memory, self.seed)

    def _chunk(self) -> int:
        """Points at once, so that all intermediate results and their gradients fit the memory."""
        program = self.model.program
        elements = max(1, sum(math.prod(node.shape) for node in program.graph.nodes))
        return max(1, self.memory // (2 * program.dtype.itemsize * elements))


def margins(scores: Tensor, labels: Tensor) -> Tensor:
    """Score of the label minus the best other score, ``(B, N)``; at most 0 is a misclassification.

    Args:
        scores: ``(B, N, K)``.
        labels: ``(B,)``.
    """
    at = labels.reshape(-1, 1, 1).expand(*scores.shape[:2], 1)
    others = scores.scatter(2, at, -torch.inf).amax(2)
    return scores.gather(2, at)[..., 0] - others
