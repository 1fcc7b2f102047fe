"""One input, certified in a worker process of ``certify smooth``."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certify.core.errors import BadInput

if TYPE_CHECKING:
    from certify.importers.datasets import Images
    from certify.smoothing.certifier import Smoothed


def certify_input(item: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Certify one input.

    Returns:
        ``predict`` (-1: abstained), ``radius``, ``correct``, ``why``, and everything that
        `certify.smoothing.rules.apply` needs to find the radius again.
    """
    started = time.monotonic()
    smoothed, images = loaded(json.dumps(dict(settings), sort_keys=True))
    x = images.x[item["index"]]
    [made] = smoothed.certify(x[None], settings["radius"])
    votes = made.votes
    if votes is None:
        raise BadInput("a smoothed certificate brings votes")
    holds = made.radius is not None
    case = made.claim.cases[0]
    label = int(case.spec.rows().y.argmax(-1).reshape(-1)[0])
    if settings["certificates"]:
        folder = Path(settings["certificates"])
        folder.mkdir(parents=True, exist_ok=True)
        made.save(folder / f"{item['index']:06d}.json")
    return {
        "predict": label if holds else -1, "radius": made.radius or 0.0,
        "correct": holds and label == item["label"], "why": made.reason, "rule": votes.rule,
        "alpha": votes.alpha, "norm": votes.norm, "settings": dict(votes.settings),
        "counts": {stage: counts.tolist() for stage, counts in votes.counts.items()},
        "sums": {name: sums.tolist() for name, sums in votes.sums.items()},
        "size": int(x.size), "seconds": round(time.monotonic() - started, 6),
    }


def tried(settings: Mapping[str, Any]) -> None:
    """Build the model and refuse settings under which nothing could be certified.

    Raises:
        CertifyError: what any input would raise.
    """
    from certify.smoothing.methods import refuse_hopeless

    smoothed, images = loaded(json.dumps(dict(settings), sort_keys=True))
    base = smoothed.base(images.shape)
    if int(images.y.max()) >= base.classes:
        raise BadInput(f"a label is {int(images.y.max())}, the model knows classes up to "
                       f"{base.classes - 1}")
    from dataclasses import replace

    decides = settings["radius"] is not None
    budget = replace(smoothed.budget, radius=settings["radius"]) if decides else smoothed.budget
    refuse_hopeless(budget, "decision" if decides else smoothed.method, smoothed.noise, base.size)


@lru_cache(maxsize=1)
def loaded(text: str) -> tuple[Smoothed, Images]:
    """Model and data of a worker, once."""
    from certify.importers.datasets import load_images
    from certify.importers.model_source import ModelSource
    from certify.smooth import smooth
    from certify.smoothing.base import Precision
    from certify.smoothing.noise import noise_from

    settings = json.loads(text)
    images = load_images(settings["source"], settings["split"])
    sources = [ModelSource(path, settings["factory"]) for path in settings["paths"]]
    models = [s.graph(images.shape) if s.is_onnx else s.module() for s in sources]
    noise = dict(settings["noise"])
    name = noise.pop("name")
    smoothed = smooth(
        tuple(models) if len(models) > 1 else models[0], noise=noise_from(name, noise),
        method=settings["method"], n0=settings["n0"], n=settings["n"], alpha=settings["alpha"],
        norm=settings["norm"], seed=settings["seed"], batch=settings["batch"],
        device=settings["device"], precision=Precision(autocast=settings["autocast"]))
    return smoothed, images
