"""What the numba kernels compute, in torch: the meaning, and the fallback on any device."""

from __future__ import annotations

import torch
from torch import Tensor


def relax_dense(
    A: Tensor, low: Tensor, low_c: Tensor, up: Tensor, up_c: Tensor, cost: Tensor
) -> tuple[Tensor, Tensor]:
    """See `certify.bounds.kernels.relax_dense`."""
    positive = A >= 0
    out = A * torch.where(positive, low, up)
    bias = (A * torch.where(positive, low_c, up_c)).double().sum(1)
    return out, torch.stack((bias, (A.abs() * cost).double().sum(1)), 1)


def relax_windows(
    A: Tensor,
    top: Tensor,
    left: Tensor,
    low: Tensor,
    low_c: Tensor,
    up: Tensor,
    up_c: Tensor,
    cost: Tensor,
) -> tuple[Tensor, Tensor]:
    """See `certify.bounds.kernels.relax_windows`."""
    R = A.shape[0]

    def take(maps: Tensor) -> Tensor:
        return windows(maps.permute(2, 0, 1), top, left, (A.shape[1], A.shape[2])).reshape(R, -1)

    lines = [take(t) for t in (low, low_c, up, up_c)]
    positive = A.reshape(R, -1) >= 0
    flat = A.reshape(R, -1)
    out = flat * torch.where(positive, lines[0], lines[2])
    bias = (flat * torch.where(positive, lines[1], lines[3])).double().sum(1)
    size = (flat.abs() * take(cost)).double().sum(1)
    return out.reshape(A.shape), torch.stack((bias, size), 1)


def dot_windows(A: Tensor, top: Tensor, left: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """See `certify.bounds.kernels.dot_windows`."""
    size = (A.shape[1], A.shape[2])
    one, two = (windows(m.permute(2, 0, 1), top, left, size) for m in (first, second))
    signed = (A.double() * one).flatten(1).sum(1)
    absolute = (A.double().abs() * two).flatten(1).sum(1)
    return torch.stack((signed, absolute), 1)


def windows(maps: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """Windows of ``maps (C, H, W)`` at ``top, left (R,)``, zero outside, as ``(R, h, w, C)``."""
    h, w = size
    view = torch.nn.functional.pad(maps, (w, w, h, h)).unfold(1, h, 1).unfold(2, w, 1)
    return view.permute(1, 2, 3, 4, 0)[top + h, left + w]


def dot_dense(A: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """See `certify.bounds.kernels.dot_dense`."""
    signed = (A.double() * first).sum(1)
    return torch.stack((signed, (A.double().abs() * second).sum(1)), 1)
