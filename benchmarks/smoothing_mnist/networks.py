"""A small convolutional network, trained under noise; trained once, kept in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from certify.importers.datasets import Images
from certify.training.smoothed import GaussianAugmentation

EPOCHS, BATCH, RATE = 15, 128, 0.05
CHANNELS = (8, 16, 64)


def network() -> nn.Sequential:
    """Two strided convolutions and two linear layers, 54 000 weights."""
    a, b, hidden = CHANNELS
    return nn.Sequential(
        nn.Conv2d(1, a, 4, 2, 1), nn.ReLU(), nn.Conv2d(a, b, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(b * 49, hidden), nn.ReLU(), nn.Linear(hidden, 10))


class Halves(nn.Module):
    """One network for both branches of dual smoothing: half of each batch is seen by each."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Logits; in training every other image is seen through the other half."""
        from certify.smoothing.halves import filled

        seen = torch.where((torch.arange(len(x)) % 2 == 0).view(-1, 1, 1, 1), filled(x, 0),
                           filled(x, 1))
        found: Tensor = self.inner(seen)
        return found


def trained(place: Path, sigma: float, halves: bool, data: Callable[[], Images]) -> nn.Module:
    """The network for noise of ``sigma``; from the folder, or trained and put there."""
    file = place / f"{'dual' if halves else 'plain'}_{sigma:.4f}.pt"
    net = network()
    if not file.exists():
        place.mkdir(parents=True, exist_ok=True)
        train(net, sigma, halves, data())
        torch.save(net.state_dict(), file)
    net.load_state_dict(torch.load(file, weights_only=True))
    return net.eval()


def train(net: nn.Module, sigma: float, halves: bool, images: Images) -> None:
    """Stochastic gradient descent with momentum, the rate falling to 0 along a cosine; seed 0."""
    torch.manual_seed(0)
    for part in net.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    x, y = torch.from_numpy(images.x), torch.from_numpy(images.y)
    loss = GaussianAugmentation(Halves(net) if halves else net, sigma)
    optimiser = torch.optim.SGD(net.parameters(), RATE, momentum=0.9, weight_decay=1e-4)
    steps = EPOCHS * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(x))
        for i in range(len(x) // BATCH):
            chosen = order[i * BATCH : (i + 1) * BATCH]
            optimiser.zero_grad()
            loss(x[chosen], y[chosen]).backward()
            optimiser.step()
            schedule.step()
