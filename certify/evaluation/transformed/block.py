"""A block of images judged in a worker process of ``certify semantic``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from certify.evaluation.block import loaded
from certify.evaluation.transformed.sweep import Finding, Options, sweep


def prepare(settings: Mapping[str, Any]) -> None:
    """Load the model and the images, once per worker."""
    import torch

    torch.set_num_threads(int(settings["threads"]))
    _loaded(settings)


def judge_block(item: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Judge the images ``start`` to ``stop``.

    Returns:
        ``findings``: a record for each, see `record`.
    """
    network, images = _loaded(settings)
    here = slice(item["start"], item["stop"])
    options = Options(piece=settings["piece"], method=settings["method"],
                      attack=settings["attack"], semantics=settings["semantics"],
                      device=settings["device"])
    ranges = {name: (low, high) for name, low, high in settings["ranges"]}
    x = images.x[here].astype(np.float64)
    found = list(sweep(network, x, images.y[here], ranges, options))
    for finding, image in zip(found, x, strict=True):
        finding.index += item["start"]
        if settings["certificates"] and finding.verdict != "misclassified":
            from certify.evaluation.transformed.certificates import certificate

            folder = Path(settings["certificates"])
            folder.mkdir(parents=True, exist_ok=True)
            certificate(network, image, finding, settings["semantics"]).save(
                folder / f"image_{finding.index}.json")
    return {"findings": [record(f) for f in found]}


def record(finding: Finding) -> dict[str, Any]:
    """Plain data: verdict, share proved, and for one parameter the ranges; None for no range."""
    found: dict[str, Any] = {
        "index": finding.index, "label": finding.label, "predicted": finding.predicted,
        "verdict": finding.verdict, "share": finding.share,
        "attacked": finding.attacked[:1].tolist(), "seconds": round(finding.seconds, 4)}
    if len(finding.pieces.names) == 1:
        for name, ends in (("certified_range", finding.certified_range()),
                           ("attacked_range", finding.attacked_range())):
            found[name] = None if np.isnan(ends[0]) else list(ends)
    return found


def findings_of(line: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records in a line of the journal; images of a failed block are unknown."""
    if line["status"] == "done":
        found: list[dict[str, Any]] = line["result"]["findings"]
        return found
    item = line["item"]
    return [{"index": i, "label": -1, "predicted": -1, "verdict": "unknown", "share": 0.0,
             "attacked": [], "seconds": 0.0} for i in range(item["start"], item["stop"])]


def described(line: Mapping[str, Any]) -> tuple[str, str, bool]:
    """A finished block for the progress line."""
    item = line["item"]
    where = f"images {item['start']} to {item['stop'] - 1}"
    if line["status"] != "done":
        return "failed", f"{where}: {line.get('error')}", True
    found = findings_of(line)
    certified = sum(f["verdict"] == "certified" for f in found)
    open_ = sum(f["verdict"] == "unknown" for f in found)
    return "done", f"{where}: {certified} certified, {open_} unknown", False


def _loaded(settings: Mapping[str, Any]) -> Any:
    return loaded(settings["model"], settings["factory"], settings["data"], settings["split"],
                  settings["data_sha256"])
