"""Scalar functions whose hull has finitely many corners: clips and staircases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from certify.ops.oracle import EPS, TINY, Candidate, Profile

if TYPE_CHECKING:
    from torch import Tensor

Point = tuple["Tensor", "Tensor"]


def no_points(sign: int, low: Tensor, high: Tensor) -> Iterator[Point]:
    """For functions that are straight between their ends."""
    return iter(())


@dataclass(frozen=True)
class Corners(Profile):
    """A function whose hull over an interval is spanned by its ends and a few more corners.

    Attributes:
        points: ``(sign, low, high)`` -> corners ``(z, h)`` inside the interval (or again an end of
            it), h being the value or a one-sided limit, whichever ``sign`` makes lower.
        size: ``(z, value)`` -> magnitude that values are accurate to, 4 roundings; None: exact.
    """

    points: Callable[[int, Tensor, Tensor], Iterator[Point]] = field(default=no_points)
    size: Callable[[Tensor, Tensor], Tensor] | None = None

    def slack(self, z: Tensor, value: Tensor) -> Tensor:
        """See `Profile.slack`."""
        import torch

        return torch.zeros_like(z) if self.size is None else 4 * EPS * self.size(z, value)

    def corners(self, sign: int, low: Tensor, high: Tensor) -> Iterator[Point]:
        """Ends and corners."""
        yield low, self.f(low)
        yield high, self.f(high)
        yield from self.points(sign, low, high)

    def candidates(
        self, sign: int, low: Tensor, high: Tensor, k: Tensor, *, rough: bool = False
    ) -> Iterator[Candidate]:
        """See `Profile.candidates`."""
        for z, value in self.corners(sign, low, high):
            if rough:
                yield Candidate(z, sign * value, 0.0)
                continue
            # Value minus zero is exact, so constants stay exact.
            rounding = (EPS * (value.abs() + 4 * (k * z).abs()) + TINY) * (k != 0)
            yield Candidate(z, sign * value, rounding + self.slack(z, value))

    def slope_range(self, sign: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The first and the last slope of the convex envelope."""
        import torch

        least, most = torch.full_like(low, inf), torch.full_like(low, -inf)
        first, last = sign * self.f(low), sign * self.f(high)
        for z, value in self.corners(sign, low, high):
            up = (sign * value - first) / (z - low)
            down = (last - sign * value) / (high - z)
            least = torch.where(z > low, torch.minimum(least, up), least)
            most = torch.where(z < high, torch.maximum(most, down), most)
        none = least > most
        return torch.where(none, 0.0, least), torch.where(none, 0.0, most)
