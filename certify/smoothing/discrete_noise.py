"""Noise on features of few values, certified in exact rational arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from certify.core.errors import BadInput
from certify.smoothing.confidence import Estimate
from certify.smoothing.discrete import l0_radius, sparse_radii
from certify.smoothing.noise import Noise
from certify.smoothing.streams import words

if TYPE_CHECKING:
    from torch import Tensor

_WORD = 2**32
_MOST = 64  # changed features a radius is searched up to


@dataclass(frozen=True)
class Replace(Noise):
    """Each element is replaced with probability ``rate`` by one of ``levels`` values, uniformly
    (Lee et al. 2019); inputs are whole numbers of 1/(levels - 1)."""

    rate: float
    levels: float = 256
    name: ClassVar[str] = "replace"
    norms: ClassVar[tuple[str, ...]] = ("0",)

    def __post_init__(self) -> None:
        _share("rate", self.rate)
        if not 2 <= self.levels <= 2**16 or self.levels % 1:
            raise BadInput("levels must be a whole number from 2 to 65536")

    def fill(self, x: Tensor, key: int, first: int, out: Tensor) -> None:
        """See `Noise.fill`."""
        n, top = x.numel(), int(self.levels)
        w = words(key, first, len(out), 3 * n, out.device)[:, : 3 * n].view(len(out), n, 3)
        # floor(levels * a 64-bit number / 2^64), without overflow
        value = (w[..., 1] * top + (w[..., 2] * top >> 32)) >> 32
        fresh = value.double() / (top - 1)
        out.copy_(fresh.where(w[..., 0] < int(_odds(self.rate) * _WORD), x.double()))

    def radius(self, found: Estimate, norm: str, size: int, other: float | None = None) -> float:
        """Elements that may change, whatever their new values."""
        self.check_norm(norm)
        keep = 1 - _odds(self.rate) * (1 - Fraction(1, int(self.levels)))
        p = Fraction(float(found.p))
        return float(max(0, l0_radius(p, keep, int(self.levels) - 1, min(_MOST, size))))

    def slack(self, size: int) -> float:
        """See `Noise.slack`."""
        return size * self.levels * 2.0**-64

    def check_input(self, x: np.ndarray) -> None:
        """See `Noise.check_input`."""
        _whole(x, self.levels - 1)


@dataclass(frozen=True)
class Flip(Noise):
    """Binary features: a zero becomes one with probability ``appear``, a one becomes zero with
    ``vanish`` (Bojchevski et al. 2020).

    The radius counts changed features of either kind; `pairs` tells additions from deletions.
    """

    appear: float
    vanish: float
    name: ClassVar[str] = "flip"
    norms: ClassVar[tuple[str, ...]] = ("0",)

    def __post_init__(self) -> None:
        _share("appear", self.appear)
        _share("vanish", self.vanish)

    def fill(self, x: Tensor, key: int, first: int, out: Tensor) -> None:
        """See `Noise.fill`."""
        w = words(key, first, len(out), x.numel(), out.device)[:, : x.numel()]
        appear, vanish = (int(_odds(p) * _WORD) for p in (self.appear, self.vanish))
        one = x > 0.5
        out.copy_((one & (w >= vanish)) | (~one & (w < appear)))

    def pairs(self, found: Estimate, size: int) -> tuple[tuple[int, int], ...]:
        """The largest certified (added, deleted)."""
        return _pairs(self, float(found.p), size)

    def radius(self, found: Estimate, norm: str, size: int, other: float | None = None) -> float:
        """Features that may change, be they added or deleted."""
        self.check_norm(norm)
        pairs = self.pairs(found, size)
        r = -1
        while r < min(_MOST, size) and all(
            any(a <= most_a and r + 1 - a <= most_d for most_a, most_d in pairs)
            for a in range(r + 2)
        ):
            r += 1
        return float(max(0, r))

    def check_input(self, x: np.ndarray) -> None:
        """See `Noise.check_input`."""
        _whole(x, 1)


@lru_cache(maxsize=256)
def _pairs(noise: Flip, p: float, size: int) -> tuple[tuple[int, int], ...]:
    return sparse_radii(
        Fraction(p), _odds(noise.appear), _odds(noise.vanish), min(_MOST, size)
    )


def _odds(p: float) -> Fraction:
    """The probability that is really drawn: whole numbers of 2^-32."""
    return Fraction(round(p * _WORD), _WORD)


def _share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise BadInput(f"{name} must lie strictly between 0 and 1, got {value!r}")


def _whole(x: np.ndarray, steps: float) -> None:
    off = np.abs(np.rint(x * steps) / steps - x).max(initial=0.0)
    if not off <= 1e-6 or (x < -1e-6).any() or (x > 1 + 1e-6).any():
        raise BadInput(f"this noise needs inputs in [0, 1] that are whole numbers of 1/{steps:g}")
