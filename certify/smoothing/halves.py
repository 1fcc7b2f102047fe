"""The two branches of split-dual smoothing: each sees every other pixel, like the fields of a
checkerboard (Xia et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from certify.core.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

Head = Callable[["Tensor"], "Tensor"]


def branches(models: Sequence[Head], shape: tuple[int, ...]) -> tuple[Head, Head]:
    """Heads of the left and the right half.

    Args:
        models: one for both, or one each; they get whole images, the pixels of the other half
            filled with the mean of their neighbours, which all belong to the branch's own half.
    """
    if len(models) > 2 or len(shape) != 3:
        raise BadInput(
            f"the dual methods take one or two models of images (C, H, W); got "
            f"{len(models)} of inputs {shape}"
        )
    left, right = models[0], models[-1]
    return (lambda x: left(filled(x, 0))), (lambda x: right(filled(x, 1)))


def checkerboard(shape: tuple[int, ...], parity: int, like: Tensor) -> Tensor:
    """Which pixels a branch sees: bool ``(H, W)``; the two of them partition the image."""
    import torch

    rows = torch.arange(shape[-2], device=like.device).unsqueeze(1)
    columns = torch.arange(shape[-1], device=like.device)
    return (rows + columns) % 2 == parity


def filled(x: Tensor, parity: int) -> Tensor:
    """``x (N, C, H, W)`` as one branch sees it: a function of its own pixels only.

    The four neighbours of a pixel it does not see are all its own.
    """
    import torch

    total = _neighbours(x)
    count = _neighbours(torch.ones_like(x[:1])).clamp_min(1)
    return torch.where(checkerboard(tuple(x.shape), parity, x), x, total / count)


def _neighbours(x: Tensor) -> Tensor:
    """Sum of the four neighbours of every pixel; slices, for a convolution takes ten times as
    long."""
    total = x.new_zeros(x.shape)
    total[..., 1:, :] += x[..., :-1, :]
    total[..., :-1, :] += x[..., 1:, :]
    total[..., 1:] += x[..., :-1]
    total[..., :-1] += x[..., 1:]
    return total
