"""The least of finitely many candidates: inner problems of the Lagrangian dual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from certify.ops.oracle import EPS, TINY

if TYPE_CHECKING:
    from torch import Tensor

    from certify.ops.record import Interval


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


def least_near(halves: tuple[Tensor, Tensor], weight: Tensor, slope: Tensor,
               pull: tuple[Tensor, Tensor], x: Interval, soft: float = 0.0) -> Tensor:
    """Per element a lower bound of ``weight h(z) - slope z + k/2 (z - centre)^2`` on an interval
    around 0, for ``h`` of two straight halves; all rounding accounted for.

    Each half is a parabola. It lies above its tangent at the point that floats find lowest, so
    that where that point lies need not be exact.

    Args:
        halves: slopes left and right of 0.
        weight, slope: ``(B, R, *shape)``.
        pull: ``k >= 0``, ``(B, R, ...)``, and the centre ``(B, 1, *shape)``.
        soft: see `least`.
    """
    import torch

    w, m, (k, centre) = weight.double(), slope.double(), pull
    low, high = x.lower.double().unsqueeze(1), x.upper.double().unsqueeze(1)
    candidates = []
    kink = torch.zeros_like(low)
    for half, a, b in zip(halves, (low, kink), (kink, high), strict=True):
        with torch.no_grad():
            rise = w * half - m
            z = torch.nan_to_num(centre - rise / k, nan=0.0).maximum(a).minimum(b)
            tangent = rise + k * (z - centre)
            short = torch.minimum(tangent * (a - z), tangent * (b - z)).clamp(max=0)
            size = (w * half).abs() + m.abs() + k * (z - centre).abs()
            short = short - (16 * EPS * size + TINY) * (b - a)
        candidates.append((w * half * z, -m * z, 0.5 * k * (z - centre) ** 2, short))
    return least(candidates, soft)


def _typical(spread: Tensor) -> Tensor:
    """Mean spread of a row's elements, so that elements near a tie are told from others."""
    import torch

    finite = torch.where(spread.isfinite(), spread, 0.0)
    return finite.mean(dim=tuple(range(2, spread.dim())), keepdim=True) if spread.dim() > 2 \
        else finite
