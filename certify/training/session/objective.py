"""The network and the loss a recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certify.core.errors import BadInput
from certify.importers.datasets import Images
from certify.importers.model_source import built
from certify.training.architectures import network
from certify.training.attack import Ascent
from certify.training.initialise import ibp_initialise
from certify.training.loss import CertifiedLoss
from certify.training.schedules import Ramp, Schedule
from certify.training.session.recipe import Recipe


def make_network(recipe: Recipe, images: Images) -> nn.Module:
    """The network of a recipe, with weights drawn from its seed.

    Networks of the literature that are trained on bounds begin with weights under which intervals
    keep their width; a factory's module keeps the weights it comes with.

    Raises:
        BadInput: no such architecture, or images that do not suit it.
        UsageError: no such factory.
    """
    torch.manual_seed(recipe.seed)
    if ":" in recipe.arch:
        return built(recipe.arch)
    if len(images.shape) != 3:
        raise BadInput(f"{recipe.arch} takes images (C, H, W), the data have {images.shape}; give "
                       "package.module:function for a network of your own")
    model = network(recipe.arch, images.shape, images.num_classes)
    if recipe.bounded:
        ibp_initialise(model, torch.Generator().manual_seed(recipe.seed))
    return model


@dataclass(frozen=True)
class Objective:
    """The loss of a training step; after each call `parts` has it in plain numbers.

    Attributes:
        loss: None for standard training.
    """

    model: nn.Module
    loss: CertifiedLoss | None
    standard: dict[str, float]

    @property
    def parts(self) -> Mapping[str, float]:
        """``loss``, ``clean``, ``robust`` (an estimate unless the method bounds it), ``eps``."""
        return self.standard if self.loss is None else self.loss.parts

    def learned(self) -> nn.Module:
        """What the optimiser moves: the network, and whatever the loss learns beside it."""
        return self.model if self.loss is None else self.loss

    def __call__(self, x: Tensor, y: Tensor, step: int) -> Tensor:
        """The loss of a batch at a global step."""
        if self.loss is not None:
            found: Tensor = self.loss(x, y, step)
            return found
        clean = F.cross_entropy(self.model(x), y)
        value = float(clean.detach())
        self.standard.update(loss=value, clean=value, robust=value, eps=0.0)
        return clean


def make_objective(recipe: Recipe, model: nn.Module, steps_per_epoch: int) -> Objective:
    """The loss of a recipe.

    Args:
        steps_per_epoch: what warm-up and ramp, which a recipe counts in epochs, are made of.
    """
    if recipe.method == "standard":
        return Objective(model, None, {})
    start = recipe.warmup * steps_per_epoch
    ramp = Ramp(start, start + recipe.ramp * steps_per_epoch)
    loss = CertifiedLoss(
        model, recipe.method, recipe.eps, norm=recipe.norm, l1=recipe.l1, seed=recipe.seed,
        regularise=recipe.regularise, schedule=Schedule(ramp, recipe.kappa_end, recipe.beta_end),
        attack=Ascent(recipe.attack_steps, recipe.attack_step, decay=recipe.attack_decay,
                      enlarge=recipe.attack_enlarge),
        coefficient=recipe.alpha, small_box=recipe.small_box, fusion=recipe.fusion,
        shrink=recipe.shrink)
    return Objective(model, loss, {})
