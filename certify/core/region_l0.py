"""Few changed elements: at most k of them leave the centre, each within its range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from certify.core.arrays import larger, smaller, where, widened
from certify.core.errors import BadInput
from certify.core.graph import Array, Shape
from certify.core.linear_minimum import dot, slack, sound
from certify.core.outward import dot_error
from certify.core.region_base import Region, every, register
from certify.core.region_centred import Centred, require, require_finite

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True, eq=False)
class L0(Centred):
    """``x_i != center_i`` for at most ``k`` elements, and ``low <= x <= high`` for all.

    Attributes:
        center: the input(s); an element outside the range must change and counts towards ``k``.
        k: number of elements, one for all or one per example.
        clip: ``(low, high)``, scalars or arrays, finite; required.

    Raises:
        BadInput: no range, a fractional or negative ``k``, or more than ``k`` elements of the
            centre outside the range.
    """

    center: Array
    k: Array
    clip: Any
    size_field = "k"

    def __post_init__(self) -> None:
        if self.clip is None:
            raise BadInput("L0: only the range bounds a changed element: give clip=(low, high)")
        super().__post_init__()
        require_finite("L0: low", self.clip[0])
        require_finite("L0: high", self.clip[1])
        require(self.k % 1 == 0, "L0: k is not a whole number", self.k)

    @classmethod
    def examples(cls) -> tuple[Region, ...]:
        """Pixels in [0, 1]; any box, one k per example; a centre outside; nothing may change."""
        image = np.linspace(0.02, 0.98, 12).reshape(1, 3, 4)
        low = -np.arange(1.0, 6.0)
        outside = np.array([[-0.25, 0.5, 1.1, 0.0, 1.0]])
        return (
            L0(image, 3, (0, 1)).batched((3, 4)),
            L0([[-1.0, 0, 1, 2, 3], [0.0] * 5], np.array([2, 4]), (low, 4.0)).batched((5,)),
            L0(outside, 3, (0, 1)).batched((1, 5)),
            L0(image, 0, (0, 1)).batched((3, 4)),
            L0(image, 99, (0, 1)).batched((3, 4)),
        )

    def batched(self, shape: Shape) -> Self:
        """See `Region.batched`."""
        if self.shape == tuple(shape):
            return self
        region = self._fitted(tuple(shape))
        if any(s != 1 for s in region.k.shape[1:]):
            raise BadInput(f"L0: k has shape {tuple(self.k.shape)}; give one number or one per "
                           "example")
        forced = region._forced().reshape(region.batch, -1).sum(-1)
        allowed = widened(region.k).reshape(-1) + 0 * forced
        require(forced <= allowed, "L0: more elements outside the range than k allows",
                forced, allowed)
        return region

    def _forced(self) -> Array:
        """Elements whose centre lies outside the range, bool ``(B, *shape)``."""
        low, high = self._range()
        center = widened(self.center)
        return (center < low) | (center > high)

    def ends(self) -> tuple[Array, Array]:
        """The range; just the centre where no change is left to make."""
        low, high = self._range()
        forced = self._forced()
        ones = (1,) * len(self._shape())
        used = forced.reshape(self.batch, -1).sum(-1).reshape(self.batch, *ones)
        still = (widened(self.k) <= used) & ~forced
        center = widened(self.center)
        return (where(still, center, where(forced, low, smaller(low, center))),
                where(still, center, where(forced, high, larger(high, center))))

    def _parts(self, like: Tensor) -> tuple[Tensor, ...]:
        """``(low, high, center, forced, free count)``, flat, ``(B, 1, n)`` and ``(B, 1, 1)``."""

        def make() -> tuple[Tensor, ...]:
            low, high = self._range()
            forced = self._forced()
            used = forced.reshape(self.batch, -1).sum(-1)
            left = widened(self.k).reshape(-1) - used
            flat = [self._flat(v, like).unsqueeze(1) for v in (low, high, self.center)]
            return (*flat, self._flat(forced, like).unsqueeze(1).bool(),
                    self._flat(left, like).unsqueeze(1))

        return self._cached("parts", like, make)

    def _chosen(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Gain of moving each element, ``(B, R, n)``, and which elements move."""
        import torch

        low, high, center, forced, left = self._parts(a)
        best = torch.where(a > 0, low, high)
        gain = (a * (best - center)).where(~forced, 0.0)
        with torch.no_grad():
            moved = (_largest(-gain, left) & (gain < 0)) | forced
        return a * (best - center), moved

    def minimum(self, A: Tensor, rigorous: bool = False) -> Tensor:
        """``A.center`` plus the k smallest of the elements' gains; exact."""
        a = self._coefficients(A, rigorous)
        gain, moved = self._chosen(a)
        center = self._parts(a)[2].squeeze(1)
        value = dot(a, center) + (gain * moved).sum(-1)
        if not rigorous:
            return value
        low, high = (part.squeeze(1).abs() for part in self._parts(a)[:2])
        largest = low.maximum(high).maximum(center.abs())
        # every gain is off by a few u |a| (|end| + |center|), and so is the sum of the k smallest
        error = 4 * dot_error(2 * a.shape[-1]) * dot(a.abs(), largest)
        return sound(value, error + slack(2 * a.shape[-1], largest))

    def minimiser(self, A: Tensor) -> Tensor:
        """The centre with the chosen elements at their better end."""
        import torch

        a = self._coefficients(A)
        low, high, center, _, _ = self._parts(a)
        moved = self._chosen(a)[1]
        point = torch.where(moved, torch.where(a > 0, low, high), center)
        return point.reshape(point.shape[0], A.shape[1], *self._shape())

    def project(self, x: Tensor) -> Tensor:
        """Keeps the k largest changes, clipped to the range: the nearest point in every p-norm."""
        import torch

        flat = x.reshape(*x.shape[:2], -1)
        low, high, center, forced, left = self._parts(flat)
        clipped = torch.minimum(torch.maximum(flat, low), high)
        size = ((flat - center).abs() - (flat - clipped).abs()).masked_fill(forced, -1.0)
        kept = _largest(size, left) | forced
        return torch.where(kept, clipped, center).reshape(x.shape)

    def contains(self, x: Any, slack: float = 0.0) -> Array:
        """Exact when ``slack`` is 0; the count of changes always is."""
        self._shape()
        point, beside = self._points(x)
        changed = (point != beside(widened(self.center))).reshape(*point.shape[:2], -1).sum(-1)
        k = beside(widened(self.k))
        few = changed <= k.reshape(k.shape[0], 1)
        return few & every(self._in_range(point, beside, slack))




def _largest(size: Tensor, count: Tensor) -> Tensor:
    """Mask of the ``count`` largest elements along the last axis; count is ``(B or 1, 1, 1)``."""
    import torch

    size = size.expand(max(size.shape[0], count.shape[0]), -1, -1)
    most = min(int(count.max()), size.shape[-1])
    picked = size.topk(most, dim=-1).indices
    within = torch.arange(most, device=size.device) < count
    return torch.zeros_like(size, dtype=torch.bool).scatter(-1, picked, within.expand_as(picked))
