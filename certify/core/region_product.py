"""Several model inputs at once, each in its own region."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from certify.core.errors import BadInput
from certify.core.graph import Array, Shape
from certify.core.region_base import Region, register
from certify.core.region_box import Box, Linf

if TYPE_CHECKING:
    from torch import Generator, Tensor


@register
@dataclass(frozen=True, eq=False)
class Product(Region):
    """One region per model input. Arrays, points and coefficients are tuples, one per input.

    Attributes:
        parts: the regions; a batch of one is repeated to meet the others.
        shape: stays None; the parts have their own.
    """

    parts: Sequence[Region]

    def __post_init__(self) -> None:
        if not self.parts or not all(isinstance(p, Region) for p in self.parts):
            raise BadInput("Product: give at least one region, one per model input")
        self._set(parts=tuple(self.parts))

    @classmethod
    def examples(cls) -> tuple[Region, ...]:
        """Two inputs of different shape and kind; a batch beside a single example."""
        return (
            Product([Box(-1.0, 1.0), Linf(np.full((2, 3), 0.5), 0.1)]).batched([(4,), (2, 3)]),
            Product([Linf(np.zeros((3, 2)), 0.1), Box(0.0, 1.0)]).batched([(2,), (1, 2)]),
        )

    @property
    def batch(self) -> int:
        """Number of examples."""
        return max(p.batch for p in self.parts)

    def batched(self, shape: Any) -> Self:
        """See `Region.batched`; ``shape`` is one shape per model input."""
        shapes: Sequence[Shape] = shape
        if len(shapes) != len(self.parts):
            raise BadInput(f"Product of {len(self.parts)} regions for a model with {len(shapes)} "
                           "inputs: give one region per input")
        parts = [p.batched(s) for p, s in zip(self.parts, shapes, strict=True)]
        batch = max(p.batch for p in parts)
        if any(p.batch not in (1, batch) for p in parts):
            raise BadInput(f"Product: batches of {[p.batch for p in parts]} examples do not match")
        return self._with(parts=tuple(p if p.batch == batch else p.rows([0] * batch)
                                      for p in parts))

    def ends(self) -> tuple[Array, Array]:
        """Tuples of the parts' ends."""
        lower, upper = zip(*(p.ends() for p in self.parts), strict=True)
        return lower, upper

    def bounding_box(self) -> tuple[Array, Array]:
        """Tuples of the parts' boxes."""
        lower, upper = zip(*(p.bounding_box() for p in self.parts), strict=True)
        return lower, upper

    def minimum(self, A: Sequence[Tensor | None], rigorous: bool = False) -> Tensor:
        """Sum of the parts' minima; None stands for zero coefficients."""
        used = [p.minimum(a, rigorous) for p, a in zip(self.parts, A, strict=True) if a is not None]
        if not used:
            raise BadInput("Product: every coefficient is None; give at least one")
        total = used[0]
        for value in used[1:]:
            total = total + value
            if rigorous:  # one unit in the last place, and a little more, downwards
                total = total - total.abs() * 2.0**-51 - 2.0**-500
        return total

    def minimiser(self, A: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """One point per part; where the coefficients are None, the part's projected middle."""
        rows = next(a.shape[1] for a in A if a is not None)
        like = next(a for a in A if a is not None)
        zeros = (like.new_zeros(p.batch, rows, *p._shape()) for p in self.parts)
        filled = [z if a is None else a for a, z in zip(A, zeros, strict=True)]
        return tuple(p.minimiser(a) for p, a in zip(self.parts, filled, strict=True))

    def project(self, x: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Each part by itself."""
        return tuple(p.project(v) for p, v in zip(self.parts, x, strict=True))

    def sample(self, count: int, generator: Generator | None = None) -> tuple[Tensor, ...]:
        """Each part by itself."""
        return tuple(p.sample(count, generator) for p in self.parts)

    def contains(self, x: Sequence[Any], slack: float = 0.0) -> Array:
        """Whether every part holds its point, ``(B, N)``."""
        inside = [p.contains(v, slack) for p, v in zip(self.parts, x, strict=True)]
        result = inside[0]
        for one in inside[1:]:
            result = result & one
        return result

    def rows(self, index: Any) -> Self:
        """The named examples of every part."""
        return self._with(parts=tuple(p.rows(index) for p in self.parts))


def as_inputs(region: Region, shapes: Sequence[Shape]) -> tuple[Region, ...]:
    """One batched region per model input.

    Accepts a `Product`; any region for a model with one input, also with flat arrays ``(n,)`` or
    ``(B, n)``; or a flat `Box` with as many elements as all inputs together, which is split over
    them in order (VNN-LIB numbering).

    Raises:
        BadInput: counts or shapes do not match; both are stated.
    """
    shapes = [tuple(s) for s in shapes]
    if isinstance(region, Product):
        return tuple(region.batched(shapes).parts)
    total = sum(int(np.prod(s)) for s in shapes)
    carrier = getattr(region, region.cut_axis[0])
    flat = carrier.ndim in (1, 2) and carrier.shape[-1] == total
    if len(shapes) == 1:
        only = shapes[0]
        return (region.batched((total,))._reshaped(only) if flat else region.batched(only),)
    if not flat or not isinstance(region, Box):
        raise BadInput(f"{type(region).__name__} for a model with {len(shapes)} inputs: give a "
                       f"Product with one region each, or a flat Box of {total} elements")
    return _cut(region.batched((total,)), shapes)


def _cut(region: Box, shapes: Sequence[Shape]) -> tuple[Region, ...]:
    stops = np.cumsum([0, *(int(np.prod(s)) for s in shapes)])
    pieces = [region._with(lower=region.lower[:, a:b], upper=region.upper[:, a:b], shape=None)
              for a, b in itertools.pairwise(stops)]
    return tuple(p._reshaped(s) for p, s in zip(pieces, shapes, strict=True))
