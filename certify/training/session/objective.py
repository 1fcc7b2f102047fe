"""The loss of a training step, for every method a recipe can name.

References by method: Gowal et al. 2018 (arXiv:1810.12715, IBP), Zhang et al. 2020
(arXiv:1906.06316, CROWN-IBP), Mueller et al. 2023 (arXiv:2210.04871, SABR), De Palma et al. 2024
(arXiv:2305.13991, CC-, MTL- and Exp-IBP), Madry et al. 2018 (arXiv:1706.06083, PGD).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certify.bounds.alpha import Alpha
from certify.bounds.budget import Limits
from certify.bounds.methods import METHODS, analyse, lower_rows
from certify.bounds.program import prepare
from certify.core.graph import Graph
from certify.core.region import Box
from certify.core.semantics import Semantics
from certify.importers.torch_graph import from_torch
from certify.training.session.recipe import Recipe

_MID, _BETA = 0.25, 4.0  # where the smoothed schedule turns linear, and its power before
_NONE = 1e-5  # a weight of the linear bound below this is not worth its pass


def smoothed(step: int, begin: int, end: int, most: float) -> float:
    """The radius at a step: 0 up to ``begin``, then a power, then a line, ``most`` from ``end`` on.

    Value and slope match where they meet (Gowal et al.'s code; Shi et al. 2021).
    """
    if step >= end:
        return most
    if step <= begin:
        return 0.0
    turn = begin + _MID * (end - begin)
    scale = most / ((end - turn) * _BETA * (turn - begin) ** (_BETA - 1) + (turn - begin) ** _BETA)
    if step < turn:
        return float(scale * (step - begin) ** _BETA)
    low = scale * (turn - begin) ** _BETA
    return float(low + (most - low) * (step - turn) / (end - turn))


@dataclass(frozen=True, eq=False)
class _Batch:
    """What the losses are made of, each computed when asked for."""

    objective: Objective
    x: Tensor
    y: Tensor
    eps: float
    random: torch.Generator

    def bound(self, method: str, lower: Tensor, upper: Tensor) -> Tensor:
        """Lower bounds of the margins ``(B, K - 1)``."""
        return lower_margins(self.objective.graph, lower, upper, self.y, method)

    def box(self) -> tuple[Tensor, Tensor]:
        """The region, within the data range."""
        return (self.x - self.eps).clamp(0, 1), (self.x + self.eps).clamp(0, 1)

    def attacked(self) -> Tensor:
        """Images moved by projected signed gradient steps on the cross-entropy."""
        recipe, model = self.objective.recipe, self.objective.model
        lower, upper = self.box()
        noise = torch.rand(self.x.shape, generator=self.random)
        moved = lower + (upper - lower) * noise.to(self.x)
        for _ in range(recipe.attack_steps):
            moved = moved.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(F.cross_entropy(model(moved), self.y), moved)
            moved = moved + recipe.attack_step * self.eps * slope.sign()
            moved = torch.minimum(torch.maximum(moved, lower), upper)
        return moved.detach()


@dataclass(eq=False)
class Objective:
    """The loss of a recipe; the model and its optimiser stay outside.

    Attributes:
        parts: of the last loss, as plain floats: ``eps``, ``clean``, ``robust`` (an estimate where
            the method's loss is no bound).
    """

    recipe: Recipe
    model: nn.Module
    shape: tuple[int, ...]
    steps_per_epoch: int
    parts: dict[str, float] = field(default_factory=dict)
    graph: Graph = field(init=False)

    def __post_init__(self) -> None:
        self.graph = from_torch(self.model, torch.zeros(1, *self.shape))

    def eps_at(self, step: int) -> float:
        """The radius at a global step."""
        begin = self.recipe.warmup * self.steps_per_epoch
        return smoothed(step, begin, begin + self.recipe.ramp * self.steps_per_epoch,
                        self.recipe.eps)

    def __call__(self, x: Tensor, y: Tensor, step: int) -> Tensor:
        """The loss of a batch ``x (B, *shape)``, ``y (B,)``."""
        recipe, eps = self.recipe, self.eps_at(step)
        clean = F.cross_entropy(self.model(x), y)
        total, robust = clean, clean
        if eps > 0 and recipe.method != "standard":
            random = torch.Generator().manual_seed(1_000_003 * recipe.seed + step)
            batch = _Batch(self, x, y, eps, random)
            robust = _LOSSES[recipe.method](batch)
            kappa = 1 - (1 - recipe.kappa_end) * eps / recipe.eps
            total = kappa * clean + (1 - kappa) * robust
        if recipe.l1:
            weights = [p for p in self.model.parameters() if p.dim() > 1]
            total = total + recipe.l1 * torch.stack([w.abs().sum() for w in weights]).sum()
        self.parts = {"eps": eps, "clean": float(clean.detach()), "robust": float(robust.detach())}
        return total


def lower_margins(graph: Graph, lower: Tensor, upper: Tensor, y: Tensor, method: str) -> Tensor:
    """Lower bounds ``(B, K - 1)`` of label minus other scores, in plain floats, differentiable.

    The differences are folded into the last layer before it is bounded.
    """
    program = prepare(graph, lower.dtype, lower.device)
    shape = program.shape(program.output)
    classes = int(torch.Size(shape).numel())
    rows = margin_rows(y, classes).to(lower)
    inputs = program.shape(program.inputs[0])
    region = Box(lower.reshape(len(y), *inputs), upper.reshape(len(y), *inputs)).batched(inputs)
    chosen = METHODS[method]
    state = analyse(program, region, chosen, Semantics.SEARCH, Limits(), Alpha())
    wanted = {program.output: rows.reshape(len(y), -1, *shape)}
    return lower_rows(state, wanted, chosen, Alpha())[0]


def margin_rows(y: Tensor, classes: int) -> Tensor:
    """Coefficients ``(B, K - 1, K)`` of label minus other, in the order of the others."""
    eye = torch.eye(classes, device=y.device)
    others = (eye[y] == 0).nonzero()[:, 1].reshape(len(y), -1)
    return eye[y].unsqueeze(1) - eye[others]


def robust_cross_entropy(margins: Tensor) -> Tensor:
    """log(1 + sum of exp(-margin)), the mean over a batch of margins ``(B, K - 1)``."""
    zero = margins.new_zeros(len(margins), 1)
    return torch.cat([zero, -margins], 1).logsumexp(1).mean()


def _pgd(batch: _Batch) -> Tensor:
    return F.cross_entropy(batch.objective.model(batch.attacked()), batch.y)


def _ibp(batch: _Batch) -> Tensor:
    return robust_cross_entropy(batch.bound("ibp", *batch.box()))


def _crown_ibp(batch: _Batch) -> Tensor:
    recipe = batch.objective.recipe
    beta = 1 - (1 - recipe.beta_end) * batch.eps / recipe.eps
    intervals = batch.bound("ibp", *batch.box())
    if beta < _NONE:
        return robust_cross_entropy(intervals)
    lines = batch.bound("crown-ibp", *batch.box())
    return robust_cross_entropy(beta * lines + (1 - beta) * intervals)


def _sabr(batch: _Batch) -> Tensor:
    lower, upper = batch.box()
    small = batch.objective.recipe.alpha * 0.5 * (upper - lower)
    centre = torch.minimum(torch.maximum(batch.attacked(), lower + small), upper - small)
    return robust_cross_entropy(batch.bound("ibp", centre - small, centre + small))


def _mtl_ibp(batch: _Batch) -> Tensor:
    alpha = batch.objective.recipe.alpha
    return (1 - alpha) * _pgd(batch) + alpha * _ibp(batch)


def _exp_ibp(batch: _Batch) -> Tensor:
    alpha = batch.objective.recipe.alpha
    return _pgd(batch) ** (1 - alpha) * _ibp(batch) ** alpha


def _cc_ibp(batch: _Batch) -> Tensor:
    alpha, scores = batch.objective.recipe.alpha, batch.objective.model(batch.attacked())
    own = scores.gather(1, batch.y[:, None])
    others = torch.ones_like(scores).scatter(1, batch.y[:, None], 0).bool()
    attacked = (own - scores)[others].reshape(len(scores), -1)
    return robust_cross_entropy((1 - alpha) * attacked
                                + alpha * batch.bound("ibp", *batch.box()))


_LOSSES: dict[str, Callable[[_Batch], Tensor]] = {
    "pgd": _pgd, "ibp": _ibp, "crown-ibp": _crown_ibp, "sabr": _sabr, "mtl-ibp": _mtl_ibp,
    "cc-ibp": _cc_ibp, "exp-ibp": _exp_ibp,
}
