"""Gaussian noise on a grid: closes the leak of floating-point addition.

``fl(x + noise)`` remembers x: its last bits differ between x = 0 and x = 1, and a classifier that
reads them is certified where it is wrong (Voracek and Hein 2023). Here inputs are whole numbers of
1/levels, the noise is rounded to whole numbers of 1/(levels * fine), and the sum is exact. Rounding
commutes with adding x, so this is ordinary smoothing of a classifier that rounds its input, and the
radius holds for every other input of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from certify.core.errors import BadInput
from certify.smoothing import radii
from certify.smoothing.confidence import Estimate
from certify.smoothing.noise import Gaussian, Noise, split_rows
from certify.smoothing.streams import kernels, words

if TYPE_CHECKING:
    from torch import Tensor

_TAIL_ERROR = 1e-13  # relative, of scipy's ndtr: many times what it shows


@dataclass(frozen=True)
class GridGaussian(Noise):
    """Normal noise of deviation ``sigma``, rounded to 1/(levels * fine), on inputs of 1/levels."""

    sigma: float
    levels: float = 255
    fine: float = 16
    name: ClassVar[str] = "gaussian-grid"
    norms: ClassVar[tuple[str, ...]] = ("2", "1", "inf")

    def __post_init__(self) -> None:
        radii.scale("sigma", self.sigma)
        for name in ("levels", "fine"):
            if not 1 <= getattr(self, name) <= 2**16 or getattr(self, name) % 1:
                raise BadInput(f"{name} must be a whole number from 1 to 65536")

    def fill(self, x: Tensor, key: int, first: int, out: Tensor) -> None:
        """See `Noise.fill`. Everything up to the last division is exact."""
        import torch

        unit = 1.0 / (self.levels * self.fine)
        whole = self.whole(x.double().cpu().numpy()) * int(self.fine)
        table = thresholds(self.sigma * self.levels * self.fine)
        compiled = kernels() if out.device.type == "cpu" and out.is_contiguous() else None
        if compiled is not None:

            def run(x: np.ndarray, unit: float, key: int, first: int, out: np.ndarray) -> None:
                compiled.add_grid_normal(x, table, unit, key, first, out)

            split_rows(run, whole, unit, key, first, out.numpy())
            return
        w = words(key, first, len(out), 2 * x.numel(), out.device)[:, : 2 * x.numel()]
        high, low = w[:, ::2].contiguous(), w[:, 1::2]
        pick = (high << 31) | (low >> 1)
        e = torch.searchsorted(torch.tensor(table, device=out.device), pick, right=True)
        e = torch.where((low & 1) == 1, -e, e)
        out.copy_((e + torch.as_tensor(whole, device=out.device)).double() * unit)

    def radius(self, found: Estimate, norm: str, size: int, other: float | None = None) -> float:
        """See `Noise.radius`."""
        return Gaussian(self.sigma).radius(found, norm, size, other)

    def slack(self, size: int) -> float:
        """Of the whole noise vector: every element's distance from the rounded normal, summed."""
        table = thresholds(self.sigma * self.levels * self.fine)
        tails = 1.0 - table.astype(np.float64) * 2.0**-63
        return size * float(_TAIL_ERROR * tails.sum() + (len(table) + 2) * 2.0**-62)

    def whole(self, x: np.ndarray) -> np.ndarray:
        """Inputs in whole numbers of 1/levels, int64."""
        found: np.ndarray = np.rint(x * self.levels).astype(np.int64)
        return found

    def check_input(self, x: np.ndarray) -> None:
        """See `Noise.check_input`."""
        off = np.abs(self.whole(x) / self.levels - x).max(initial=0.0)
        if not off <= 1e-6:
            raise BadInput(
                f"exact-grid needs inputs that are whole numbers of 1/{self.levels:g}; one "
                f"is {off:.3g} away from one: round them, or use soundness='real'"
            )


@lru_cache(maxsize=8)
def thresholds(scale: float) -> np.ndarray:
    """``2^63 P(|rounded normal noise| <= k)`` for k = 0, 1, ... until nothing is left; int64.

    Args:
        scale: standard deviation in units of the grid.
    """
    from scipy.special import ndtr

    k = np.arange(int(10 * scale) + 2)
    tail = np.floor(2 * ndtr(-(k + 0.5) / scale) * 2.0**63).astype(np.uint64)
    tail = tail[tail > 0]
    found: np.ndarray = (np.uint64(2**63) - tail).astype(np.int64)
    found.setflags(write=False)
    return found
