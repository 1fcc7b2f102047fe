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
    import torch

    if torch.is_grad_enabled() and x.requires_grad:
        found: Tensor = _rounding().apply(x, dtype)
        return found
    return _down(x, dtype)


def round_up(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest normal number (or zero, or infinity) of ``dtype`` that is >= ``x`` (float64)."""
    return -round_down(-x, dtype)


def _down(x: Tensor, dtype: torch.dtype) -> Tensor:
    import torch

    info = torch.finfo(dtype)
    y = x.to(dtype)
    if dtype != x.dtype:
        # Neighbouring floats have neighbouring integers as bits: one step where y is above x.
        # (Zeros go wrong here; they only come from places that are small.)
        bits = y.view(torch.int32 if info.bits == 32 else torch.int16)
        y = torch.addcmul(bits, (y > x).to(bits.dtype), bits.sign(), value=-1).view(dtype)
    if not y.numel() or float(x.abs().amin()) >= info.tiny:
        return y
    return torch.where(x.abs() < info.tiny, (x < 0).to(dtype) * -info.tiny, y)


@cache
def _rounding() -> Any:
    import torch

    class RoundDown(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
            return _down(x, dtype)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return grads[0].double(), None

    return RoundDown
