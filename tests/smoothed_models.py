"""Classifiers whose smoothed version is known exactly."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HalfSpace(nn.Module):
    """Class 0 where ``w . x + b > 0``: radius ``(w . x + b) / |w|`` whatever the noise."""

    def __init__(self, w: Tensor, b: float = 0.0) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), b

    def forward(self, x: Tensor) -> Tensor:
        m = x.flatten(1) @ self.w + self.b
        return torch.stack([m, -m], 1)


class Slab(nn.Module):
    """Class 0 where the first element lies in (-half, half)."""

    def __init__(self, half: float) -> None:
        super().__init__()
        self.half = half

    def forward(self, x: Tensor) -> Tensor:
        m = self.half - x.flatten(1)[:, 0].abs()
        return torch.stack([m, -m], 1)


class Leak(nn.Module):
    """Class 0 where every element is a multiple of 2^-24: true of fl(1 + noise), not of noise."""

    def forward(self, x: Tensor) -> Tensor:
        scaled = x.flatten(1).double() * 2.0**24
        m = (scaled == scaled.round()).all(1).float() - 0.5
        return torch.stack([m, -m], 1)


class Brightest(nn.Module):
    """The class of the largest element; not finite where the first one is above ``limit``."""

    def __init__(self, limit: float = float("inf")) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return torch.where(flat[:, :1] > self.limit, torch.nan, flat)


def image(*values: float, size: int = 16) -> Tensor:
    """``(1, 1, 4, 4)`` with these first elements."""
    x = torch.zeros(size)
    x[: len(values)] = torch.tensor(values)
    return x.view(1, 1, 4, -1)
