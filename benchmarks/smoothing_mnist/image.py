"""One image at one sigma, by every method; runs in a worker."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.smoothing_mnist.networks import trained
from certify import smooth
from certify.core.votes import Votes
from certify.importers.datasets import Images, load_images
from certify.smoothing.noise import Gaussian
from certify.smoothing.rules import apply
from certify.training.smoothed import SmoothAdv

ATTACK_STEPS, ATTACK_COPIES, ATTACK_VOTES = 20, 32, 1000


def certify_image(item: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Radii of every method, and the number of samples each took."""
    torch.set_num_threads(1)
    sigma, label = item["sigma"], item["label"]
    place, data = Path(settings["nets"]), settings["data"]
    x = torch.from_numpy(_images(data).x[item["index"]])[None]
    plain = _net(str(place), data, sigma, False)
    found = {"clean": int(plain(x).argmax()) == label}
    found |= _zero_and_first_order(plain, x, label, settings, sigma)
    for name, noise in (("dual, equal noise", sigma), ("dual, equal cap", sigma / math.sqrt(2))):
        dual = smooth(_net(str(place), data, noise, True), sigma=noise, method="dual",
                      n=settings["n"], alpha=settings["alpha"])
        [votes] = dual.votes(x)
        found[name] = _radius(votes, Gaussian(noise), label, x.numel())
    decided = smooth(plain, sigma=sigma, n=settings["n"], alpha=settings["alpha"])
    [made] = decided.certify(x, sigma)
    counts = made.votes.counts if made.votes else {}
    found["decision"] = {"samples": int(sum(c.sum() for c in counts.values())),
                         "answered": "samples do not tell" not in made.reason}
    found["smoothed"] = int(decided.predict(x)[0]) == label
    found["attacked"] = {f"{r:g}": _attacked(plain, x, label, sigma, r) for r in (sigma, 2 * sigma)}
    return found


def _zero_and_first_order(
    net: nn.Module, x: torch.Tensor, label: int, settings: Mapping[str, Any], sigma: float
) -> dict[str, Any]:
    """All from the votes of one run, each rule at the whole alpha by itself."""
    smoothed = smooth(net, sigma=sigma, method="first-order", n=settings["n"],
                      alpha=settings["alpha"])
    [votes] = smoothed.votes(x)
    noise, size = Gaussian(sigma), x.numel()
    counts = votes.counts
    plain = Votes("two-stage", votes.alpha, "2", {}, {
        "selection": counts["selection"], "estimation": counts["first"] + counts["second"]})
    found = {"gaussian": _radius(plain, noise, label, size),
             "first-order l2": _radius(votes, noise, label, size)}
    for norm in ("1", "inf"):
        found[f"gaussian l{norm}"] = _radius(replace(plain, norm=norm), noise, label, size)
        found[f"first-order l{norm}"] = _radius(replace(votes, norm=norm), noise, label, size)
    return found


def _radius(votes: Votes, noise: Gaussian, label: int, size: int) -> float:
    """0 where it abstains or is wrong."""
    found = apply(votes, noise, size)
    return found.radius if found.label == label else 0.0


def _attacked(net: nn.Module, x: torch.Tensor, label: int, sigma: float, radius: float) -> bool:
    """Whether the smoothed classifier is still right after an attack on it within ``radius``."""
    generator = torch.Generator().manual_seed(0)
    attack = SmoothAdv(net, sigma, radius, ATTACK_STEPS, ATTACK_COPIES, generator=generator)
    moved = attack.attack(x, torch.tensor([label]), attack.noise(x))
    smoothed = smooth(net, sigma=sigma, n=ATTACK_VOTES)
    return int(smoothed.predict(moved.detach(), ATTACK_VOTES, 0.5)[0]) == label


@lru_cache(maxsize=2)
def _images(data: str, split: str = "test") -> Images:
    return load_images(data, split)


@lru_cache(maxsize=16)
def _net(place: str, data: str, sigma: float, halves: bool) -> nn.Module:
    return trained(Path(place), sigma, halves, lambda: load_images(data, "train"))
