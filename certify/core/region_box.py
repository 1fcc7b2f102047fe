"""Boxes: given by their ends, or as a maximum-norm ball around a centre."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from certify.core.arrays import expand, fit, unify, where, widened
from certify.core.errors import BadInput
from certify.core.graph import Array, Shape
from certify.core.linear_minimum import over_box, over_box_rigorous
from certify.core.region_base import Region, every, register
from certify.core.region_centred import Centred, require, require_finite

if TYPE_CHECKING:
    from torch import Tensor


class BoxShaped(Region):
    """The rules shared by every region that is a box."""

    def minimum(self, A: Tensor, rigorous: bool = False) -> Tensor:
        """``A.mid - |A|.rad``."""
        a = self._coefficients(A, rigorous)
        mid, rad = self._middle(a)
        return over_box_rigorous(a, mid, rad) if rigorous else over_box(a, mid, rad)

    def minimiser(self, A: Tensor) -> Tensor:
        """The corner that ``A`` points away from."""
        self._coefficients(A)
        lower, upper = self._inside(A)
        corner: Tensor = where(A >= 0, lower.unsqueeze(1), upper.unsqueeze(1))
        return corner

    def project(self, x: Tensor) -> Tensor:
        """The nearest point of the box in every norm."""
        return self._clamp(x)


@register
@dataclass(frozen=True, eq=False)
class Box(BoxShaped):
    """``lower <= x <= upper``.

    Attributes:
        lower, upper: arrays of one shape (see `Region.batched`), or scalars for every element.

    Raises:
        BadInput: NaN, infinity, or ``lower > upper``; the message names the index.
    """

    lower: Array
    upper: Array
    cut_axis: ClassVar[tuple[str, ...]] = ("lower", "upper")

    def __post_init__(self) -> None:
        lower, upper = unify(self.lower, self.upper)
        if lower.shape != upper.shape:
            if lower.ndim and upper.ndim:
                raise BadInput(f"Box: lower has shape {tuple(lower.shape)}, upper "
                               f"{tuple(upper.shape)}; they must be equal")
            shape = tuple(lower.shape) or tuple(upper.shape)
            lower, upper = expand(lower, shape), expand(upper, shape)
        require_finite("Box: lower", lower)
        require_finite("Box: upper", upper)
        require(lower <= upper, "Box: lower is above upper", lower, upper)
        self._set(lower=lower, upper=upper)

    @classmethod
    def examples(cls) -> tuple[Region, ...]:
        """An ordinary box, a batch with points and wild scales, a scalar input."""
        wild = np.ldexp(1.0, np.array([-40, -3, 0, 7, 40]))
        return (
            Box(-1.0, 1.0).batched((2, 3)),
            Box(np.stack([-wild, wild / 3]), np.stack([wild / 7, wild / 3])).batched((1, 5)),
            Box(0.1, 0.3).batched(()),
        )

    def batched(self, shape: Shape) -> Self:
        """See `Region.batched`."""
        if self.shape == tuple(shape):
            return self
        shape = tuple(shape)
        return self._with(shape=shape, lower=fit(self.lower, shape, "Box"),
                          upper=fit(self.upper, shape, "Box"))

    def ends(self) -> tuple[Array, Array]:
        """The ends themselves: float64 holds every narrower float."""
        self._shape()
        return widened(self.lower), widened(self.upper)

    def contains(self, x: Any, slack: float = 0.0) -> Array:
        """Exact when ``slack`` is 0."""
        self._shape()
        point, beside = self._points(x)
        lower, upper = beside(self.lower), beside(self.upper)
        spare = slack * (abs(lower) + abs(upper))
        return every((point >= lower - spare) & (point <= upper + spare))


@register
@dataclass(frozen=True, eq=False)
class Linf(Centred, BoxShaped):
    """``|x_i - center_i| <= eps_i`` for every element, within the data range ``clip``.

    Attributes:
        center: the input(s).
        eps: one number, one per example ``(B,)``, or one per element or channel.
        clip: ``(low, high)``, scalars or arrays; None for no range.

    Raises:
        BadInput: NaN, infinity, a negative radius, or nothing of the ball inside the range.
    """

    center: Array
    eps: Array
    clip: Any = None

    @classmethod
    def examples(cls) -> tuple[Region, ...]:
        """Plain, clipped, per example, per element, with a centre outside the range."""
        image = np.linspace(-0.05, 1.05, 12).reshape(1, 3, 4)
        return (
            Linf(image, 8 / 255).batched((3, 4)),
            Linf(np.concatenate([image, 1 - image]), np.array([0.1, 0.3]), (0, 1)).batched((3, 4)),
            Linf(image[0], np.full((3, 1), 0.1), (0.0, np.ones(4))).batched((1, 3, 4)),
            Linf(image, 0.0).batched((3, 4)),
        )

    def batched(self, shape: Shape) -> Self:
        """See `Region.batched`."""
        if self.shape == tuple(shape):
            return self
        region = self._fitted(tuple(shape))
        lower, upper = region.ends()
        require(lower <= upper, "Linf: the ball does not meet the range", lower, upper)
        return region

    def inner_ends(self) -> tuple[Array, Array]:
        """Ends rounded inward, so that a projected point is a member exactly."""
        return self._range_of_ball(inward=True)

    def contains(self, x: Any, slack: float = 0.0) -> Array:
        """Exact when ``slack`` is 0."""
        self._shape()
        point, beside = self._points(x)
        center, radius = beside(widened(self.center)), beside(widened(self.eps))
        gap = point - center
        back = gap - point
        tail = (point - (gap - back)) + (-center - back)  # gap + tail is the exact difference
        limit = radius * (1 + slack)
        near = (abs(gap) < limit) | ((gap == limit) & (tail <= 0)) | ((gap == -limit) & (tail >= 0))
        return every(near & self._in_range(point, beside, slack))
