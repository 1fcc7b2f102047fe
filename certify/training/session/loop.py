"""The loop: epochs, validation, checkpoints. Every random draw depends on seed and step alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from certify.bounds.methods import bound
from certify.core.graph import Graph
from certify.core.region import BALLS
from certify.importers.datasets import Images
from certify.importers.torch_graph import from_torch
from certify.training.batch_norm import has_batch_norm, precise_batch_norm
from certify.training.bounder import margin_rows
from certify.training.session.objective import Objective, make_network, make_objective
from certify.training.session.recipe import Recipe
from certify.training.session.store import Store

Tell = Callable[[dict[str, Any], int], None]
BEST = "best.pt"
_CHUNK = 256


def split(images: Images, share: float, seed: int) -> tuple[Images, Images]:
    """Images to train on and, disjoint, images to choose by; each class gives its share."""
    random = np.random.default_rng([seed, 7])
    held = np.zeros(len(images), dtype=bool)
    for label in np.unique(images.y):
        mine = random.permutation(np.flatnonzero(images.y == label))
        held[mine[: round(share * len(mine))]] = True
    return images.take(np.flatnonzero(~held)), images.take(np.flatnonzero(held))


def train(recipe: Recipe, images: Images, folder: Path, tell: Tell) -> nn.Module:
    """Train by a recipe; what an earlier call left in ``folder`` is taken up.

    Args:
        images: the training split.
        tell: called after every epoch with its metrics and the number of epochs.

    Returns:
        The network of the chosen epoch, in evaluation mode. On one machine and one number of
        threads it is the same to the bit however often the run was interrupted.

    Raises:
        TrainingStopped: a loss that is not finite; the last good checkpoint is kept.
        UsageError: the folder belongs to another run.
        CannotWrite: the folder cannot be written.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        return _Run.begin(recipe, images, folder).finish(tell)
    finally:
        torch.set_num_threads(before)


@dataclass(eq=False)
class _Run:
    """A run in progress."""

    recipe: Recipe
    store: Store
    images: Images
    held: Images
    model: nn.Module
    steps: int
    objective: Objective
    optimiser: torch.optim.Optimizer
    epoch: int = 0
    best: tuple[float, float] | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def begin(cls, recipe: Recipe, images: Images, folder: Path) -> _Run:
        store = Store(folder, {**recipe.plain(), "data_sha256": images.sha256})
        model = make_network(recipe, images)
        own, held = split(images, recipe.validation, recipe.seed)
        steps = math.ceil(len(own) / recipe.batch)
        objective = make_objective(recipe, model, steps)
        optimiser = torch.optim.Adam(objective.learned().parameters(), lr=recipe.rate)
        run = cls(recipe, store, own, held, model.train(), steps, objective, optimiser)
        run._take_up(store.last())
        return run

    def _take_up(self, state: dict[str, Any] | None) -> None:
        if state is None:
            return
        self.objective.learned().load_state_dict(state["learned"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch = state["epoch"]
        self.best = None if state["best"] is None else tuple(state["best"])
        self.lines = self.store.metrics(self.epoch)

    def finish(self, tell: Tell) -> nn.Module:
        """All epochs that are left, then the chosen weights."""
        while self.epoch < self.recipe.epochs:
            line = self._one_epoch()
            last = self.epoch + 1 == self.recipe.epochs
            due = last or (self.epoch + 1) % self.recipe.every == 0
            if due and len(self.held):
                line |= self._validate()
            self.lines.append(line)
            self.epoch += 1
            if due:
                self.store.checkpoint(self._state(), self.lines)
            tell(line, self.recipe.epochs)
        if self.best is not None:
            weights = torch.load(self.store.folder / BEST, weights_only=True)
            self.model.load_state_dict(weights)
        return self.model.eval()

    def _state(self) -> dict[str, Any]:
        return {"learned": self.objective.learned().state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "epoch": self.epoch, "best": self.best}

    def _one_epoch(self) -> dict[str, Any]:
        recipe, count = self.recipe, len(self.images)
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate * recipe.decay ** sum(
                self.epoch >= share * recipe.epochs for share in (0.8, 0.9))
        order = np.random.default_rng([recipe.seed, 11, self.epoch]).permutation(count)
        sums: dict[str, float] = {}
        for number, start in enumerate(range(0, count, recipe.batch)):
            index = order[start : start + recipe.batch]
            step = self.epoch * self.steps + number
            self._step(torch.from_numpy(self.images.x[index]),
                       torch.from_numpy(self.images.y[index]), step)
            for name, value in self.objective.parts.items():
                sums[name] = sums.get(name, 0.0) + value * len(index)
        if has_batch_norm(self.model):
            precise_batch_norm(self.model, torch.split(torch.from_numpy(self.images.x), _CHUNK))
        means = {name: total / count for name, total in sums.items()}
        return {"epoch": self.epoch, **means, "eps": self.objective.parts["eps"]}

    def _step(self, x: Tensor, y: Tensor, step: int) -> None:
        self.optimiser.zero_grad()
        self.objective(x, y, step).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.objective.learned().parameters(), self.recipe.clip)
        self.optimiser.step()

    def _validate(self) -> dict[str, Any]:
        """Accuracy on the held-out images; the best epoch at the full radius is kept."""
        self.model.eval()
        clean, robust = 0, 0
        with torch.no_grad():
            for start in range(0, len(self.held), _CHUNK):
                part = self.held.take(slice(start, start + _CHUNK))
                x, y = torch.from_numpy(part.x), torch.from_numpy(part.y)
                clean += int((self.model(x).argmax(1) == y).sum())
                margins = self._margins(x, y)
                robust += int((margins > 0).all(1).sum())
        self.model.train()
        score = (robust / len(self.held), clean / len(self.held))
        full = self.epoch + 1 >= self.recipe.warmup + self.recipe.ramp
        if full and (self.best is None or score >= self.best):
            self.best = score
            self.store.save(BEST, self.model.state_dict())
        return {"validation_robust_estimate": score[0], "validation_clean": score[1]}

    def _margins(self, x: Tensor, y: Tensor) -> Tensor:
        """Lower bounds of the margins ``(B, K - 1)`` in plain floats."""
        region = BALLS[self.recipe.norm](x.unsqueeze(1), self.recipe.eps, clip=(0.0, 1.0))
        rows = margin_rows(y, self.images.num_classes, x)
        return bound(self.graph, region, "crown-ibp", rows, semantics="search").lower

    @cached_property
    def graph(self) -> Graph:
        """The network, as it is now and as it will be: its parameters are live."""
        return from_torch(self.model, torch.zeros(1, *self.images.shape))
