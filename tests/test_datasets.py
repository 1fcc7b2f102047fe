"""Labelled images from every kind of source, and what is said about bad ones."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from certify.core.errors import BadInput, CertifyError, LimitExceeded, Unsupported, UsageError
from certify.importers.datasets import load_images

PIXELS = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4) * 10


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, kind, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def test_digits_are_split_as_published() -> None:
    train, test = load_images("digits", "train"), load_images("digits")
    assert (len(train), len(test), test.shape, test.num_classes) == (1347, 450, (1, 8, 8), 10)
    assert test.x.dtype == np.float32 and test.x.min() == 0 and test.x.max() == 1
    inside = {image.tobytes() for image in train.x}
    assert sum(image.tobytes() in inside for image in test.x) <= 1  # the data repeat an image
    assert np.bincount(test.y).min() >= 43


def test_npz_takes_bytes_floats_and_both_layouts(tmp_path: Path) -> None:
    labels = np.array([1, 0])
    floats = (PIXELS / np.float32(255)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=PIXELS, y=labels)
    np.savez(tmp_path / "b.npz", images=floats[:, None], labels=labels[:, None])
    colour = np.stack([PIXELS.reshape(2, 2, 6)] * 3, axis=-1)
    np.savez(tmp_path / "c.npz", x_test=colour, y_test=labels, x_train=PIXELS, y_train=labels)
    one, two = load_images(tmp_path / "a.npz"), load_images(tmp_path / "b.npz")
    assert one.shape == (1, 3, 4) and np.array_equal(one.x, two.x) and one.sha256 == two.sha256
    three = load_images(tmp_path / "c.npz")
    assert three.shape == (3, 2, 6)
    assert np.array_equal(three.x[:, 1].reshape(2, -1), one.x[:, 0].reshape(2, -1))
    assert load_images(tmp_path / "c.npz", "train").shape == (1, 3, 4)
    assert one.sha256 != three.sha256
    assert one.take(np.array([1])).y.tolist() == [0]


def test_features_stay_features(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", x=np.full((3, 5), 0.5), y=np.array([0, 1, 2]))
    found = load_images(tmp_path / "f.npz")
    assert found.shape == (5,) and found.num_classes == 3


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_files(tmp_path: Path, packed: bool) -> None:
    for stem, array in (("train-images-idx3-ubyte", PIXELS), ("t10k-images-idx3-ubyte", PIXELS[:1]),
                        ("train-labels-idx1-ubyte", np.array([7, 8])),
                        ("t10k-labels-idx1-ubyte", np.array([9]))):
        data = idx(array)
        name = f"{stem}.gz" if packed else stem
        (tmp_path / name).write_bytes(gzip.compress(data) if packed else data)
    train, test = load_images(tmp_path, "train"), load_images(tmp_path)
    assert train.shape == (1, 3, 4) and train.y.tolist() == [7, 8] and test.y.tolist() == [9]
    ending = ".gz" if packed else ""
    alone = load_images(tmp_path / f"train-images-idx3-ubyte{ending}")
    assert np.array_equal(alone.x, train.x)
    assert float(train.x[1, 0, 2, 3]) == np.float32(230) / np.float32(255)


def test_real_mnist(data: Path) -> None:
    found = load_images(data / "mnist")
    assert found.x.shape == (10_000, 1, 28, 28) and found.y[:4].tolist() == [7, 2, 1, 0]


def test_a_folder_of_images(tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image")
    for split in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for i in range(2):
                grey = np.full((3, 4), 100 * label + 10 * i, np.uint8)
                Image.fromarray(grey if split == "test" else np.stack([grey] * 3, -1)).save(
                    place / f"{i}.png")
    test, train = load_images(tmp_path), load_images(tmp_path, "train")
    assert test.shape == (1, 3, 4) and train.shape == (3, 3, 4)
    assert test.classes == ("cat", "dog") and test.y.tolist() == [0, 0, 1, 1]
    assert float(test.x[3, 0, 0, 0]) == np.float32(110) / np.float32(255)
    (tmp_path / "test" / "cat" / "9.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"9\.png: cannot be decoded"):
        load_images(tmp_path)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "test" / "cat" / "9.png")
    with pytest.raises(BadInput, match=r"\(1, 5, 5\).*bring all images to one size"):
        load_images(tmp_path)


def _saved(tmp_path: Path, **arrays: np.ndarray) -> Path:
    np.savez(tmp_path / "bad.npz", **arrays)
    return tmp_path / "bad.npz"


@pytest.mark.parametrize(("arrays", "words"), [
    ({"x": PIXELS}, "no array 'y' or 'y_test'"),
    ({"z": PIXELS, "y": np.array([0, 1])}, "no array 'x'.*z"),
    ({"x": PIXELS, "y": np.array([0])}, "2 inputs and 1 labels"),
    ({"x": PIXELS, "y": np.array([0, -1])}, "labels from -1"),
    ({"x": PIXELS, "y": np.array([0.0, 1.0])}, "whole numbers"),
    ({"x": PIXELS.astype(float), "y": np.array([0, 1])}, "Divide by 255"),
    ({"x": PIXELS.astype(int), "y": np.array([0, 1])}, "give bytes"),
    ({"x": np.full((2, 4), np.nan), "y": np.array([0, 1])}, "NaN"),
    ({"x": np.zeros(2), "y": np.array([0, 1])}, "shape"),
    ({"x": np.zeros((0, 4)), "y": np.zeros(0, int)}, "at least one"),
])
def test_bad_arrays_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(BadInput, match=rf"bad\.npz: .*{words}"):
        load_images(_saved(tmp_path, **arrays))


def test_bad_files_are_named(tmp_path: Path) -> None:
    images = tmp_path / "a-images-idx3-ubyte"
    labels = tmp_path / "a-labels-idx1-ubyte"
    images.write_bytes(idx(PIXELS))
    cases: list[tuple[Path | str, bytes, type[CertifyError], str]] = [
        (images, b"", BadInput, "labels.*not beside it"),
        (images, idx(np.array([0, 1]))[:-1], BadInput, "1 bytes where the header needs 2"),
        (images, idx(np.array([0, 1]), kind=13), BadInput, "unsigned bytes"),
        (images, b"hello", BadInput, "not an IDX file"),
        (images, bytes([0, 0, 8, 4]) + b"\xff" * 16, LimitExceeded, "beyond"),
        (labels, b"x", BadInput, "give the file of the images"),
        (tmp_path / "none.npz", b"", BadInput, "no such file"),
        (tmp_path / "none", b"", BadInput, "no such file or folder"),
        (tmp_path, b"x", BadInput, "one sub-folder per class"),
    ]
    for source, content, error, words in cases:
        labels.unlink(missing_ok=True)
        if content:
            labels.write_bytes(content)
        with pytest.raises(error, match=words):
            load_images(source)
    (tmp_path / "a.csv").write_text("1")
    with pytest.raises(Unsupported, match=re.escape("a.csv: not a known kind of data")):
        load_images(tmp_path / "a.csv")
    with pytest.raises(UsageError, match="choose train or test"):
        load_images("digits", "validation")
