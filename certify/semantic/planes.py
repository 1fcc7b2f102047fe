"""Planes per pixel: transformed images as affine functions of the parameters, plus a small error.

For each pixel a slope is fitted to the centres of interval warps over parts of the range (least
squares), and the error around that plane is bounded by the interval warps themselves, part by part,
the worst parts being halved (Balunovic et al. 2019, DeepG, with intervals in the place of Lipschitz
constants). The image is then a `certify.Zonotope`: a generator per parameter, and a box of errors.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from certify.core.region import Zonotope
from certify.semantic.transforms import Transform
from certify.semantic.warp import warped_boxes

_PARTS = 8  # of the range of one parameter, to begin with; fewer per parameter for several
_HALVED = 8  # parts that are halved afterwards
_SLACK = 2.0**-40
_Ends = tuple[np.ndarray, np.ndarray]
_Part = tuple[float, int, np.ndarray, np.ndarray, _Ends]  # minus its width, number, ends, error


def warped_planes(images: np.ndarray, moves: Sequence[Transform], lower: np.ndarray,
                  upper: np.ndarray) -> Zonotope:
    """Regions that hold the transformed images over one box of parameters.

    Args:
        images: ``(N, C, H, W)`` with values in [0, 1].
        moves: geometric transformations, in the order in which they act.
        lower, upper: ``(k,)``.
    """
    middle, half = 0.5 * (lower + upper), 0.5 * (upper - lower)
    parts = max(2, round(_PARTS ** (2 / (1 + len(moves)))))
    cuts = [np.linspace(a, b, parts + 1) if b > a else np.array([a, b])
            for a, b in zip(lower, upper, strict=True)]
    grids = [np.meshgrid(*side, indexing="ij") for side in (
        [c[:-1] for c in cuts], [c[1:] for c in cuts])]
    lows, highs = (np.stack([g.ravel() for g in grid], 1) for grid in grids)
    boxes = [warped_boxes(images, moves, a, b) for a, b in zip(lows, highs, strict=True)]
    at = 0.5 * (lows + highs) - middle
    values = np.stack([0.5 * (a + b) for a, b in boxes])
    slopes = np.linalg.pinv(at) @ (values - values.mean(0)).reshape(len(at), -1)  # (k, N * pixels)
    slopes = slopes.reshape(-1, *images.shape)
    below, above = _error(images, moves, (lows, highs, boxes), (slopes, middle))
    center, radius = 0.5 * (below + above), 0.5 * (above - below)
    radius = radius + _SLACK * (np.abs(center) + radius)
    generators = (slopes * half.reshape(-1, *(1,) * images.ndim)).swapaxes(0, 1)
    return Zonotope(center, generators.reshape(len(images), len(half), -1), radius)


def _error(images: np.ndarray, moves: Sequence[Transform],
           parts: tuple[np.ndarray, np.ndarray, list[_Ends]], plane: _Ends) -> _Ends:
    """Bounds of ``pixel - slope (parameters - middle)``, shape of the images each."""
    slopes, middle = plane

    def around(low: np.ndarray, high: np.ndarray, box: _Ends) -> _Ends:
        shift = np.tensordot(0.5 * (low + high) - middle, slopes, 1)
        reach = np.tensordot(0.5 * (high - low), np.abs(slopes), 1)
        room = _SLACK * (1 + np.abs(shift) + reach)
        return box[0] - shift - reach - room, box[1] - shift + reach + room

    heap: list[_Part] = []
    for number, (low, high, box) in enumerate(zip(*parts, strict=True)):
        ends = around(low, high, box)
        heapq.heappush(heap, (-_width(ends), number, low, high, ends))
    number = len(heap)
    for _ in range(_HALVED):
        _, _, low, high, _ = heapq.heappop(heap)
        axis = int(np.argmax(high - low))
        cut = 0.5 * (low[axis] + high[axis])
        for side in (0, 1):
            a, b = low.copy(), high.copy()
            (b if side == 0 else a)[axis] = cut
            ends = around(a, b, warped_boxes(images, moves, a, b))
            heapq.heappush(heap, (-_width(ends), number, a, b, ends))
            number += 1
    below = np.minimum.reduce([item[4][0] for item in heap])
    above = np.maximum.reduce([item[4][1] for item in heap])
    return below, above


def _width(ends: _Ends) -> float:
    return float((ends[1] - ends[0]).sum())
