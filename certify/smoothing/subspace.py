"""Parts of an image in which a perturbation may lie."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from certify.core.errors import BadInput
from certify.core.region import L2, Ellipsoid, Region

_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Subspace:
    """Directions in which an input may be changed: some elements, or combinations of all.

    Attributes:
        name: for people, and in certificates.
        mask: bool, of the input's shape: what may be perturbed; or
        basis: ``(size, k)`` orthonormal columns that span it.
    """

    name: str
    mask: np.ndarray | None = None
    basis: np.ndarray | None = None

    def __post_init__(self) -> None:
        if (self.mask is None) == (self.basis is None):
            raise BadInput("a subspace has either a mask or a basis")

    def project(self, v: np.ndarray) -> np.ndarray:
        """A vector's part in it, ``(size,)``."""
        if self.basis is not None:
            found: np.ndarray = self.basis @ (self.basis.T @ v)
            return found
        return np.where(np.asarray(self.mask).reshape(-1), v, 0.0)

    def around(self, x: np.ndarray, radius: float) -> Region:
        """The points within an L2 radius of ``x`` that it allows."""
        center = x[None].astype(np.float64)
        if self.basis is not None:  # orthonormal up to rounding, so a little less
            axes = radius * (1 - _ROUNDING) * self.basis
            return Ellipsoid(center, axes).batched(x.shape)
        free = np.asarray(self.mask).reshape(x.shape)
        low, high = (np.where(free, end, center) for end in (-np.inf, np.inf))
        return L2(center, radius, (low, high)).batched(x.shape)

    def facts(self) -> dict[str, str]:
        """What votes say about it, and `agrees` reads."""
        if self.mask is None:
            return {"subspace": self.name}
        digest = hashlib.sha256(np.packbits(self.mask.reshape(-1)).tobytes()).hexdigest()
        return {"subspace": self.name, "subspace_sha256": digest}


def agrees(facts: Mapping[str, Any], region: Region, radius: float) -> bool:
    """Whether a region lies in the subspace that votes are about, within an L2 radius."""
    if isinstance(region, L2) and region.clip is not None:
        low, high = (np.asarray(side) for side in region.clip)
        fixed = (low == high) & (low == np.asarray(region.center))
        free = np.isinf(low) & np.isinf(high)
        if not (fixed | free).all() or float(np.max(np.asarray(region.eps))) > radius:
            return False
        return Subspace("", np.broadcast_to(free, np.shape(region.center))).facts()[
            "subspace_sha256"] == facts.get("subspace_sha256")
    if isinstance(region, Ellipsoid) and region.shape is not None:
        wanted = named(str(facts["subspace"]), region.shape)
        if wanted.basis is None:
            return False
        for axes in np.asarray(region.axes, dtype=np.float64):
            outside = axes - wanted.basis @ (wanted.basis.T @ axes)
            size = float(np.linalg.norm(axes, 2))
            if not (size <= radius and np.abs(outside).max() <= 1e-12 * size):
                return False
        return True
    return False


def channel(shape: tuple[int, ...], number: int) -> Subspace:
    """One colour channel of ``(C, H, W)``.

    Raises:
        BadInput: no such channel.
    """
    if len(shape) != 3 or not 0 <= number < shape[0]:
        raise BadInput(f"inputs of shape {shape} have no channel {number}")
    mask = np.zeros(shape, bool)
    mask[number] = True
    return Subspace(f"channel {number}", mask)


def patch(shape: tuple[int, ...], top: int, left: int, height: int, width: int) -> Subspace:
    """A rectangle of pixels, all channels of ``(C, H, W)``.

    Raises:
        BadInput: it is empty or sticks out.
    """
    fits = len(shape) == 3 and min(top, left) >= 0 < min(height, width)
    if not fits or top + height > shape[1] or left + width > shape[2]:
        raise BadInput(f"a patch of {height} x {width} at ({top}, {left}) is not within {shape}")
    mask = np.zeros(shape, bool)
    mask[:, top : top + height, left : left + width] = True
    return Subspace(f"patch {height}x{width} at ({top}, {left})", mask)


def frequencies(shape: tuple[int, ...], low: int, high: int) -> Subspace:
    """A band of frequencies of ``(C, H, W)``: cosines (DCT-II) whose larger number of half waves
    over the image, downwards or sideways, is at least ``low`` and less than ``high``.

    Raises:
        BadInput: no such band.
    """
    if len(shape) != 3 or not 0 <= low < high <= max(shape[1:]):
        raise BadInput(f"inputs of shape {shape} have no frequencies {low} to {high - 1}")
    rows, columns = (_cosines(n) for n in shape[1:])
    band = [np.kron(rows[:, i], columns[:, j]) for i in range(shape[1]) for j in range(shape[2])
            if low <= max(i, j) < high]
    basis = np.kron(np.eye(shape[0]), np.stack(band, 1))
    return Subspace(f"frequencies {low} to {high - 1}", basis=basis)


def _cosines(n: int) -> np.ndarray:
    """The orthonormal cosine transform of n numbers, a basis vector per column."""
    at, wave = np.arange(n)[:, None], np.arange(n)[None]
    found: np.ndarray = np.cos(np.pi * (at + 0.5) * wave / n) * np.sqrt(2.0 / n)
    found[:, 0] = np.sqrt(1.0 / n)
    return found


def named(name: str, shape: tuple[int, ...]) -> Subspace:
    """The band of frequencies that a name says.

    Raises:
        BadInput: it says none.
    """
    found = re.fullmatch(r"frequencies (\d{1,6}) to (\d{1,6})", name)
    if found is None:
        raise BadInput(f"{name!r} is no band of frequencies")
    return frequencies(shape, int(found[1]), int(found[2]) + 1)
