"""A finite union of boxes, and ellipsoids: regions given by lists of arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from certify.core.arrays import expand, is_tensor, to_tensor, unify, widened
from certify.core.errors import BadInput
from certify.core.graph import Array, Shape
from certify.core.linear_minimum import over_box, over_box_rigorous, sound
from certify.core.outward import dot_error, midpoint_radius
from certify.core.region_base import Region, register
from certify.core.region_centred import require, require_finite

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True, eq=False)
class UnionOfBoxes(Region):
    """Every point of any of M boxes per example (Mohapatra et al. 2020, "implicit splitting").

    One relaxation over the hull serves all boxes; only linear functions are bounded box by box.

    Attributes:
        lower, upper: ``(M, *shape)`` or ``(B, M, *shape)``.

    Raises:
        BadInput: NaN, infinity, or lower above upper.
    """

    lower: Array
    upper: Array
    cut_axis = ("lower", "upper")
    loose_hull = True

    def __post_init__(self) -> None:
        lower, upper = unify(self.lower, self.upper)
        if lower.shape != upper.shape or not lower.ndim:
            raise BadInput(f"UnionOfBoxes: lower has shape {tuple(lower.shape)}, upper "
                           f"{tuple(upper.shape)}; give (boxes, *shape) twice")
        require_finite("UnionOfBoxes: lower", lower)
        require_finite("UnionOfBoxes: upper", upper)
        require(lower <= upper, "UnionOfBoxes: lower is above upper", lower, upper)
        self._set(lower=lower, upper=upper)

    @classmethod
    def examples(cls) -> tuple[Region, ...]:
        """Overlapping and separate boxes, points, one box."""
        rng = np.random.default_rng(0)
        low = rng.normal(size=(2, 3, 2, 3))
        return (
            UnionOfBoxes(low, low + rng.random((2, 3, 2, 3))).batched((2, 3)),
            UnionOfBoxes([[0.0, 1.0], [2.0, -1.0]], [[0.0, 1.0], [3.0, 4.0]]).batched((2,)),
            UnionOfBoxes(np.full((1, 1, 4), -0.5), np.full((1, 1, 4), 0.25)).batched((1, 4)),
        )

    def batched(self, shape: Shape) -> Self:
        """See `Region.batched`."""
        shape = tuple(shape)
        if self.shape == shape:
            return self
        sides = []
        for side in (self.lower, self.upper):
            # as other regions, without the model's own leading 1 too
            leads = [side.shape[: side.ndim - len(s)] for s in (shape, shape[1:])
                     if (s == shape or shape[:1] == (1,))
                     and tuple(side.shape[side.ndim - len(s):]) == s]
            lead = next((found for found in leads if len(found) in (1, 2)), None)
            if lead is None:
                raise BadInput(f"UnionOfBoxes of shape {tuple(side.shape)} does not fit inputs of "
                               f"shape {shape}: give (boxes, *{shape})")
            sides.append(side.reshape(*(1,) * (2 - len(lead)), *lead, *shape))
        if not sides[0].shape[1]:
            raise BadInput("UnionOfBoxes: no box is no region; give at least one")
        return self._with(shape=shape, lower=sides[0], upper=sides[1])

    def _reshaped(self, shape: Shape) -> Self:
        sides = {n: v.reshape(*v.shape[:2], *shape) for n, v in self._arrays()}
        return self._with(shape=shape, **sides)

    def ends(self) -> tuple[Array, Array]:
        """The hull of all boxes."""
        self._shape()
        lower, upper = widened(self.lower), widened(self.upper)
        if is_tensor(lower):
            return lower.amin(1), upper.amax(1)
        return lower.min(1), upper.max(1)

    def parts_of_affine(self) -> tuple[Array, Array]:
        """The boxes."""
        return widened(self.lower), widened(self.upper)

    def affine_range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """See `Region.affine_range`."""
        return lower.amin(1), upper.amax(1)

    def _boxes(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Middle and radius of every box, ``(B, M, n)``."""

        def make() -> tuple[Tensor, Tensor]:
            mid, rad = midpoint_radius(widened(self.lower), widened(self.upper))
            count = self.lower.shape[1]
            return tuple(to_tensor(v, like.dtype, like.device).reshape(  # type: ignore[return-value]
                v.shape[0], count, -1) for v in (mid, rad))

        return self._cached("boxes", like, make)

    def _minima(self, A: Tensor, rigorous: bool) -> Tensor:
        """Minima over every box, ``(B, M, R)``."""
        a = self._coefficients(A, rigorous)
        mid, rad = self._boxes(a)
        B, M, n = mid.shape
        rows = a.expand(B, *a.shape[1:]).unsqueeze(1).expand(B, M, *a.shape[1:])
        flat = rows.reshape(B * M, a.shape[1], n)
        box = over_box_rigorous if rigorous else over_box
        return box(flat, mid.reshape(B * M, n), rad.reshape(B * M, n)).reshape(B, M, a.shape[1])

    def minimum(self, A: Tensor, rigorous: bool = False) -> Tensor:
        """Exact: the least over the boxes."""
        return self._minima(A, rigorous).amin(1)

    def minimiser(self, A: Tensor) -> Tensor:
        """A corner of the best box."""
        import torch

        a = self._coefficients(A).detach()
        best = self._minima(A.detach(), False).argmin(1)  # (B, R)
        lower, upper = self._sides(a)
        index = best.unsqueeze(-1).expand(*best.shape, lower.shape[-1])
        low, high = lower.gather(1, index), upper.gather(1, index)
        middle = 0.5 * low + 0.5 * high
        point = torch.where(a > 0, low, torch.where(a < 0, high, middle))
        return point.reshape(*best.shape, *self._shape())

    def _sides(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Ends of every box, ``(B, M, n)``."""
        B, M = self.lower.shape[:2]
        return tuple(to_tensor(v, like.dtype, like.device).reshape(  # type: ignore[return-value]
            B, M, -1) for v in (self.lower, self.upper))

    def project(self, x: Tensor) -> Tensor:
        """Into the nearest box."""
        lower, upper = (v.unsqueeze(1) for v in self._sides(x))  # (B, 1, M, n)
        flat = x.reshape(*x.shape[:2], 1, -1)
        inside = flat.maximum(lower).minimum(upper)
        best = (inside - flat).square().sum(-1, keepdim=True).argmin(2, keepdim=True)
        found = inside.gather(2, best.expand(*best.shape[:3], flat.shape[-1]))
        return found.reshape(x.shape)

    def contains(self, x: Any, slack: float = 0.0) -> Array:
        """Whether any box holds the point; exact when ``slack`` is 0."""
        point, _ = self._points(x)
        point = point.reshape(*point.shape[:2], 1, -1)
        lower, upper = widened(self.lower), widened(self.upper)
        if is_tensor(point):
            lower, upper = (to_tensor(v, point.dtype, point.device) for v in (lower, upper))
        lower, upper = (v.reshape(v.shape[0], 1, v.shape[1], -1) for v in (lower, upper))
        spare = slack * (abs(lower) + abs(upper))
        inside = (point >= lower - spare) & (point <= upper + spare)
        found: Array = inside.all(-1).any(-1)
        return found


@register
@dataclass(frozen=True, eq=False)
class Ellipsoid(Region):
    """``center + axes u`` with ``|u|_2 <= 1``, over the flattened input.

    Attributes:
        center: the input(s).
        axes: ``(n, k)`` or ``(B, n, k)`` with k <= n; its independent columns are half-axes. Fewer
            than n make it flat.

    Raises:
        BadInput: NaN or infinity, or axes that are too many or (nearly) dependent.
    """

    center: Array
    axes: Array
    cut_axis = ("center", "axes")
    loose_hull = True

    def __post_init__(self) -> None:
        center, axes = unify(self.center, self.axes)
        require_finite("Ellipsoid: center", center)
        require_finite("Ellipsoid: axes", axes)
        if axes.ndim not in (2, 3) or not 0 < axes.shape[-1] <= axes.shape[-2]:
            raise BadInput(f"Ellipsoid: axes of shape {tuple(axes.shape)}; give (n, n), or (n, k) "
                           "with fewer columns")
        self._set(center=center, axes=axes)

    @classmethod
    def examples(cls) -> tuple[Region, ...]:
        """Stretched and turned; one per example; a ball; a disc."""
        rng = np.random.default_rng(1)
        return (
            Ellipsoid(np.zeros((2, 2)), np.diag([1.0, 0.1, 3.0, 1.0]) + 0.1).batched((2, 2)),
            Ellipsoid(rng.normal(size=(2, 3)), rng.normal(size=(2, 3, 3))).batched((3,)),
            Ellipsoid(np.ones((1, 4)), 0.5 * np.eye(4)).batched((1, 4)),
            Ellipsoid(rng.normal(size=(2, 5)), rng.normal(size=(5, 2))).batched((5,)),
        )

    def batched(self, shape: Shape) -> Self:
        """See `Region.batched`."""
        from certify.core.arrays import fit

        shape = tuple(shape)
        if self.shape == shape:
            return self
        n = int(np.prod(shape))
        center = fit(self.center, shape, "Ellipsoid")
        axes = self.axes.reshape(-1, *self.axes.shape[-2:])
        if axes.shape[-2] != n or len(axes) not in (1, len(center)):
            raise BadInput(f"Ellipsoid: axes of shape {tuple(self.axes.shape)} do not fit "
                           f"{len(center)} inputs of {n} elements")
        plain = axes.detach().cpu().numpy() if is_tensor(axes) else axes
        worst = float(np.linalg.cond(plain.astype(np.float64)).max())
        if not worst < 1e8:
            raise BadInput(f"Ellipsoid: the axes are nearly dependent (condition {worst:.2g}); "
                           "give independent ones")
        return self._with(shape=shape, center=center,
                          axes=expand(axes, (len(center), *axes.shape[1:])))

    def _reshaped(self, shape: Shape) -> Self:
        return self._with(shape=shape, center=self.center.reshape(-1, *shape))

    def ends(self) -> tuple[Array, Array]:
        """``center +- |rows of axes|_2``, outward."""
        axes, center = widened(self.axes), widened(self.center)
        reach = (axes**2).sum(-1) ** 0.5 * (1 + 2.0**-40)
        reach = reach.reshape(center.shape) + 2.0**-45 * abs(center) + 2.0**-500
        return center - reach, center + reach

    def _parts(self, like: Tensor) -> tuple[Tensor, Tensor]:
        def make() -> tuple[Tensor, Tensor]:
            return (self._flat(self.center, like),
                    to_tensor(self.axes, like.dtype, like.device))

        return self._cached("parts", like, make)

    def minimum(self, A: Tensor, rigorous: bool = False) -> Tensor:
        """``A.center - |axes^T A|_2``."""
        import torch

        a = self._coefficients(A, rigorous)
        center, axes = self._parts(a)
        turned = a @ axes
        if not rigorous:
            plain: Tensor = torch.linalg.vector_norm(turned, dim=-1)
            return over_box(a, center, torch.zeros_like(center)) - plain
        off = dot_error(a.shape[-1]) * (a.abs() @ axes.abs())
        norm = torch.linalg.vector_norm(turned.abs() + 2 * off, dim=-1)
        middle = over_box_rigorous(a, center, torch.zeros_like(center))
        return sound(middle - norm, dot_error(a.shape[-1] + 8) * (norm + middle.abs())
                     + 2.0**-500)

    def minimiser(self, A: Tensor) -> Tensor:
        """Where the plane touches."""
        import torch

        a = self._coefficients(A).detach()
        center, axes = self._parts(a)
        turned = a @ axes
        length = torch.linalg.vector_norm(turned, dim=-1, keepdim=True)
        move = -(turned / torch.where(length > 0, length, 1.0)) @ axes.mT
        found = center.unsqueeze(1) + move
        return found.reshape(*found.shape[:2], *self._shape())

    def _coordinates(self, x: Tensor) -> Tensor:
        """Coordinates u of points ``(B, N, n)``; of the nearest ones in its plane."""
        import torch

        center, axes = self._parts(x)
        away = (x - center.unsqueeze(1)).mT
        square = axes.shape[-1] == axes.shape[-2]
        found: Tensor = torch.linalg.solve(axes, away) if square else \
            torch.linalg.pinv(axes) @ away
        return found.mT

    def project(self, x: Tensor) -> Tensor:
        """Into its plane if it is flat, then along the line to the centre."""
        import torch

        center, axes = self._parts(x)
        flat = x.reshape(*x.shape[:2], -1)
        u = self._coordinates(flat)
        length = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        share = torch.where(length > 1, (1 - 2.0**-20) / length.clamp(min=1e-30), 1.0)
        square = axes.shape[-1] == axes.shape[-2]
        away = flat - center.unsqueeze(1) if square else u @ axes.mT
        return (center.unsqueeze(1) + share * away).reshape(x.shape)

    def contains(self, x: Any, slack: float = 0.0) -> Array:
        """Up to the rounding of a linear solve; a point within that of the border is outside.

        Without slack, a point that floats put beside the plane of a flat one is outside too.
        """
        import torch

        point, _ = self._points(x)
        tensor = torch.as_tensor(point)
        flat = tensor.reshape(*tensor.shape[:2], -1)
        center, axes = self._parts(flat)
        u = self._coordinates(flat)
        length = torch.linalg.vector_norm(u, dim=-1)
        found = length <= 1 - 1e-9 + 2 * slack + (1e-9 if slack else 0.0)
        if axes.shape[-1] < axes.shape[-2]:
            near = center.unsqueeze(1) + u @ axes.mT
            size = 1 + axes.abs().sum(-1).unsqueeze(1) + center.abs().unsqueeze(1)
            found = found & ((flat - near).abs() <= 2 * slack * size).all(-1)
        answer: Array = found if is_tensor(x) else found.numpy()
        return answer


