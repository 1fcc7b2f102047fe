"""One training run of DM-small on MNIST in a plain loop around `CertifiedLoss`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from certify.importers.datasets import Images
from certify.training import Ascent, CertifiedLoss, Ramp, Schedule, ibp_initialise, network

BATCH, RATE, CLIP = 128, 1e-3, 10.0
DROPS = (0.7, 0.9)  # shares of the run after which the rate falls to a fifth

SETTINGS: dict[str, dict[str, Any]] = {
    "ibp": {"epochs": {0.1: 10, 0.3: 40}, "options": {}},
    "crown-ibp": {"epochs": 5, "options": {"beta": 0.5}},
    "mtl-ibp": {"epochs": 24, "options": {"coefficient": {0.1: 0.3, 0.3: 0.7}}},
    "sabr": {"epochs": 6, "options": {"small_box": {0.1: 0.6, 0.3: 0.8}, "attack": (1, 2.0)}},
}
"""Epochs, and what the method is told; a dictionary holds one value per radius."""
TRAINED_AT = {0.1: 0.12, 0.3: 0.31}
"""Radius tested to radius trained for."""


def trained(place: Path, method: str, eps: float, data: Callable[[], Images]) -> dict[str, Any]:
    """Weights and CPU seconds of a run, from the folder, or trained now and put there."""
    file = place / f"{method}_{eps:g}.pt"
    if not file.exists():
        place.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        torch.save(_train(method, eps, data()), partial)
        partial.replace(file)
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


def model() -> nn.Module:
    """DM-small for MNIST."""
    return network("dm-small", (1, 28, 28), 10)


def certified_loss(net: nn.Module, method: str, eps: float, steps: int) -> CertifiedLoss:
    """The loss of a run: the radius ramps up over its first half."""
    given = {k: at(v, eps) for k, v in SETTINGS[method]["options"].items()}
    beta = given.pop("beta", 0.0)
    if "attack" in given:
        given["attack"] = Ascent(*given["attack"])
    ramp = Ramp(steps // at(SETTINGS[method]["epochs"], eps) // 2, steps // 2)
    return CertifiedLoss(net, method, TRAINED_AT[eps], schedule=Schedule(ramp, beta=beta),
                         regularise=0.5, **given)


def at(value: Any, eps: float) -> Any:
    """A setting at a radius."""
    return value[eps] if isinstance(value, dict) else value


def _train(method: str, eps: float, images: Images) -> dict[str, Any]:
    torch.manual_seed(0)
    net = model()
    ibp_initialise(net)
    x, y = torch.from_numpy(images.x), torch.from_numpy(images.y)
    epochs, batches = at(SETTINGS[method]["epochs"], eps), len(x) // BATCH
    steps = epochs * batches
    loss = certified_loss(net, method, eps, steps)
    optimiser = torch.optim.Adam(net.parameters(), RATE)
    drops = [int(share * steps) for share in DROPS]
    rate = torch.optim.lr_scheduler.MultiStepLR(optimiser, drops, 0.2)
    begun = time.process_time()
    for epoch in range(epochs):
        order = torch.randperm(len(x))
        for i in range(batches):
            chosen = order[i * BATCH : (i + 1) * BATCH]
            optimiser.zero_grad()
            loss(x[chosen], y[chosen]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimiser.step()
            rate.step()
        said = ", ".join(f"{name} {value:.3f}" for name, value in loss.parts.items())
        print(f"{method} {eps:g}, epoch {epoch + 1} of {epochs}: {said}", flush=True)
    return {"weights": net.state_dict(), "cpu_seconds": time.process_time() - begun}
