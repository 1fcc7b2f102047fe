"""Norm balls intersected with the data range: L1, L2 and Lp.

The bound is weak duality. Split ``A = A1 + A2``; then ``min_box <A1, x> + min_ball <A2, x>`` is a
lower bound for *any* split, so the multiplier that chooses it needs no rounding care, and it is
exact for the best one. With ``d = x - center`` that split is ``A2 = -m d*|d*|^(p-2)`` where ``d*``
minimises ``<A, d> + (m/p) |d|_p^p`` over the box and the multiplier ``m`` makes ``|d*|_p = eps``
(Boyd and Vandenberghe, Convex Optimization, section 5.5.3). Free elements get ``A2 = A``, so where
the ball lies inside the range the result is the plain dual-norm bound.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.arrays import to_tensor, where, widened
from certify.core.errors import BadInput
from certify.core.graph import Array, Shape
from certify.core.linear_minimum import (
    dual_norm,
    over_ball,
    over_ball_rigorous,
    over_box,
    over_box_rigorous,
)
from certify.core.multiplier import Reach, fill, level
from certify.core.region_base import Region, every, register
from certify.core.region_centred import Centred, require

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor


class Ball(Centred):
    """``|x - center|_p <= eps`` within ``clip``; ``eps`` is one number or one per example."""

    eps: Array

    @classmethod
    def examples(cls) -> tuple[Region, ...]:
        """See `Region.examples`."""
        return _examples(cls)

    @property
    @abstractmethod
    def exponent(self) -> float:
        """The p of the norm."""

    def batched(self, shape: Shape) -> Self:
        """See `Region.batched`."""
        if self.shape == tuple(shape):
            return self
        region = self._fitted(tuple(shape))
        if any(s != 1 for s in region.eps.shape[1:]):
            raise BadInput(f"{type(self).__name__}: eps has shape {tuple(self.eps.shape)}; give "
                           "one number or one per example")
        if self.clip is not None:
            gap = abs(region._nearest() - widened(region.center)).reshape(region.batch, -1)
            distance = (gap**self.exponent).sum(-1) ** (1 / self.exponent)
            eps = widened(region.eps).reshape(-1) + 0 * distance
            require(distance <= eps, f"{type(self).__name__}: the ball does not meet the range",
                    distance, eps)
        return region

    def minimum(self, A: Tensor, rigorous: bool = False) -> Tensor:
        """Exact without a range; with one, the best split up to the accuracy of the multiplier."""
        a = self._coefficients(A, rigorous)
        center, eps = self._ball(a)
        p = self.exponent
        ball = over_ball_rigorous if rigorous else over_ball
        if self.clip is None:
            q = float("inf") if p == 1 else p / (p - 1)
            return ball(a, center, eps, dual_norm(a, q, rigorous))
        box = over_box_rigorous if rigorous else over_box
        reach = self._reach(a)
        to_ball, norm = fill(a, reach)[:2] if p == 1 else self._share(a, reach, rigorous)
        return box(a - to_ball, *self._middle(a)) + ball(to_ball, center, eps, norm)

    def _share(self, a: Tensor, reach: Reach, rigorous: bool) -> tuple[Tensor, Tensor]:
        """The ball's part of ``a`` and its dual norm, for p > 1."""
        p = self.exponent
        multiplier, move, free = level(a.detach(), reach, p)
        clamped = -multiplier * move.sign() * move.abs() ** (p - 1)
        share = where(free, a, clamped)
        return share, dual_norm(share, p / (p - 1), rigorous)

    def _ball(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """``center`` as ``(B, n)`` and ``eps`` as ``(B or 1, 1)``."""
        return self._cached("ball", like, lambda: (self._flat(self.center, like),
                                                   self._flat(self.eps, like)))

    def _reach(self, like: Tensor) -> Reach:
        """How far each element may move from the centre, inside the bounding box."""

        def make() -> Reach:
            center = widened(self.center)
            lower, upper = self.ends()
            return Reach(self._flat(lower - center, like).unsqueeze(1),
                         self._flat(upper - center, like).unsqueeze(1),
                         self._flat(self.eps, like).unsqueeze(-1))

        return self._cached("reach", like, make)

    def minimiser(self, A: Tensor) -> Tensor:
        """The point where ball and box parts of the bound agree, up to rounding."""
        a, p = self._coefficients(A).detach(), self.exponent
        reach = self._reach(a)
        move = fill(a, reach)[2] if p == 1 else level(a, reach, p)[1]
        center = self._ball(a)[0].unsqueeze(1)
        return self.project((center + move).reshape(move.shape[0], A.shape[1], *self._shape()))

    def project(self, x: Tensor) -> Tensor:
        """Into the ball, then into the range; for p = 2 the nearest point of each in turn."""
        place = partial(to_tensor, dtype=x.dtype, device=x.device)
        center, eps = place(self.center).unsqueeze(1), place(self.eps).unsqueeze(1)
        move = self._into_ball(x - center, eps)
        inside = self._clamp(center + move)
        if self.clip is None:
            return inside
        return self._towards_range(inside, center, eps)

    def _towards_range(self, inside: Tensor, center: Tensor, eps: Tensor) -> Tensor:
        """Points of the range that left the ball (the centre lies outside the range), put back.

        The ball holds the point of the range nearest to its centre, and both sets are convex.
        """
        import torch

        near = to_tensor(self._nearest(), inside.dtype, inside.device).unsqueeze(1)
        base = self._clamp(near.expand_as(inside))
        limit = torch.maximum(eps, self._norm(base - center))
        outside = self._norm(inside - center) > limit * (1 + 1e-15)
        if not bool(outside.any()):
            return inside
        low, high = torch.zeros_like(limit), torch.ones_like(limit)
        for _ in range(60):
            share = 0.5 * (low + high)
            good = self._norm(base + share * (inside - base) - center) <= limit
            low, high = torch.where(good, share, low), torch.where(good, high, share)
        return torch.where(outside, self._clamp(base + low * (inside - base)), inside)

    def _norm(self, move: Tensor) -> Tensor:
        """``(B, N, 1, ...)``"""
        size = move.reshape(*move.shape[:2], -1).abs()
        norm = (size**self.exponent).sum(-1) ** (1 / self.exponent)
        return norm.reshape(*norm.shape, *(1,) * (move.ndim - 2))

    def _into_ball(self, move: Tensor, eps: Tensor) -> Tensor:
        """``move`` scaled back to length eps where it is longer."""
        norm = self._norm(move)
        return move * (eps / norm.where(norm > eps, 1.0)).where(norm > eps, 1.0)

    def contains(self, x: Any, slack: float = 0.0) -> Array:
        """The range exactly, the norm to float64 rounding."""
        self._shape()
        point, beside = self._points(x)
        gap = abs(point - beside(widened(self.center)))
        gap = gap.reshape(*gap.shape[:2], -1)
        norm = (gap**self.exponent).sum(-1) ** (1 / self.exponent)
        eps = beside(widened(self.eps))
        limit = eps.reshape(eps.shape[0], 1) * (1 + slack)
        return (norm <= limit) & every(self._in_range(point, beside, slack))


def _examples(make: Any) -> tuple[Region, ...]:
    """Plain; clipped with one radius per example; outside the range; wild scales."""
    image = np.linspace(0.02, 0.98, 12).reshape(1, 3, 4)
    outside = np.array([[-0.25, 0.5, 1.1, 0.0, 1.0]])
    wild = np.ldexp(1.0, np.array([[-9, -3, 0, 4, 6]]))
    return (
        make(image, 0.5, None).batched((3, 4)),
        make(np.concatenate([image, 1 - image]), np.array([0.3, 0.9]), (0, 1)).batched((3, 4)),
        make(outside, 0.6, (np.zeros(5), 1.0)).batched((5,)),
        make(wild, 3.0, (0.0, 64.0)).batched((1, 5)),
        make(image, 0.0, (0, 1)).batched((3, 4)),
        make(image, 1e-3, (0, 1)).batched((3, 4)),
    )


@register
@dataclass(frozen=True, eq=False)
class L2(Ball):
    """``|x - center|_2 <= eps`` within ``clip = (low, high)``.

    Raises:
        BadInput: NaN, infinity, a negative radius, or nothing of the ball inside the range.
    """

    center: Array
    eps: Array
    clip: Any = None

    @property
    def exponent(self) -> float:
        """2."""
        return 2.0


@register
@dataclass(frozen=True, eq=False)
class L1(Ball):
    """``|x - center|_1 <= eps`` within ``clip = (low, high)``.

    Raises:
        BadInput: NaN, infinity, a negative radius, or nothing of the ball inside the range.
    """

    center: Array
    eps: Array
    clip: Any = None

    @property
    def exponent(self) -> float:
        """1."""
        return 1.0

    def _into_ball(self, move: Tensor, eps: Tensor) -> Tensor:
        """The nearest point of the L1 ball (Duchi et al., ICML 2008, figure 1)."""
        import torch

        flat, radius = move.reshape(*move.shape[:2], -1), eps.reshape(*eps.shape[:2], 1)
        size = flat.abs()
        ordered = size.sort(-1, descending=True).values
        count = torch.arange(1, size.shape[-1] + 1, dtype=move.dtype, device=move.device)
        cut = (ordered.cumsum(-1) - radius) / count
        rank = (ordered > cut).sum(-1, keepdim=True).clamp(min=1)
        threshold = cut.gather(-1, rank - 1).clamp(min=0)
        return (flat.sign() * (size - threshold).clamp(min=0)).reshape(move.shape)


@register
@dataclass(frozen=True, eq=False)
class Lp(Ball):
    """``|x - center|_p <= eps`` within ``clip = (low, high)``, for any finite ``p >= 1``.

    Raises:
        BadInput: as for `L2`; also p below 1, infinite or NaN.
    """

    center: Array
    eps: Array
    p: float
    clip: Any = None

    def __post_init__(self) -> None:
        if not 1 <= self.p < float("inf"):
            raise BadInput(f"Lp: p must be at least 1 and finite, got {self.p}; "
                           "for the maximum norm use Linf")
        super().__post_init__()

    @classmethod
    def examples(cls) -> tuple[Region, ...]:
        """See `Region.examples`."""
        kinds = (lambda c, e, clip, p=p: cls(c, e, p, clip) for p in (1.5, 3.0))
        return tuple(r for kind in kinds for r in _examples(kind))

    @property
    def exponent(self) -> float:
        """p."""
        return float(self.p)
