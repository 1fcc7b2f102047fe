"""Bounds of softmax probabilities and the planes below and above them, rounded outward.

One row has logits x in ``[l, u]``; every function works on the last axis of any batch of rows. See
`certify.ops.softmax` for the source and the names of the bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certify.ops.logsumexp import at, chords, lse_lower
from certify.ops.outward import EXP_ROUNDINGS, above, below, reach
from certify.ops.record import Interval

if TYPE_CHECKING:
    from torch import Tensor


def _others(x: Tensor) -> Tensor:
    """``log sum_{j != k} exp(x_j)`` along the last axis, without any subtraction of sums."""
    import torch

    none = torch.full_like(x[..., :1], -torch.inf)
    before = torch.cat([none, x.logcumsumexp(-1)[..., :-1]], -1)
    after = torch.cat([none, x.flip(-1).logcumsumexp(-1)[..., :-1]], -1).flip(-1)
    return torch.logaddexp(before, after)


def log_bounds(box: Interval) -> Interval:
    """Bounds of ``log p_k`` for finite rows, rounded outward; exact at the box's corners."""
    import torch

    if box.lower.shape[-1] == 1:
        return Interval(torch.zeros_like(box.lower), torch.zeros_like(box.upper))
    top = box.upper.detach().amax(-1, keepdim=True)
    lower, upper = box.lower - top, box.upper - top
    count = 4 * lower.shape[-1] + 4 * EXP_ROUNDINGS
    found = []
    for mine, rest in ((lower, _others(upper)), (upper, _others(lower))):
        size = 4 + 2 * rest.abs() + 2 * mine.abs()
        found.append((-torch.logaddexp(rest - mine, torch.zeros_like(rest)), size))
    return Interval(below(*found[0], count), above(*found[1], count).clamp(max=0))


def probability_bounds(logs: Interval) -> Interval:
    """``exp`` of `log_bounds`, rounded outward within [0, 1]."""
    low, high = logs.lower.exp(), logs.upper.exp()
    certain = logs.lower == 0
    lower = below(low, low, EXP_ROUNDINGS + 1).clamp(min=0)
    upper = above(high, high, EXP_ROUNDINGS + 1).clamp(max=1)
    return Interval(lower + certain * (1 - lower), upper)


@dataclass(frozen=True)
class Rank1:
    """Planes ``scale_k (x_k - q . x) + c_k`` for every k, without the n x n Jacobian.

    ``scale`` and ``c`` are ``(B, 1 or R, *kept, n)``, ``q`` likewise.
    """

    scale: Tensor
    q: Tensor
    c: Tensor

    def value(self, x: Tensor) -> Tensor:
        """The planes at a point."""
        return self.scale * (x - (self.q * x).sum(-1, keepdim=True)) + self.c

    def pull(self, A: Tensor) -> Tensor:
        """Coefficients of x for ``A`` over k, both with that axis last."""
        scaled = A * self.scale
        return scaled - scaled.sum(-1, keepdim=True) * self.q


def lse_plane(box: Interval, point: Tensor) -> Rank1:
    """The tangent plane of L_LSE: ``v_k (2 - xi_k + x_k - S(x) / s)`` with ``v = exp(xi) / s``.

    It lies below for every xi and every s > 0: exp and -log are convex.
    """
    top = box.upper.detach().amax(-1, keepdim=True)
    slope, chord_c = chords(box, top)
    xi = at(box, point) - top
    s = (slope * xi + chord_c).sum(-1, keepdim=True).clamp(min=1e-30)
    v, q, rest = xi.exp() / s, slope / s, chord_c.sum(-1, keepdim=True) / s
    c = v * (2 - xi - rest - top + q.sum(-1, keepdim=True) * top)
    far = reach(*box) + 2 * top.abs()
    size = 3 + xi.abs() + rest.abs() + far + (q * far).sum(-1, keepdim=True)
    return Rank1(v, q, below(c, (v * size).detach(), box.lower.shape[-1] + 2 * EXP_ROUNDINGS + 10))


def upper_plane(box: Interval, logs: Interval, point: Tensor) -> Rank1:
    """The tangent plane of U_LSE: ``k (x_k - w . x - h) + i`` where ``LSE(x) >= w . x + h``."""
    import torch

    low, high, width = logs.lower.exp(), logs.upper.exp(), logs.upper - logs.lower
    wide = width > 0
    scale = torch.where(wide, (high - low) / torch.where(wide, width, 1.0), high)
    scale = torch.minimum(torch.maximum(scale, low), high)
    chord = torch.maximum(low - scale * logs.lower, high - scale * logs.upper)
    w, h = lse_lower(box, point)
    c = chord - scale * h.unsqueeze(-1)
    size = high + scale * (
        1 + reach(*logs) + h.abs().unsqueeze(-1) + 2 * reach(*box).amax(-1, keepdim=True)
    )
    return Rank1(scale, w, above(c, size.detach(), w.shape[-1] + EXP_ROUNDINGS + 8))


def er_plane(box: Interval, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tangent plane of L_ER, ``2 g - g^2 D_k(x)``, which lies below for any g.

    Returns ``(..., n, n)`` coefficients, ``(..., n)`` intercepts and which k are usable: where
    logits differ so much that exponentials might overflow, both are zero instead.
    """
    import torch

    n = box.lower.shape[-1]
    lower = box.lower.unsqueeze(-2) - box.upper.unsqueeze(-1)  # [k, j] = l_j - u_k
    upper = box.upper.unsqueeze(-2) - box.lower.unsqueeze(-1)
    usable = upper.amax(-1) < math.log(torch.finfo(upper.dtype).max) / 2
    row = usable.unsqueeze(-1)
    lower, upper = (torch.where(row, t, 0.0) for t in (lower, upper))
    other = ~torch.eye(n, dtype=torch.bool, device=lower.device)
    slope, c = chords(Interval(lower, upper), lower.new_zeros(()))
    slope, c = (torch.where(other, t, 0.0) for t in (slope, c))
    x = at(box, point)
    t = torch.where(row, x.unsqueeze(-2) - x.unsqueeze(-1), 0.0)
    g = 1 / (1 + (slope * t + c).sum(-1))
    each = g.unsqueeze(-1)  # never squared: that would underflow long before g (g D) does
    pulled = -each * (each * slope)
    coefficients = torch.where(other, pulled, -pulled.sum(-1, keepdim=True))
    size = 3 + (each * (c.abs() + slope * reach(lower, upper))).sum(-1)
    size = g * size + (coefficients.abs() * reach(*box).unsqueeze(-2)).sum(-1) * 2
    found = below(g * (2 - g * (1 + c.sum(-1))), size.detach(), 2 * n + 2 * EXP_ROUNDINGS + 10)
    return torch.where(row, coefficients, 0.0), torch.where(usable, found, 0.0), usable
