"""One cell of the table: a network trained by one method, and what each verifier makes of it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import certify
from certify.bounds.program import prepare
from certify.core.graph import Graph
from certify.evaluation.attacks.arena import Arena
from certify.evaluation.attacks.ascent import pgd
from certify.evaluation.attacks.losses import cross_entropy
from certify.evaluation.tightness import tightness
from certify.importers.datasets import Images, load_images
from certify.search.surrogate import surrogate
from certify.training.session.loop import train
from certify.training.session.recipe import Recipe

METHODS = ("standard", "pgd", "ibp", "crown-ibp", "sabr", "mtl-ibp", "cc-ibp", "exp-ibp")
RADII = (0.05, 0.1)
COLUMNS = ("clean", "ibp-no-elision", "ibp", "crown-ibp", "crown", "union", "pgd", "tightness",
           "cpu_seconds")
_RESTARTS, _STEPS = 10, 40


def recipe(method: str, eps: float, seed: int, epochs: int = 150) -> Recipe:
    """The set-up of the table: 64-128-64-10 network, no clean term after the ramp."""
    return Recipe("digits", eps, method, "mlp", epochs=epochs, warmup=round(epochs / 15),
                  ramp=round(0.4 * epochs), batch=64, rate=2e-3, alpha=0.1, small_box=0.3,
                  fusion=False, validation=0.0, every=epochs, seed=seed)


def cell(asked: Recipe, count: int = 450) -> dict[str, float]:
    """The columns for one training run: per cent of test images, tightness, CPU seconds."""
    test = load_images("digits").take(slice(0, count))
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        model = train(asked, load_images("digits", "train"), Path(folder) / "run", _silent)
    spent = time.process_time() - started
    return {**judged(model, test, asked.eps), "cpu_seconds": spent}


def judged(model: nn.Module, test: Images, eps: float) -> dict[str, float]:
    """What the verifiers and the attack make of a network."""
    graph = certify.from_torch(model, torch.zeros(1, *test.shape))
    found: dict[str, float] = {"ibp-no-elision": _without_elision(graph, test, eps)}
    proved = np.zeros(len(test), dtype=bool)
    for method in ("ibp", "crown-ibp", "crown"):
        one = certify.evaluate(graph, test.x, test.y, eps, verifier=method, attack="none")
        found |= {"clean": one.clean, method: one.certified}
        proved |= np.array([f.status == "certified" for f in one.findings])
    standing = _under_attack(graph, test, eps)
    if (proved & ~standing).any():
        raise SystemExit("an attack broke a certified image: a bound is wrong")
    return found | {"union": _per_cent(proved), "pgd": _per_cent(standing),
                    "tightness": float(tightness(graph, test.x, test.y).mean())}


def _without_elision(graph: Graph, test: Images, eps: float) -> float:
    """Per cent certified when bounds of the scores are subtracted, not bounds of differences."""
    region = certify.Linf(test.x[:, None].astype(np.float64), eps, clip=(0.0, 1.0))
    with torch.no_grad():
        box = certify.bound(graph, region, "ibp")
    lower, upper = (e.reshape(len(test), -1) for e in (box.lower, box.upper))
    labels = torch.from_numpy(test.y)[:, None]
    others = upper.scatter(1, labels, -torch.inf).amax(1)
    return _per_cent((lower.gather(1, labels)[:, 0] > others).numpy())


def _per_cent(chosen: np.ndarray) -> float:
    return float(chosen.sum() / (len(chosen) / 100))  # as `certify.evaluate` rounds it


def _under_attack(graph: Graph, test: Images, eps: float) -> np.ndarray:
    """Which images projected gradient descent on the cross-entropy does not break."""
    region = certify.Linf(test.x[:, None].astype(np.float64), eps, clip=(0.0, 1.0))
    with torch.no_grad():
        program = prepare(graph, torch.float32, "cpu")
    arena = Arena(surrogate(program), region.batched(graph.input_shapes[0]),
                  torch.from_numpy(test.y))
    starts: Tensor = arena.sample(_RESTARTS, 5)
    record = pgd(arena, starts, cross_entropy(arena.labels), _STEPS, eps)
    clean = pgd(arena, arena.centre(), cross_entropy(arena.labels), 1, 0.0)
    return (torch.minimum(record.margin, clean.margin) > 0).numpy()


def _silent(line: dict[str, object], epochs: int) -> None:
    return


__all__ = ["COLUMNS", "METHODS", "RADII", "cell", "judged", "recipe"]
