"""Hue, saturation and lightness, exactly, as ReLUs of the parameters (Mohapatra et al. 2020).

With the colour of a pixel written as hue h (in sextants), lightness l and saturation s, as in
`colorsys`, a shifted colour is ``l' + c (w(h') - 1/2)`` per channel: c is the chroma
``(1 - |2 l' - 1|) s'``, and w a piecewise linear function of the hue. A transformation of one of
the three leaves the other two constant, so each is piecewise linear in its parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from certify.core.errors import BadInput, UsageError
from certify.ops.builder import Builder, Value
from certify.semantic.transforms import Transform, over, register

SEXTANT = 60.0  # degrees
# Kinks of each channel's weight over hues of -3 to 9 sextants, and its value at -3.
_RISES = ((-2, 2, 4, 8), (-2, 0, 4, 6), (0, 2, 6, 8))
_FALLS = ((-1, 1, 5, 7), (-3, 1, 3, 7), (-1, 3, 5, 9))
_STARTS = (0.0, 1.0, 1.0)


def hls(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in sextants [0, 6), lightness and saturation of an RGB image ``(3, ...)``, as `colorsys`.

    Greys have hue 0.
    """
    red, green, blue = image
    most, least = image.max(0), image.min(0)
    spread, total = most - least, most + least
    with np.errstate(divide="ignore", invalid="ignore"):
        s = np.where(total <= 1, spread / total, spread / (2.0 - total))
        r, g, b = (most - image) / spread
        hue = np.where(red == most, b - g, np.where(green == most, 2 + r - b, 4 + g - r))
    grey = spread == 0
    return np.where(grey, 0.0, np.mod(hue, 6.0)), total / 2, np.where(grey, 0.0, s)


def _hinges(b: Builder, z: Value, start: float, rises: Sequence[float],
            falls: Sequence[float]) -> Value:
    """``start + sum relu(z - rise) - sum relu(z - fall)``."""

    def hinge(at: float) -> Value:
        return b.add("relu", b.add("add", z, b.constant(np.float64(-at))))

    found = b.constant(np.float64(start))
    for at in rises:
        found = b.add("add", *b.broadcast(hinge(at), found))
    for at in falls:
        found = b.add("sub", *b.broadcast(found, hinge(at)))
    return found


def _shifted(b: Builder, image: Value, hue: Value | None = None, saturation: Value | None = None,
             lightness: Value | None = None) -> Value:
    if image.constant is None:
        raise UsageError("hue, saturation and lightness want the original image: give one of them "
                         "first, and without geometric transformations")
    pixels = np.asarray(image.constant)
    if pixels.shape[0] != 3:
        raise BadInput(f"hue, saturation and lightness want 3 channels, the image has "
                       f"{pixels.shape[0]}")
    h, light, s = (b.constant(a[None]) for a in hls(pixels))

    def moved(value: Value, shift: Value | None) -> Value:
        return value if shift is None else b.add("add", *b.broadcast(value, over(b, shift)))

    turn = None if hue is None else b.add("mul", hue, b.constant(np.float64(1 / SEXTANT)))
    h = moved(h, turn)
    s = b.add("clip", moved(s, saturation), min=0.0, max=1.0)
    light = moved(light, lightness)
    double = b.add("mul", light, b.constant(np.float64(2.0)))
    # Sums of hinges lie in these ranges by themselves; saying so tells every bound method.
    room = b.add("clip", _hinges(b, double, 0.0, (0, 2), (1, 1)), min=0.0, max=1.0)
    light = b.add("clip", light, min=0.0, max=1.0)
    chroma = b.add("mul", *b.broadcast(room, s))
    channels = []
    for rises, falls, start in zip(_RISES, _FALLS, _STARTS, strict=True):
        weight = b.add("clip", _hinges(b, h, start - 0.5, rises, falls), min=-0.5, max=0.5)
        channels.append(b.add("add", *b.broadcast(
            b.add("mul", *b.broadcast(weight, chroma)), light)))
    return b.add("concat", *channels, axis=-3)


def _only(which: str) -> Callable[[Builder, Value, Value], Value]:
    def pixels(b: Builder, image: Value, parameter: Value) -> Value:
        return _shifted(b, image, **{which: parameter})

    return pixels


register(Transform("hue", "degrees", 0.0, (-60.0, 60.0),
                   "the hue turned (valid from -180 to 180)", pixels=_only("hue")))
register(Transform("saturation", "of the range", 0.0, (-0.3, 0.3),
                   "a number added to the saturation of HLS", pixels=_only("saturation")))
register(Transform("lightness", "of the range", 0.0, (-0.3, 0.3),
                   "a number added to the lightness of HLS", pixels=_only("lightness")))
