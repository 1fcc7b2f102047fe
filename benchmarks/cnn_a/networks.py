"""The CNN-A networks and their images, as torch modules and arrays; nothing in a file is run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import certify

_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)  # of CIFAR-10
_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
_HIDDEN = 100


class Normalise(nn.Module):
    """``(x - mean) / std`` per channel, so that regions are in pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` in [0, 1]; the same shape."""
        return (x - self.mean) / self.std


def dataset(net: str) -> str:
    """``mnist`` or ``cifar``."""
    return net.partition("_")[0]


def radius(net: str) -> float:
    """Of the L-infinity ball, in pixel values from 0 to 1."""
    return {"mnist": 0.3, "cifar": 2 / 255}[dataset(net)]


def model(folder: Path, net: str) -> nn.Sequential:
    """A network on images ``(B, C, H, W)`` in [0, 1], normalisation included.

    Raises:
        CertifyError: the checkpoint cannot be read, or is refused.
        RuntimeError: its tensors do not fit the architecture.
    """
    weights = {name: torch.tensor(value)
               for name, value in certify.load_weights(folder / f"{net}.model").items()}
    channels, side = (1, 28) if dataset(net) == "mnist" else (3, 32)
    layers = nn.Sequential(
        nn.Conv2d(channels, 16, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, _HIDDEN), nn.ReLU(),
        nn.Linear(_HIDDEN, 10))
    layers.load_state_dict(weights)
    before = [] if channels == 1 else [Normalise(_MEAN, _STD)]
    return nn.Sequential(*before, *layers).eval()


def images(folder: Path, net: str) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(N, C, H, W)`` in [0, 1] and labels ``(N,)``, in the published order."""
    name = dataset(net)
    stored = certify.load_array(folder / f"{name}_X_sdp.npy")
    return (np.ascontiguousarray(stored.transpose(0, 3, 1, 2)),
            certify.load_array(folder / f"{name}_y_sdp.npy"))
