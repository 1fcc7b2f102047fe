"""Directed rounding from float64 to the engine's precision, differentiable as the identity.

Scalar rules are computed in float64 with an explicit error term and rounded once at the end. The
results are never denormal, so neither speed nor flush-to-zero settings matter.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def round_down(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest normal number (or zero, or infinity) of ``dtype`` that is <= ``x`` (float64)."""
    found: Tensor = _rounding().apply(x, dtype)
    return found


def round_up(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest normal number (or zero, or infinity) of ``dtype`` that is >= ``x`` (float64)."""
    return -round_down(-x, dtype)


@cache
def _rounding() -> Any:
    import torch

    class RoundDown(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
            y = x.to(dtype)
            if dtype != x.dtype:
                y = torch.where(y > x, torch.nextafter(y, y.new_tensor(float("-inf"))), y)
            tiny = torch.finfo(dtype).tiny
            small = torch.where(x < 0, y.new_tensor(-tiny), y.new_zeros(()))
            return torch.where(y.abs() < tiny, small, y)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return grads[0].double(), None

    return RoundDown
