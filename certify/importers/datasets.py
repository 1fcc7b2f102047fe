"""Labelled images from where people keep them: npz, MNIST's files, folders, built-in digits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from certify.core.errors import BadInput, Unsupported, UsageError, one_line
from certify.importers.files import shown
from certify.importers.idx_format import read_idx
from certify.importers.image_folder import read_image_folder

SPLITS = ("train", "test")
_IMAGES, _LABELS = ("x", "images", "data"), ("y", "labels", "targets")
_CHANNELS = (1, 3)
_MOST_CLASSES = 2**31


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled inputs.

    Attributes:
        x: float32 in [0, 1], ``(N, C, H, W)``; ``(N, features)`` where they are no images.
        y: int64 labels ``(N,)``, from 0.
        name: of where they come from, for messages and reports.
        classes: names of the classes, or () where there are none.
    """

    x: np.ndarray
    y: np.ndarray
    name: str
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return tuple(self.x.shape[1:])

    @property
    def num_classes(self) -> int:
        """One more than the largest label; the number of named classes where there are names."""
        return len(self.classes) or int(self.y.max()) + 1

    @cached_property
    def sha256(self) -> str:
        """Of shapes, pixels and labels: the same data gives the same digest wherever it lies."""
        found = hashlib.sha256(f"{self.x.shape}".encode())
        found.update(np.ascontiguousarray(self.x).data)
        found.update(np.ascontiguousarray(self.y).data)
        return found.hexdigest()

    def take(self, index: np.ndarray | slice) -> Images:
        """Some of them, in the order of ``index``."""
        return replace(self, x=self.x[index], y=self.y[index])


def load_images(source: str | Path, split: str = "test") -> Images:
    """Labelled images.

    Args:
        source: one of

            * ``digits``: scikit-learn's 1797 handwritten digits of 8x8 pixels; three quarters are
              the training split, stratified, from seed 0;
            * an ``.npz`` file with arrays ``x`` and ``y`` (or ``images`` and ``labels``), or
              ``x_train``, ``y_train``, ``x_test``, ``y_test``;
            * an IDX file of images (``...images-idx3-ubyte``, plain or ``.gz``), its labels beside
              it, or a folder with MNIST's four files;
            * a folder of images with one sub-folder per class, perhaps below ``train`` and
              ``test``.
        split: ``"train"`` or ``"test"``, where the source has both.

    Raises:
        BadInput: missing or malformed data: no labels, another number of them, values outside
            [0, 1].
        LimitExceeded, Refused: as `certify.load_weights`.
        Unsupported: another kind of source, or a library that is not installed.
        UsageError: an unknown split.
    """
    if split not in SPLITS:
        raise UsageError(f"there is no split {one_line(split, 40)!r}; choose train or test")
    if str(source) == "digits":
        return _digits(split)
    path = Path(source)
    name = path.name.lower()
    if path.is_dir():
        return _folder(path, split)
    if name.endswith(".npz"):
        return _npz(path, split)
    if "idx3" in name or name.endswith("-ubyte") or name.endswith("-ubyte.gz"):
        return _idx(path)
    if not path.exists():
        raise BadInput(f"{shown(path)}: no such file or folder; data are 'digits', an .npz file, "
                       "MNIST's IDX files, or a folder of images")
    raise Unsupported(f"{shown(path)}: not a known kind of data; give 'digits', an .npz file, "
                      "MNIST's IDX files, or a folder of images")


def _digits(split: str) -> Images:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise Unsupported("the built-in digits need scikit-learn: pip install scikit-learn, or "
                          "give an .npz file") from None
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    parts = train_test_split(images, labels.astype(np.int64), test_size=0.25, random_state=0,
                             stratify=labels)
    at = SPLITS.index(split)
    return Images(np.ascontiguousarray(parts[at]), np.asarray(parts[2 + at]), f"digits ({split})")


def _folder(path: Path, split: str) -> Images:
    """MNIST's files, or images in sub-folders."""
    stem = {"train": "train", "test": "t10k"}[split]
    for ending in ("", ".gz"):
        file = path / f"{stem}-images-idx3-ubyte{ending}"
        if file.is_file():
            return _idx(file)
    here = path / split if (path / split).is_dir() else path
    images, labels, classes = read_image_folder(here)
    return _checked(images, labels, here, classes)


def _idx(path: Path) -> Images:
    if "images" not in path.name:
        raise BadInput(f"{shown(path)}: give the file of the images (...images-idx3-ubyte); its "
                       "labels are found beside it")
    base = path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    beside = [path.with_name(base), path.with_name(f"{base}.gz")]
    labels = next((p for p in beside if p.is_file()), None)
    if labels is None:
        raise BadInput(f"{shown(path)}: its labels, {base} or {base}.gz, are not beside it")
    return _checked(read_idx(path), read_idx(labels), path)


def _npz(path: Path, split: str) -> Images:
    from certify.importers.checkpoints import load_weights

    arrays = load_weights(path)
    x = _named(arrays, _IMAGES, split, path)
    return _checked(x, _named(arrays, _LABELS, split, path), path)


def _named(arrays: dict[str, np.ndarray], names: tuple[str, ...], split: str,
           path: Path) -> np.ndarray:
    """The array of a split, or the only one."""
    for name in (*(f"{n}_{split}" for n in names), *names):
        if name in arrays:
            return arrays[name]
    there = one_line(", ".join(sorted(arrays)), 100) or "none"
    raise BadInput(f"{shown(path)}: no array {names[0]!r} or '{names[0]}_{split}' in it; its "
                   f"arrays are: {there}")


def _checked(x: np.ndarray, y: np.ndarray, path: Path, classes: tuple[str, ...] = ()) -> Images:
    name = shown(path)
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise BadInput(f"{name}: labels must be whole numbers, one per input, got shape {y.shape} "
                       f"of {y.dtype}")
    if len(x) != len(y) or not len(y):
        raise BadInput(f"{name}: {len(x)} inputs and {len(y)} labels; there must be one label for "
                       "each input, and at least one")
    if int(y.min()) < 0 or int(y.max()) >= _MOST_CLASSES:
        raise BadInput(f"{name}: labels from {int(y.min())} to {int(y.max())}; they count from 0")
    return Images(_scaled(_channels_first(x, name), name), y.astype(np.int64), name, classes)


def _channels_first(x: np.ndarray, name: str) -> np.ndarray:
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[1] not in _CHANNELS and x.shape[3] in _CHANNELS:
        return np.moveaxis(x, 3, 1)
    if x.ndim in (2, 4):
        return x
    raise BadInput(f"{name}: inputs of shape {x.shape}; give (N, C, H, W), (N, H, W, C), (N, H, W) "
                   "or (N, features)")


def _scaled(x: np.ndarray, name: str) -> np.ndarray:
    """float32 in [0, 1]; bytes are divided by 255."""
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x, dtype=np.float32) / np.float32(255)
    if x.dtype.kind != "f":
        raise BadInput(f"{name}: inputs of type {x.dtype}; give bytes (0 to 255) or floats in "
                       "[0, 1]")
    low, high = float(x.min(initial=0)), float(x.max(initial=0))
    if low < 0 or high > 1:
        raise BadInput(f"{name}: values from {low:g} to {high:g}; floats must lie in [0, 1]. "
                       "Divide by 255, and put any normalisation into the model")
    return np.ascontiguousarray(x, dtype=np.float32)
