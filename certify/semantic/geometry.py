"""Rotation, translation, scaling and shear: inverse coordinates and bilinear interpolation.

Output pixel p takes the image's value at the inverse image of p, with zeros outside. As a graph:
the coordinates are smooth functions of the parameters, and a pixel is the sum over rows i and
columns j of ``tent(v - i) tent(u - j) image[i, j]`` with ``tent(d) = relu(1 - |d|)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from certify.ops.builder import Builder, Value
from certify.semantic.transforms import Coordinates, Transform, register

DEGREE = math.pi / 180


def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates ``(P, 1)`` of all pixels in row order, from the centre: u right, v up."""
    rows, columns = np.mgrid[0:height, 0:width]
    u = columns.reshape(-1, 1) - (width - 1) / 2
    v = (height - 1) / 2 - rows.reshape(-1, 1)
    return u.astype(np.float64), v.astype(np.float64)


def resampled(b: Builder, image: Value, moves: Sequence[tuple[Coordinates, Value]]) -> Value:
    """The image after geometric transformations, applied in order with their parameters."""
    channels, height, width = image.shape
    u, v = (b.constant(c) for c in grid(height, width))
    for inverse, parameter in reversed(moves):
        u, v = inverse(b, u, v, b.align(parameter, 2))
    across = _tents(b, u, np.arange(width) - (width - 1) / 2)
    down = _tents(b, v, (height - 1) / 2 - np.arange(height))
    # (P, H) times (H, C W), then per channel (P, W) weights against it.
    table = b.add("reshape", b.add("transpose", image, perm=(-2, -3, -1)),
                  shape=(height, channels * width))
    rows = b.add("reshape", b.add("matmul", down, table), shape=(height * width, channels, width))
    across = b.add("reshape", across, shape=(height * width, 1, width))
    summed = b.add("reduce_sum", b.add("mul", rows, across), axes=(-1,), keepdims=False)
    return b.add("reshape", b.add("transpose", summed, perm=(-1, -2)),
                 shape=(channels, height, width))


def _tents(b: Builder, coordinate: Value, places: np.ndarray) -> Value:
    """``relu(1 - |coordinate - place|)``, ``(P, places)``."""
    apart = b.add("abs", b.add("sub", coordinate, b.constant(places[None])))
    return b.add("relu", b.add("add", b.add("neg", apart), b.constant(np.float64(1.0))))


def _rotate(b: Builder, u: Value, v: Value, angle: Value) -> tuple[Value, Value]:
    radians = b.add("mul", angle, b.constant(np.float64(DEGREE)))
    c, s = b.add("cos", radians), b.add("sin", radians)
    return (b.add("add", b.add("mul", u, c), b.add("mul", v, s)),
            b.add("sub", b.add("mul", v, c), b.add("mul", u, s)))


def _right(b: Builder, u: Value, v: Value, shift: Value) -> tuple[Value, Value]:
    return b.add("sub", u, shift), v


def _down(b: Builder, u: Value, v: Value, shift: Value) -> tuple[Value, Value]:
    return u, b.add("add", v, shift)


def _scale(b: Builder, u: Value, v: Value, factor: Value) -> tuple[Value, Value]:
    inverse = b.add("reciprocal", factor)
    return b.add("mul", u, inverse), b.add("mul", v, inverse)


def _shear(b: Builder, u: Value, v: Value, amount: Value) -> tuple[Value, Value]:
    return b.add("sub", u, b.add("mul", v, amount)), v


register(Transform("rotate", "degrees", 0.0, (-20.0, 20.0),
                   "turned about the centre, counter-clockwise", coordinates=_rotate))
register(Transform("translate-x", "pixels", 0.0, (-2.0, 2.0),
                   "moved to the right", coordinates=_right))
register(Transform("translate-y", "pixels", 0.0, (-2.0, 2.0),
                   "moved down", coordinates=_down))
register(Transform("scale", "factor", 1.0, (0.8, 1.2),
                   "enlarged about the centre", coordinates=_scale))
register(Transform("shear", "factor", 0.0, (-0.2, 0.2),
                   "each row moved right by its height times this", coordinates=_shear))
