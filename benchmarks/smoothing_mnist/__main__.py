"""Certified accuracy of a small network on MNIST: Gaussian, dual and first-order smoothing.

Networks are trained first and kept in ``OUT/smoothing_mnist/networks``; one JSON line per image and
sigma goes to ``OUT/smoothing_mnist/images``. The same command goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.child import environment
from benchmarks.data import folder
from benchmarks.machine import describe, header
from benchmarks.report import RESULTS, table, write
from benchmarks.smoothing_mnist.image import ATTACK_COPIES, ATTACK_STEPS
from benchmarks.smoothing_mnist.networks import EPOCHS, trained
from certify.campaign.job import Item, Job
from certify.campaign.progress import Progress
from certify.campaign.runner import Effort, read_records, run
from certify.importers.datasets import load_images

SIGMAS = (0.25, 0.5, 1.0)
METHODS = ("gaussian", "first-order l2", "dual, equal noise", "dual, equal cap")
PAIRS = (("l1", "gaussian l1", "first-order l1"), ("linf", "gaussian linf", "first-order linf"))
_STEPS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5)  # radii in units of sigma


def main() -> int:
    """Train, certify what is open, print and write the tables."""
    options = _arguments()
    data = str(folder("mnist"))
    place = options.work / "smoothing_mnist"
    machine = describe()
    for sigma in SIGMAS:
        for noise, halves in ((sigma, False), (sigma, True), (sigma / math.sqrt(2), True)):
            print(f"network for sigma {noise:.4g}{', dual' if halves else ''}", file=sys.stderr)
            trained(place / "networks", noise, halves, lambda: load_images(data, "train"))
    job = Job("benchmarks.smoothing_mnist.image:certify_image",
              {"n": options.n, "alpha": options.alpha},
              {"data": data, "nets": str((place / "networks").absolute())})
    images = load_images(data, "test")
    items = [Item(f"{sigma:g}:{i:05d}", {"sigma": sigma, "index": i, "label": int(images.y[i])})
             for i in range(options.images) for sigma in SIGMAS]
    effort = Effort(options.workers, environment={**environment(), "OMP_NUM_THREADS": "1"})
    if not options.summary_only:
        run(job, items, place / "images", effort, Progress(_described, verbose=True))
    records = [r for r in read_records(place / "images") if r["result"] is not None]
    text = report(machine, records, options)
    print(text)
    write(options.out, "smoothing_mnist", text, {"machine": machine, "n": options.n, "alpha":
          options.alpha, "images": [{**r["item"], **r["result"]} for r in records]})
    return int(len(records) < len(items) and not options.summary_only)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smoothing_mnist",
                                     description=__doc__)
    parser.add_argument("--images", type=int, default=200, metavar="N", help="default: 200")
    parser.add_argument("--n", type=int, default=100_000, metavar="N", help="default: 100000")
    parser.add_argument("--alpha", type=float, default=0.001, help="default: 0.001")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--work", type=Path, default=Path("build"), metavar="DIR",
                        help="where networks and lines are kept (default: build)")
    parser.add_argument("--summary-only", action="store_true", help="tables of what is finished")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    return parser.parse_args()


def _described(record: Mapping[str, Any]) -> tuple[str, str, bool]:
    found = record.get("result")
    if found is None:
        return "error", f"{record['key']}: {record.get('error')}", True
    radii = ", ".join(f"{name} {found[name]:.3f}" for name in METHODS)
    return "done", f"{record['key']}: {radii}", False


def report(machine: dict[str, Any], records: Sequence[Any], options: argparse.Namespace) -> str:
    """The tables."""
    images = [set(r["item"]["index"] for r in records if r["item"]["sigma"] == s) for s in SIGMAS]
    every = set.intersection(*images)  # the same images at every sigma
    parts = ["# Smoothing on MNIST\n", header(machine), _setting(options, len(every))]
    for sigma in SIGMAS:
        own = [r["result"] for r in records
               if r["item"]["sigma"] == sigma and r["item"]["index"] in every]
        if own:
            parts += [f"\n## sigma {sigma:g}\n", _accuracies(own, sigma), _bracket(own),
                      "", _norms(own), _decisions(own, options.n)]
    return "\n".join(parts) + "\n"


def _setting(options: argparse.Namespace, finished: int) -> str:
    return (
        f"\n`python -m benchmarks.smoothing_mnist`: the first {finished} test images of "
        f"{options.images}, n = {options.n}, n0 = 100, alpha = {options.alpha:g} per image and "
        f"method. Convolutions 8 and 16 (4x4, stride 2), 64 hidden units, {EPOCHS} epochs of "
        "Gaussian augmentation. Certified accuracy in percent of all images; abstentions and "
        "errors count as radius 0, also in the mean radius. Dual: one network for both branches, "
        "trained on halves; *equal noise*: the "
        "same sigma per pixel; *equal cap*: sigma / sqrt(2), which gives the same largest radius.")


def _accuracies(own: Sequence[Mapping[str, Any]], sigma: float) -> str:
    radii = [step * sigma for step in _STEPS]
    lines = [[name, *(_share(own, name, r) for r in radii), _mean(own, name)] for name in METHODS]
    return table(["l2 radius above", *(f"{r:g}" for r in radii), "mean radius"], lines)


def _share(own: Sequence[Mapping[str, Any]], name: str, radius: float) -> float:
    return 100.0 * sum(each[name] > radius for each in own) / len(own)


def _mean(own: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(sum(each[name] for each in own) / len(own))


def _bracket(own: Sequence[Mapping[str, Any]]) -> str:
    count = len(own)
    clean, smoothed = (100 * sum(each[k] for each in own) / count for k in ("clean", "smoothed"))
    said = ", ".join(f"{100 * sum(each['attacked'][r] for each in own) / count:.1f} at l2 radius "
                     f"{r}"
                     for r in own[0]["attacked"])
    return (f"\nBracket: base classifier without noise {clean:.1f}, smoothed {smoothed:.1f}, "
            f"smoothed "
            f"and attacked (PGD, {ATTACK_STEPS} steps on {ATTACK_COPIES} noises) {said}.")


def _norms(own: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for norm, zero, first in PAIRS:
        gains = sorted(each[first] / each[zero] for each in own if each[zero] > 0)
        middle = gains[len(gains) // 2] if gains else None
        most = gains[-1] if gains else None
        lines.append([norm, _mean(own, zero), _mean(own, first), middle, most])
    return table(["norm", "gaussian: mean radius", "first-order: mean radius", "median gain",
                  "largest gain"], lines)


def _decisions(own: Sequence[Mapping[str, Any]], n: int) -> str:
    answered = [each["decision"]["samples"] for each in own if each["decision"]["answered"]]
    tenth = 100 * sum(s <= n / 10 for s in answered) / len(own)
    middle = sorted(answered)[len(answered) // 2] if answered else 0
    return (f"\nDecision mode, \"is the radius at least sigma?\": {tenth:.1f} % of the images "
            f"answered "
            f"with at most a tenth of n = {n} samples; median {middle}.")


if __name__ == "__main__":
    sys.exit(main())
