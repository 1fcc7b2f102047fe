"""A block of images judged in a worker process of ``certify eval``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.errors import BadInput
from certify.evaluation.finding import UNKNOWN, Finding
from certify.evaluation.plan import Plan

if TYPE_CHECKING:
    from certify.core.graph import Graph
    from certify.importers.datasets import Images

_PLAN = ("norm", "verifier", "attack", "timeout", "semantics", "seed", "device", "memory")


def prepare(settings: Mapping[str, Any]) -> None:
    """Load the model and the images, once per worker; both must be those the run began with."""
    import torch

    torch.set_num_threads(int(settings["threads"]))
    loaded(settings["model"], settings["factory"], settings["data"], settings["split"],
           settings["data_sha256"])


def judge_block(item: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Judge the images ``start`` to ``stop`` within ``eps``.

    Returns:
        ``findings``: a `Finding.record` for each; ``tightness``: of the first radius, or None.
    """
    from certify.evaluation.judge import judge
    from certify.evaluation.tightness import tightness

    graph, images = loaded(settings["model"], settings["factory"], settings["data"],
                            settings["split"], settings["data_sha256"])
    at = slice(item["start"], item["stop"])
    plan = Plan(item["eps"], **{name: settings[name] for name in _PLAN})
    found = judge(graph, images.x[at], images.y[at], plan, item["start"])
    tight = tightness(graph, images.x[at], images.y[at]).tolist() if item["first"] else None
    return {"findings": [f.record() for f in found], "tightness": tight}


def findings_of(record: Mapping[str, Any]) -> list[Finding]:
    """The findings in a line of the journal.

    Where the worker came to no end its images are unknown: not certified, and not known to be
    misclassified or broken, so that upper bounds of accuracy stay upper bounds.
    """
    if record["status"] == "done":
        return [Finding.read(f) for f in record["result"]["findings"]]
    item, why = record["item"], f"{record['status']}: {record.get('error', '')}"
    return [Finding(i, item["eps"], -1, -1, why=why) for i in range(item["start"], item["stop"])]


def described(record: Mapping[str, Any]) -> tuple[str, str, bool]:
    """A finished block for the progress line."""
    found, item = findings_of(record), record["item"]
    where = f"images {item['start']} to {item['stop'] - 1}, eps {item['eps']:g}"
    wrong = next((f.contradiction for f in found if f.contradiction), "")
    if wrong or record["status"] != "done":
        return "failed", f"{where}: {wrong or record.get('error')}", True
    certified = sum(f.status == "certified" for f in found)
    open_ = sum(f.status == UNKNOWN for f in found)
    return "done", f"{where}: {certified} certified, {open_} unknown", False


@lru_cache(maxsize=1)
def loaded(model: str, factory: str | None, data: str, split: str,
           sha256: str) -> tuple[Graph, Images]:
    """Model and images, those a run began with.

    Raises:
        BadInput: the data have changed, or model and data do not fit each other.
    """
    from certify.evaluation.evaluate import check_fit
    from certify.importers.datasets import load_images
    from certify.importers.model_source import ModelSource

    images = load_images(data, split)
    if images.sha256 != sha256:
        raise BadInput(f"{images.name}: the data have changed since this run began")
    graph = ModelSource(model, factory).graph(images.shape)
    check_fit(graph, images.x, np.asarray(images.y))
    return graph, images
