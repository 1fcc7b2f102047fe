"""The least of finitely many candidates: inner problems of the Lagrangian dual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from certify.ops.oracle import EPS, TINY

if TYPE_CHECKING:
    from torch import Tensor


def least(terms: Sequence[tuple[Tensor, ...]], soft: float = 0.0) -> Tensor:
    """The least of sums, rounded down; NaN counts as minus infinity.

    Args:
        terms: per candidate, the terms that are added up; float64, of one shape.
        soft: where above 0, the *gradient* is that of a soft minimum with this temperature, as a
            share of how far the candidates lie apart. At a tie, where the dual is at its best, that
            mixes the candidates' gradients instead of choosing one. The value stays exact.
    """
    import torch

    values = []
    for parts in terms:
        size, total = parts[0].abs(), parts[0]
        for part in parts[1:]:
            size, total = size + part.abs(), total + part
        value = total - 8 * EPS * size - TINY * (size > 0)
        values.append(torch.where(value == value, value, -torch.inf))
    stack = torch.stack(values)
    found: Tensor = stack.min(0).values
    if not soft or not stack.requires_grad:
        return found
    with torch.no_grad():
        spread = stack.max(0).values - found
        scale = (soft * _typical(spread)).clamp(min=1e-30)
        share = torch.softmax(-(stack - found) / scale, 0)
        share = torch.where(share == share, share, 0.0)
    mixed = (share * torch.where(stack.isfinite(), stack, 0.0)).sum(0)
    return found.detach() + mixed - mixed.detach()


def _typical(spread: Tensor) -> Tensor:
    """Mean spread of a row's elements, so that elements near a tie are told from others."""
    import torch

    finite = torch.where(spread.isfinite(), spread, 0.0)
    return finite.mean(dim=tuple(range(2, spread.dim())), keepdim=True) if spread.dim() > 2 \
        else finite
