"""Brightness, contrast, gamma and blur."""

from __future__ import annotations

import numpy as np

from certify.core.errors import UsageError
from certify.ops.builder import Builder, Value
from certify.semantic.transforms import Transform, over, register

BLUR_STEP = 0.5  # pixels of standard deviation between two kernels
BLUR_KERNELS = 9  # so the widest is 4 pixels


def limited(b: Builder, image: Value) -> Value:
    """Values limited to [0, 1]."""
    return b.add("clip", image, min=0.0, max=1.0)


def _brightness(b: Builder, image: Value, parameter: Value) -> Value:
    return limited(b, b.add("add", *b.broadcast(image, over(b, parameter))))


def _contrast(b: Builder, image: Value, parameter: Value) -> Value:
    return limited(b, b.add("mul", *b.broadcast(image, over(b, parameter))))


def _gamma(b: Builder, image: Value, parameter: Value) -> Value:
    if image.constant is None:
        raise UsageError("gamma wants the original image: give it first, and without geometric "
                         "transformations")
    x = np.asarray(image.constant)
    dark = x <= 0  # a power of zero is zero, for every positive exponent
    logarithm = b.constant(np.log(np.where(dark, 1.0, x)))
    power = b.add("exp", b.add("mul", *b.broadcast(logarithm, over(b, parameter))))
    return limited(b, b.add("mul", power, b.constant(np.where(dark, 0.0, 1.0))))


def _blur(b: Builder, image: Value, parameter: Value) -> Value:
    """Linear between Gaussian kernels of 0, 0.5, 1 ... pixels."""
    _, height, width = image.shape
    stack = [image]
    for k in range(1, BLUR_KERNELS):
        rows = b.constant(gaussian_matrix(height, k * BLUR_STEP))
        columns = b.constant(gaussian_matrix(width, k * BLUR_STEP).T)
        stack.append(b.add("matmul", b.add("matmul", *b.broadcast(rows, image)), columns))
    steps = b.add("mul", over(b, parameter), b.constant(np.float64(1 / BLUR_STEP)))
    value = image
    for k in range(BLUR_KERNELS - 1):
        share = b.add("clip", b.add("add", steps, b.constant(np.float64(-k))), min=0.0, max=1.0)
        change = b.add("sub", stack[k + 1], stack[k])
        value = b.add("add", *b.broadcast(value, b.add("mul", *b.broadcast(change, share))))
    return value


def gaussian_matrix(size: int, sigma: float) -> np.ndarray:
    """``(size, size)`` weights of a one-dimensional Gaussian blur, mirrored at the borders.

    Every row sums to 1 (up to rounding), so a blurred image stays in its range.
    """
    reach = int(np.ceil(4 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    found = np.zeros((size, size))
    for offset, weight in zip(range(-reach, reach + 1), weights, strict=True):
        place = np.mod(np.arange(size) + offset, 2 * size)
        place = np.where(place >= size, 2 * size - 1 - place, place)
        np.add.at(found, (np.arange(size), place), weight)
    return found


register(Transform("brightness", "of the range", 0.0, (-0.2, 0.2),
                   "a number added to every value", pixels=_brightness))
register(Transform("contrast", "factor", 1.0, (0.8, 1.2),
                   "a factor on every value", pixels=_contrast))
register(Transform("gamma", "exponent", 1.0, (0.8, 1.25),
                   "values to a power", pixels=_gamma))
register(Transform("blur", "pixels", 0.0, (0.0, 1.5),
                   "a Gaussian of this standard deviation, linear between kernels", pixels=_blur))
