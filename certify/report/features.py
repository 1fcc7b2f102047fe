"""What the features of a proof look at: one small picture of input gradients for each."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from certify.core.errors import BadInput

_TILE, _GAP, _TEXT, _COLUMNS = 112, 14, 34, 6
_LETTER = 6  # about the width of one
_UP, _DOWN = np.array([178, 24, 43]), np.array([33, 102, 172])  # red and blue on white


def pictures(
    gradients: NDArray[np.float64],
    labels: Sequence[str],
    caption: Sequence[str] = (),
    input_shape: Sequence[int] | None = None,
) -> str:
    """An SVG of one tile per feature, each scaled to its own largest entry.

    Args:
        gradients: ``(k, *shape)`` with shape ``(H, W)``, ``(C, H, W)`` or ``(1, C, H, W)``;
            channels are averaged. Red raises the feature, blue lowers it.
        labels: k of them; a second line after a line break.
        caption: lines below.
        input_shape: to read a flat input as an image, such as ``(28, 28)``.

    Raises:
        BadInput: not the shape of an image.
    """
    maps = _maps(gradients, input_shape)
    columns = max(1, min(_COLUMNS, len(maps)))
    rows = max(1, math.ceil(len(maps) / columns))
    below = _GAP + rows * (_TILE + _TEXT + _GAP)
    longest = max(map(len, caption), default=0)
    width = max(_GAP + columns * (_TILE + _GAP), 2 * _GAP + _LETTER * longest)
    height = below + 16 * len(caption) + _GAP
    parts = []
    for number, (tile, label) in enumerate(zip(maps, labels, strict=True)):
        x = _GAP + number % columns * (_TILE + _GAP)
        y = _GAP + number // columns * (_TILE + _TEXT + _GAP)
        parts += _tile(tile, label, x, y)
    for number, line in enumerate(caption):
        parts.append(f'<text x="{_GAP}" y="{below + 12 + 16 * number}" fill="#555">'
                     f"{escape(line)}</text>")
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>", ""])


def _tile(tile: NDArray[np.float64], label: str, x: int, y: int) -> list[str]:
    high, wide = tile.shape
    scale = _TILE / max(high, wide)
    w, h = wide * scale, high * scale
    data = base64.b64encode(_png(_coloured(tile))).decode("ascii")
    lines = label.split("\n")[:2]
    return [
        f'<image x="{x}" y="{y}" width="{w:.1f}" height="{h:.1f}" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>',
        f'<rect x="{x}" y="{y}" width="{w:.1f}" height="{h:.1f}" fill="none" stroke="#999"/>',
        *(f'<text x="{x}" y="{y + _TILE + 13 + 14 * n}">{escape(line)}</text>'
          for n, line in enumerate(lines)),
    ]


def _maps(gradients: NDArray[np.float64], shape: Sequence[int] | None) -> NDArray[np.float64]:
    """``(k, H, W)``."""
    given = gradients.shape[1:]
    if shape is not None:
        if math.prod(shape) != math.prod(given):
            raise BadInput(f"an input of shape {given} is no image of shape {tuple(shape)}")
        gradients = gradients.reshape(len(gradients), *shape)
    while gradients.ndim > 4 and gradients.shape[1] == 1:
        gradients = gradients[:, 0]
    if gradients.ndim == 4:
        gradients = gradients.mean(axis=1)
    if gradients.ndim != 3 or 1 in gradients.shape[1:]:
        raise BadInput(f"an input of shape {given} is no image; say how it is laid out, "
                       "such as 28,28")
    return gradients


def _coloured(tile: NDArray[np.float64]) -> NDArray[np.uint8]:
    """``(H, W, 3)``: white at 0, red above, blue below."""
    most = np.abs(tile).max()
    share = tile / most if most > 0 else np.zeros_like(tile)
    end = np.where(share[..., None] > 0, _UP, _DOWN)
    mixed = 255 + (end - 255) * np.abs(share)[..., None]
    return np.asarray(np.rint(mixed), dtype=np.uint8)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """The simplest PNG of ``(H, W, 3)`` bytes."""
    high, wide, _ = pixels.shape
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", wide, high, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks)
