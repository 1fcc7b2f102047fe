"""One image, in a worker process: is it classified rightly, and provably so?"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from certify.core.graph import Graph


def prepare(_settings: Mapping[str, Any]) -> None:
    """Load what every image needs, so that the first one is not charged for it."""
    import torch  # noqa: F401

    import certify.ladder  # noqa: F401
    from certify.verify import verify  # noqa: F401


def decide(item: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Decide an image.

    Args:
        item: ``net``, ``index`` and ``label``.
        settings: ``folder`` of the data, ``timeout``, ``threads`` and ``commit``.

    Returns:
        ``correct``; ``verdict``: that of `certify.verify`, or ``misclassified``, which is not
        searched; ``seconds`` of verifying, wall time; ``margin``, ``method`` and ``reason``.
    """
    import certify

    image, module, graph = _loaded(settings["folder"], item["net"], item["index"])
    said = {"commit": settings["commit"], "seconds": 0.0, "margin": None, "method": "",
            "reason": ""}
    if _class(module, image) != item["label"]:
        return {**said, "correct": False, "verdict": "misclassified"}
    from benchmarks.cnn_a.networks import radius

    started = time.monotonic()
    certificate = certify.verify(
        graph, certify.Linf(image, radius(item["net"]), clip=(0, 1)),
        certify.Spec.classify(item["label"], 10), settings["timeout"],
        workers=settings["threads"])
    seconds, margin = time.monotonic() - started, certificate.margin
    if margin is not None and not math.isfinite(margin):
        margin = None
    return {**said, "correct": True, "verdict": certificate.verdict.value, "seconds": seconds,
            "margin": margin, "method": certificate.provenance.method,
            "reason": certificate.reason}


def _class(module: nn.Module, image: np.ndarray) -> int:
    import torch

    with torch.no_grad():
        return int(module(torch.from_numpy(image)).argmax())


def _loaded(folder: str, net: str, index: int) -> tuple[np.ndarray, nn.Module, Graph]:
    images, module, graph = _network(folder, net)
    return images[index : index + 1], module, graph


@functools.cache
def _network(folder: str, net: str) -> tuple[np.ndarray, nn.Module, Graph]:
    import torch

    import certify
    from benchmarks.cnn_a.networks import images, model

    module, (pixels, _) = model(Path(folder), net), images(Path(folder), net)
    return pixels, module, certify.from_torch(module, torch.from_numpy(pixels[:1]))
