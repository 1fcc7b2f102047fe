"""Minima of linear functions over boxes and norm balls, plain or with the rounding paid for.

Everything here is flat: coefficients ``a`` are ``(B or 1, R, n)``, vectors of the region
``(B or 1, n)``, results ``(B, R)``. The rigorous forms want float64 and return a number that is
not above the exact minimum, or -inf when something overflowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from certify.core.outward import POW_SLACK, UNDERFLOW, dot_error

if TYPE_CHECKING:
    from torch import Tensor


def dot(a: Tensor, vector: Tensor) -> Tensor:
    """``<a, vector>`` per example and row, broadcasting a batch of one on either side."""
    if vector.shape[0] == 1:
        return a @ vector[0]
    if a.shape[0] == 1:
        return vector @ a[0].mT
    return (a @ vector.unsqueeze(-1)).squeeze(-1)


def sound(value: Tensor, error: Tensor) -> Tensor:
    """``value - error``, and -inf where either is not finite."""
    result = value - error
    return result.where(result.isfinite(), -float("inf"))


def slack(terms: int, size: Tensor) -> Tensor:
    """What underflow can cost: ``(B, 1)`` for vectors ``size`` of ``(B, n)``."""
    return terms * UNDERFLOW * (1 + size.amax(-1, keepdim=True) if terms else size.sum(-1, True))


def over_box(a: Tensor, mid: Tensor, rad: Tensor) -> Tensor:
    """``min <a, x>`` over ``|x - mid| <= rad``: ``a.mid - |a|.rad``."""
    return dot(a, mid) - dot(a.abs(), rad)


def over_box_rigorous(a: Tensor, mid: Tensor, rad: Tensor) -> Tensor:
    """The same, not above the exact minimum.

    The error term covers both products and a relative rounding of ``2 u`` in ``a`` itself.
    """
    terms, size = a.shape[-1], a.abs()
    largest = mid.abs() + rad
    value = dot(a, mid) - dot(size, rad)
    return sound(value, dot_error(terms) * dot(size, largest) + slack(terms, largest))


def over_ball(a: Tensor, center: Tensor, eps: Tensor, norm: Tensor) -> Tensor:
    """``min <a, x>`` over a ball: ``a.center - eps norm``, ``norm`` the dual norm of ``a``."""
    return dot(a, center) - eps * norm


def over_ball_rigorous(a: Tensor, center: Tensor, eps: Tensor, norm: Tensor) -> Tensor:
    """The same, not above the exact minimum; ``norm`` must not be below the exact dual norm."""
    terms, size, where = a.shape[-1], a.abs(), center.abs()
    error = dot_error(terms) * (dot(size, where) + eps * norm)
    return sound(dot(a, center) - eps * norm, error + slack(terms, where + eps))


def dual_norm(a: Tensor, q: float, rigorous: bool) -> Tensor:
    """``|a|_q`` over the last axis, ``(B, R)``; rounded up when rigorous."""
    import torch

    if q == float("inf"):
        return a.abs().amax(-1) if a.shape[-1] else a.sum(-1)
    if not rigorous:
        norm: Tensor = torch.linalg.vector_norm(a, q, dim=-1)
        return norm
    top = a.abs().amax(-1, keepdim=True) if a.shape[-1] else a.sum(-1, keepdim=True)
    scaled = a.abs() / top.where(top > 0, 1.0)  # no overflow; what underflows is far below u
    power = scaled.square() if q == 2 else scaled.pow(q)
    root = power.sum(-1).sqrt() if q == 2 else power.sum(-1).pow(1 / q)
    widen = 1 + dot_error(a.shape[-1]) + (0.0 if q == 2 else POW_SLACK * max(1.0, 1 / q))
    return top.squeeze(-1) * root * widen
