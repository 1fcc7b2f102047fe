"""A trained network as an ONNX file, and the questions about it as VNN-LIB files."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from certify.core.atomic import write_whole
from certify.core.region import Box, Linf
from certify.core.spec import Spec
from certify.importers.datasets import Images
from certify.importers.vnnlib_writer import write_vnnlib

MODEL, QUERIES, INSTANCES = "model.onnx", "queries", "instances.csv"


def export_onnx(model: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """Write a network for one image at a time, input ``image (1, *shape)``, output ``scores``.

    Raises:
        CannotWrite: the file system refused.
    """
    buffer: Any = io.BytesIO()  # any file object will do; the annotation of torch says less
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's newer exporter needs a package of its own
        torch.onnx.export(model.eval(), (torch.zeros(1, *shape),), buffer, dynamo=False,
                          opset_version=17, input_names=["image"], output_names=["scores"])
    write_whole(path, buffer.getvalue())


def write_queries(images: Images, eps: float, classes: int, folder: Path, seconds: float) -> None:
    """One property per image, and the list of them for ``certify bench``.

    Args:
        folder: holds `MODEL` already.
        seconds: time limit of each.

    Raises:
        CannotWrite: the file system refused.
    """
    (folder / QUERIES).mkdir(exist_ok=True)
    lines = []
    for index, (image, label) in enumerate(zip(images.x, images.y, strict=True)):
        region = Linf(image.astype(np.float64)[None], eps, clip=(0.0, 1.0))
        lower, upper = region.batched(images.shape).ends()
        name = f"{QUERIES}/image_{index}.vnnlib"
        write_vnnlib(folder / name, Box(np.asarray(lower)[0], np.asarray(upper)[0]),
                     Spec.classify(int(label), classes))
        lines.append(f"{MODEL},{name},{seconds:g}\n")
    write_whole(folder / INSTANCES, "".join(lines).encode("ascii"))
