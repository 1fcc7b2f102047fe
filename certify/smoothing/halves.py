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
    """``x (N, C, H, W)`` as one branch sees it: a function of its own pixels only."""
    import torch
    from torch.nn.functional import pad

    own = checkerboard(tuple(x.shape), parity, x)
    seen = torch.where(own, x, x.new_zeros(()))
    around = pad(seen, (1, 1, 1, 1))
    number = pad(own.to(x.dtype), (1, 1, 1, 1))
    total, count = (
        t[..., :-2, 1:-1] + t[..., 2:, 1:-1] + t[..., 1:-1, :-2] + t[..., 1:-1, 2:]
        for t in (around, number)
    )
    return torch.where(own, x, total / count.clamp_min(1))
