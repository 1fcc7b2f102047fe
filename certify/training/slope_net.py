"""Predictor-verifier training: a second network proposes the slopes of the relaxations.

Dvijotham et al. 2018 ("Training verified learners with learned verifiers"): bounds hold for any
slopes, so both networks simply minimise the bounded loss; no inner optimisation is needed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from certify.training.bounder import Analysis


class SlopeNet(nn.Module):
    """From an input to a slope per neuron: a constant one, and a correction of low rank.

    Its layers are made at the first call, when the network's nonlinear steps are known.
    """

    def __init__(self, rank: int = 16) -> None:
        super().__init__()
        self.rank = rank
        self.encode: nn.Linear | None = None
        self.heads = nn.ModuleDict()

    def prepare(self, x: Tensor, found: Analysis) -> None:
        """Make the layers; the optimiser must be given the parameters after this."""
        self.encode = nn.Linear(math.prod(x.shape[1:]), self.rank).to(x)
        for step, _ in found.activations():
            if step.curve.slopes is not None:
                ranges = step.curve.slopes(step.site, *step.operands(found.state.bounds))
                for k in range(len(ranges)):
                    head = nn.Linear(self.rank, math.prod(step.site.shape)).to(x)
                    nn.init.zeros_(head.weight)
                    nn.init.zeros_(head.bias)
                    self.heads[f"{step.index}_{k}"] = head

    def forward(self, x: Tensor, found: Analysis) -> dict[int, tuple[Tensor, ...]]:
        """Slopes by step, each ``(B, 1, *shape)`` and within its range."""
        if self.encode is None:
            self.prepare(x, found)
        if self.encode is None:
            raise AssertionError("prepared above")
        code = torch.tanh(self.encode(x.flatten(1)))
        slopes: dict[int, tuple[Tensor, ...]] = {}
        for step, _ in found.activations():
            if step.curve.slopes is None:
                continue
            ranges = step.curve.slopes(step.site, *step.operands(found.state.bounds))
            slopes[step.index] = tuple(
                self._slope(code, f"{step.index}_{k}", r, step.site.shape)
                for k, r in enumerate(ranges))
        return slopes

    def _slope(self, code: Tensor, name: str, allowed: Any, shape: tuple[int, ...]) -> Tensor:
        share = torch.sigmoid(self.heads[name](code)).view(len(code), 1, *shape)
        found: Tensor = allowed.low + share * (allowed.high - allowed.low)
        return found
