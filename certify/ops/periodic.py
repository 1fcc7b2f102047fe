"""Sine and cosine: infinitely many arcs, of which four decide."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certify.ops.oracle import EPS, TINY, Candidate, Profile, between
from certify.ops.scalar import examples, scalar, torch_function

if TYPE_CHECKING:
    from torch import Tensor

TURN = 2 * math.pi
LARGE = 2.0**30  # beyond it an angle has too few digits left: bounds are -1 and 1


@dataclass(frozen=True)
class Wave(Profile):
    """A sine wave: ``h(z) = cos(z - peak)``.

    ``sign h`` is convex on arcs of half a turn around its minima. At the stationary points of slope
    k on successive arcs, ``sign h(z) - k z`` changes by the constant -k 2 pi, so only the first and
    last arcs inside the interval matter, and those cut by its ends.
    """

    peak: float = 0.0

    def slack(self, z: Tensor, value: Tensor) -> Tensor:
        """See `Profile.slack`."""
        # Places of arcs are off by a few roundings of z, and |h'| <= 1.
        return EPS * (8 * value.abs() + 16 * z.abs()) + TINY

    def candidates(
        self, sign: int, low: Tensor, high: Tensor, k: Tensor, *, rough: bool = False
    ) -> Iterator[Candidate]:
        """See `Profile.candidates`."""
        import torch

        large = torch.maximum(low.abs(), high.abs()) > LARGE
        reach = ~large * EPS * 16 * low.abs().maximum(high.abs()) * (1 + k.abs())
        for z in (low, high):
            value = torch.where(large, -1.0, sign * self.f(z))
            yield Candidate(z, value, reach + self._rounding(z, value, k, large))
        bottom = self.peak if sign < 0 else self.peak + math.pi
        with torch.no_grad():
            first = torch.ceil((low - bottom - math.pi / 2) / TURN)
            last = torch.floor((high - bottom + math.pi / 2) / TURN)
            lean = torch.asin(k.clamp(-1.0, 1.0))
        for turn in (first, first + 1, last, last - 1):
            middle = bottom + TURN * turn
            start = between(middle - math.pi / 2, low, high)
            end = between(middle + math.pi / 2, low, high)
            z = torch.where(large, low, between(middle + lean, start, end))
            value = torch.where(large, -1.0, sign * self.f(z))
            with torch.no_grad():
                excess = sign * self.df(z) - k
                below = torch.minimum(excess * (start - z), excess * (end - z)).clamp(max=0.0)
                below = torch.where(large, 0.0, below * (1 + 4 * EPS))
            yield Candidate(z, value, reach + self._rounding(z, value, k, large) - below)

    def _rounding(self, z: Tensor, value: Tensor, k: Tensor, large: Tensor) -> Tensor:
        """The error of ``value - k z``; the value -1 of large angles is exact."""
        import torch

        line = 4 * EPS * ((k * z).abs() + value.abs())
        return torch.where(large, line + TINY, line + self.slack(z, value))

    def slope_range(self, sign: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """See `Profile.slope_range`."""
        import torch

        return -torch.ones_like(low), torch.ones_like(low)


def _sin() -> Wave:
    import torch

    return Wave(torch.sin, torch.cos, low=-1.0, high=1.0, peak=math.pi / 2)


def _cos() -> Wave:
    import torch

    return Wave(torch.cos, lambda z: -torch.sin(z), low=-1.0, high=1.0)


WAVES = examples((-2.0, 2.0), (0.3, 1.0), (-40.0, 35.0), (100.0, 104.0))

scalar(
    "sin",
    torch_function("sin"),
    _sin,
    examples=WAVES,
    onnx={"Sin": None},
    aten={"aten.sin.default": None, "aten.sin_.default": None},
    summary="sine",
)
scalar(
    "cos",
    torch_function("cos"),
    _cos,
    examples=WAVES,
    onnx={"Cos": None},
    aten={"aten.cos.default": None, "aten.cos_.default": None},
    summary="cosine",
)
