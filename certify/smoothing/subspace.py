"""Parts of an image in which a perturbation may lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from certify.core.errors import BadInput


@dataclass(frozen=True, eq=False)
class Subspace:
    """Some of the elements of an input.

    Attributes:
        name: for people, and in certificates.
        mask: bool, of the input's shape: what may be perturbed.
    """

    name: str
    mask: np.ndarray

    def project(self, v: np.ndarray) -> np.ndarray:
        """A vector's part in it, ``(size,)``."""
        return np.where(self.mask.reshape(-1), v, 0.0)


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
