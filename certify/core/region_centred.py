"""Regions around a centre, within a data range: their arrays, checks and bounding boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from certify.core.arrays import (
    expand,
    finite,
    first_index,
    fit,
    fit_side,
    larger,
    smaller,
    unify,
    widened,
)
from certify.core.errors import BadInput
from certify.core.graph import Array, Shape
from certify.core.outward import add_down, add_up
from certify.core.region_base import Region


def require(good: Array, problem: str, *values: Array) -> None:
    """Raise `BadInput` with the index and the values there, unless ``good`` holds everywhere."""
    at = first_index(~good)
    if at is not None:
        shown = ", ".join(repr(float(expand(v, tuple(good.shape))[at])) for v in values)
        raise BadInput(f"{problem} at index {at}: {shown}")


def require_finite(what: str, value: Array) -> None:
    """Raise `BadInput` naming the first index that is NaN or infinite."""
    require(finite(value), f"{what} is not finite", value)


class Centred(Region):
    """A region around ``center`` and within ``clip``; its size is in the field ``size_field``.

    Not a dataclass itself: every kind declares its fields, in the order a user writes them.
    """

    center: Array
    clip: Any
    cut_axis: ClassVar[tuple[str, ...]] = ("center",)
    size_field: ClassVar[str] = "eps"

    def __post_init__(self) -> None:
        name, what = type(self).__name__, self.size_field
        low, high = self._given_clip()
        center, size, *sides = unify(self.center, self.size, *([] if low is None else [low, high]))
        require_finite(f"{name}: center", center)
        require_finite(f"{name}: {what}", size)
        require(size >= 0, f"{name}: {what} is negative", size)
        if sides:
            require(sides[0] <= sides[1], f"{name}: the range is empty or NaN", *sides)
        self._set(center=center, clip=tuple(sides) or None, **{what: size})

    @property
    def size(self) -> Array:
        """The radius (or count) of the region."""
        return getattr(self, self.size_field)

    def _given_clip(self) -> tuple[Any, Any]:
        if self.clip is None:
            return None, None
        if not isinstance(self.clip, (tuple, list)) or len(self.clip) != 2:
            raise BadInput(f"{type(self).__name__}: clip must be a pair (low, high), "
                           f"got {type(self.clip).__name__}")
        return self.clip[0], self.clip[1]

    def _fitted(self, shape: Shape) -> Self:
        """The same region with arrays that broadcast against ``(B, *shape)``; not yet checked."""
        name = type(self).__name__
        center = fit(self.center, shape, f"{name}: center")
        clip = self.clip and tuple(fit_side(c, self.center, shape, f"{name}: clip")
                                   for c in self.clip)
        size = fit_side(self.size, self.center, shape, f"{name}: {self.size_field}")
        return self._with(shape=shape, center=center, clip=clip, **{self.size_field: size})

    def _arrays(self) -> Sequence[tuple[str, Array]]:
        sides = zip(("clip.0", "clip.1"), self.clip or (), strict=False)
        return [("center", self.center), (self.size_field, self.size), *sides]

    def _with_arrays(self, changes: dict[str, Array]) -> Self:
        plain = {k: v for k, v in changes.items() if not k.startswith("clip.")}
        if self.clip is not None:
            plain["clip"] = tuple(changes.get(f"clip.{i}", c) for i, c in enumerate(self.clip))
        return self._with(**plain)

    def ends(self) -> tuple[Array, Array]:
        """``center`` plus and minus ``eps``, outward, within the range."""
        return self._range_of_ball(inward=False)

    def _range_of_ball(self, inward: bool) -> tuple[Array, Array]:
        shape = (self.batch, *self._shape())
        center, eps = widened(self.center), expand(widened(self.size), shape)
        down, up = (add_up, add_down) if inward else (add_down, add_up)
        lower, upper = down(center, -eps), up(center, eps)
        if self.clip is not None:
            low, high = (expand(widened(c), shape) for c in self.clip)
            lower, upper = larger(lower, low), smaller(upper, high)
        return lower, upper

    def _in_range(self, point: Array, beside: Callable[[Array], Array], slack: float) -> Array:
        """Elementwise membership of the data range."""
        if self.clip is None:
            return point == point
        low, high = beside(widened(self.clip[0])), beside(widened(self.clip[1]))
        spare = slack * (1 + abs(point)) if slack else 0.0
        return (point >= low - spare) & (point <= high + spare)

    def _range(self) -> tuple[Array, Array]:
        """The data range as float64 ``(B, *shape)``, infinite where there is none."""
        shape = (self.batch, *self._shape())
        center = widened(self.center)
        if self.clip is None:
            nothing = center * 0 + np.inf
            return -nothing, nothing
        low, high = (expand(widened(c), shape) for c in self.clip)
        return low, high

    def _nearest(self) -> Array:
        """The point of the data range nearest to the centre, float64 ``(B, *shape)``."""
        low, high = self._range()
        center = widened(self.center)
        return smaller(larger(center, low), high)
