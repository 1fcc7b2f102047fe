"""A folder of images whose sub-folders are the classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from certify.core.errors import BadInput, LimitExceeded, Unsupported, one_line
from certify.importers.files import shown
from certify.ops.builder import LARGEST_TENSOR

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".webp")


def read_image_folder(folder: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images ``(N, C, H, W)`` of bytes, labels ``(N,)``, and the names of the classes.

    The classes are the sub-folders in alphabetical order, the images in each likewise. All images
    need one size; grey ones have one channel, others three. Decoding needs Pillow.

    Raises:
        BadInput: no classes, no images, an unreadable one, or sizes that differ.
        LimitExceeded: more elements than any tensor may have.
        Unsupported: Pillow is not installed.
    """
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [(label, path) for label, place in enumerate(classes)
             for path in sorted(place.iterdir()) if path.suffix.lower() in ENDINGS]
    if not files:
        raise BadInput(f"{shown(folder)}: no images; a folder of images has one sub-folder per "
                       f"class with {' '.join(ENDINGS)} files in it")
    opener = _pillow()
    first = _decoded(opener, files[0][1])
    if first.size * len(files) > LARGEST_TENSOR:
        raise LimitExceeded(f"{shown(folder)}: {len(files)} images of {first.size} values each are "
                            f"beyond {LARGEST_TENSOR} elements; use fewer")
    images = np.empty((len(files), *first.shape), np.uint8)
    for index, (_, path) in enumerate(files):
        image = first if index == 0 else _decoded(opener, path)
        if image.shape != first.shape:
            raise BadInput(f"{shown(path)}: channels, height and width are {image.shape}, those of "
                           f"{shown(files[0][1])} {first.shape}; bring all images to one size")
        images[index] = image
    labels = np.array([label for label, _ in files], np.int64)
    return images, labels, tuple(place.name for place in classes)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise Unsupported("reading image files needs Pillow: pip install 'certify[images]', or "
                          "bring the images into one .npz file") from None
    return Image


def _decoded(opener: Any, path: Path) -> np.ndarray:
    """Bytes ``(C, H, W)`` of one image."""
    try:
        with opener.open(path) as image:
            grey = image.mode in ("1", "L", "I;16", "I")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, ValueError, SyntaxError, opener.DecompressionBombError) as problem:
        raise BadInput(f"{shown(path)}: cannot be decoded: {one_line(problem, 100)}") from None
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
