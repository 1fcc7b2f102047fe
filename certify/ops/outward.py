"""Outward rounding: slack that keeps a bound true whatever the rounding of its computation was.

Bounds here are short sums of products. A sum of products evaluated in any order with ``count``
roundings differs from its exact value by at most ``count * u / (1 - count * u)`` times the sum of
the terms' sizes (Higham, *Accuracy and Stability of Numerical Algorithms*, 3.1), u being half of
``eps``. `below` and `above` move by ``count * eps`` times that size, twice what is needed, and by a
floor far above the denormal range, so that flushing denormals to zero cannot matter either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

EXP_ROUNDINGS = 4  # exp, log and log1p are assumed accurate to 4 units in the last place


def slack(size: Tensor, count: float) -> Tensor:
    """``count`` relative roundings of something of ``size >= 0``; carries no gradient."""
    import torch

    eps = torch.finfo(size.dtype).eps
    return size.detach() * (count * eps) + count * floor(size.dtype)


def floor(dtype: torch.dtype) -> float:
    """An absolute error no underflow exceeds: far above denormals in float64."""
    import torch

    return float(max(torch.finfo(dtype).tiny, 2.0**-500))


def below(value: Tensor, size: Tensor, count: float) -> Tensor:
    """``value`` moved down by its slack; NaN and +inf (an overflow) become -inf."""
    import torch

    moved = value - slack(size, count)
    return torch.where(moved < torch.inf, moved, -torch.inf)


def above(value: Tensor, size: Tensor, count: float) -> Tensor:
    """``value`` moved up by its slack; NaN and -inf (an overflow) become +inf."""
    import torch

    moved = value + slack(size, count)
    return torch.where(moved > -torch.inf, moved, torch.inf)


def reach(lower: Tensor, upper: Tensor) -> Tensor:
    """The largest magnitude in ``[lower, upper]``, without a gradient."""
    return lower.detach().abs().maximum(upper.detach().abs())
