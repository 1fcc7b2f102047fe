"""Interval warping: geometric transformations of many images over small ranges of parameters.

For a box of parameters the interpolation weights of every output pixel are intervals that do not
depend on the image (Yang et al. 2023), so one pair of sparse matrices per box serves any number of
images: ``[W_low x, W_high x]`` for ``x >= 0``. float64 throughout, rounded outward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from certify.core.errors import UsageError
from certify.semantic.geometry import DEGREE, grid
from certify.semantic.transforms import Transform

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_SLACK = 2.0**-40  # relative, far above the rounding of the few operations on a coordinate
_TINY = 2.0**-500
_MOST_DEGREES = 3600.0


class Range(NamedTuple):
    """An interval of float64 numbers, elementwise."""

    low: np.ndarray
    high: np.ndarray


def _outward(low: np.ndarray, high: np.ndarray) -> Range:
    return Range(low - (np.abs(low) * _SLACK + _TINY), high + (np.abs(high) * _SLACK + _TINY))


def _plus(a: Range, b: Range) -> Range:
    return _outward(a.low + b.low, a.high + b.high)


def _minus(a: Range, b: Range) -> Range:
    return _outward(a.low - b.high, a.high - b.low)


def _times(a: Range, b: Range) -> Range:
    corners = np.stack(np.broadcast_arrays(a.low * b.low, a.low * b.high, a.high * b.low,
                                           a.high * b.high))
    return _outward(corners.min(0), corners.max(0))


def _wave(angle: Range, shift: float) -> Range:
    """``cos(angle - shift)`` for angles and shift in degrees.

    Raises:
        UsageError: an angle beyond ten turns, where radians are no longer exact to the slack.
    """
    if max(np.abs(angle.low).max(), np.abs(angle.high).max()) > _MOST_DEGREES:
        raise UsageError(f"a rotation must lie within {_MOST_DEGREES:g} degrees")
    low, high = angle.low - shift, angle.high - shift
    ends = np.cos(low * DEGREE), np.cos(high * DEGREE)
    top = np.floor(high / 360) >= np.ceil(low / 360)
    bottom = np.floor((high - 180) / 360) >= np.ceil((low - 180) / 360)
    least = np.where(bottom, -1.0, np.minimum(*ends))
    most = np.where(top, 1.0, np.maximum(*ends))
    return Range(least - 2 * _SLACK, most + 2 * _SLACK)


def _rotate(u: Range, v: Range, angle: Range) -> tuple[Range, Range]:
    c, s = _wave(angle, 0.0), _wave(angle, 90.0)
    return _plus(_times(u, c), _times(v, s)), _minus(_times(v, c), _times(u, s))


def _scale(u: Range, v: Range, factor: Range) -> tuple[Range, Range]:
    if (factor.low <= 0).any():
        raise UsageError("a scale must be above 0")
    inverse = _outward(1 / factor.high, 1 / factor.low)
    return _times(u, inverse), _times(v, inverse)


_INVERSE: Mapping[str, Callable[[Range, Range, Range], tuple[Range, Range]]] = {
    "rotate": _rotate,
    "scale": _scale,
    "translate-x": lambda u, v, t: (_minus(u, t), v),
    "translate-y": lambda u, v, t: (u, _plus(v, t)),
    "shear": lambda u, v, m: (_minus(u, _times(v, m)), v),
}


def warp_matrices(
    shape: tuple[int, int], moves: Sequence[Transform], lower: np.ndarray, upper: np.ndarray
) -> tuple[csr_array, csr_array]:
    """Bounds of the interpolation weights over one box of parameters.

    Args:
        shape: height and width.
        moves: geometric transformations, in the order in which they act on the image.
        lower, upper: ``(k,)``, one parameter each.

    Returns:
        ``(W_low, W_high)``, each ``(pixels, pixels)``; what lies outside the image is 0.
    """
    from scipy.sparse import csr_array

    height, width = shape
    u, v = (Range(c, c) for c in grid(height, width))
    for i in reversed(range(len(moves))):
        u, v = _INVERSE[moves[i].name](u, v, Range(lower[i:i + 1], upper[i:i + 1]))
    columns = Range(u.low + (width - 1) / 2, u.high + (width - 1) / 2)
    rows = Range((height - 1) / 2 - v.high, (height - 1) / 2 - v.low)
    across, over = _tents(columns, width), _tents(rows, height)
    place = (over[0][:, :, None] * width + across[0][:, None, :]).reshape(len(u.low), -1)
    starts = np.arange(len(place) + 1) * place.shape[1]
    found = []
    for side, grow in ((1, 1 - _SLACK), (2, 1 + _SLACK)):
        weight = over[side][:, :, None] * across[side][:, None, :] * grow
        data = (weight.ravel(), place.ravel(), starts)
        found.append(csr_array(data, shape=(len(place),) * 2))
    return found[0], found[1]


def _tents(coordinate: Range, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes near each coordinate ``(P, K)`` and bounds of ``max(0, 1 - |coordinate - node|)``."""
    low, high = coordinate.low, coordinate.high  # (P, 1)
    first = np.floor(np.clip(low, -2.0, size + 1.0))
    last = np.ceil(np.clip(high, -2.0, size + 1.0))
    node = first + np.arange(int((last - first).max()) + 1)
    above, below = high - node, node - low  # how far the coordinate may lie to either side
    farthest = np.maximum(above, below)
    nearest = np.maximum(np.maximum(-above, -below), 0.0)
    inside = (node >= 0) & (node <= size - 1) & (node <= last)
    least = np.where(inside, np.maximum(1 - farthest - _SLACK, 0.0), 0.0)
    most = np.where(inside, np.maximum(1 - nearest + _SLACK, 0.0), 0.0)
    return np.clip(node, 0, size - 1).astype(np.int64), least, np.minimum(most, 1.0)


def warped_boxes(
    images: np.ndarray, moves: Sequence[Transform], lower: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of transformed images over one box of parameters, float64 ``(N, C, H, W)``.

    Args:
        images: ``(N, C, H, W)`` with values in [0, 1].
    """
    shape = images.shape[-2], images.shape[-1]
    flat = images.reshape(-1, shape[0] * shape[1]).T.astype(np.float64)
    low, high = warp_matrices(shape, moves, lower, upper)
    least = (low @ flat).T * (1 - _SLACK) - _TINY
    most = (high @ flat).T * (1 + _SLACK) + _TINY
    return (np.clip(least, 0.0, 1.0).reshape(images.shape),
            np.clip(most, 0.0, 1.0).reshape(images.shape))
