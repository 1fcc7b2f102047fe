"""DM-small on MNIST by four methods at two radii: certified accuracy, and what it cost.

Networks are trained first and kept in ``WORK/training_mnist``; the same command goes on where the
last one ended.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

import certify
from benchmarks.data import folder
from benchmarks.machine import describe, header
from benchmarks.report import RESULTS, table, write
from benchmarks.training_mnist.train import (
    BATCH,
    RATE,
    SETTINGS,
    TRAINED_AT,
    at,
    model,
    trained,
)
from certify.importers.datasets import load_images

RADII = (0.1, 0.3)
GOALS = {0.1: 95.0, 0.3: 88.0}


def main() -> int:
    """Train, evaluate, print, write."""
    options = _arguments()
    torch.set_num_threads(options.threads)
    data = str(folder("mnist"))
    place = options.work / "training_mnist"
    machine = describe()
    runs = [(method, eps) for eps in RADII for method in SETTINGS]
    if not options.summary_only:
        for method, eps in runs:
            trained(place, method, eps, lambda: load_images(data, "train"))
    rows = [_row(place, method, eps, data, options) for method, eps in runs
            if (place / f"{method}_{eps:g}.pt").exists()]
    text = "\n".join([
        "# Certified training on MNIST\n", header(machine),
        f"\n`python -m benchmarks.training_mnist`: DM-small, batch {BATCH}, Adam {RATE:g}, one "
        f"thread, seed 0. Union: IBP, CROWN-IBP and CROWN on the first {options.images} test "
        f"images "
        f"and slopes where those fail; complete: a search of {options.timeout:g} s per image on "
        f"the "
        f"first {options.complete} of them. Attacked: the quick ensemble. Goals for the best "
        f"method: {GOALS[0.1]:g} % at 0.1, {GOALS[0.3]:g} % at 0.3.\n",
        table(["eps", "method", "trained at", "epochs", "train CPU s", "clean", "union", "attacked",
               "complete", "complete: attacked"], rows)])
    print(text)
    write(options.out, "training_mnist", text, {"machine": machine, "rows": rows})
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_mnist",
                                     description=__doc__)
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--complete", type=int, default=200, metavar="N", help="default: 200")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="default: 10")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--summary-only", action="store_true", help="only what is trained already")
    parser.add_argument("--work", type=Path, default=Path("build"), metavar="DIR",
                        help="where networks are kept (default: build)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    return parser.parse_args()


def _row(place: Path, method: str, eps: float, data: str, options: argparse.Namespace) -> list[Any]:
    found = torch.load(place / f"{method}_{eps:g}.pt", weights_only=True)
    kept = place / f"{method}_{eps:g}_{options.images}_{options.complete}.json"
    if not kept.exists():
        net = model()
        net.load_state_dict(found["weights"])
        kept.write_text(json.dumps(_evaluated(net.eval(), eps, data, options)))
    return [eps, method, TRAINED_AT[eps], at(SETTINGS[method]["epochs"], eps),
            found["cpu_seconds"], *json.loads(kept.read_text())]


def _evaluated(
    net: torch.nn.Module, eps: float, data: str, options: argparse.Namespace
) -> list[float]:
    """Clean, certified and attacked by the union; certified and attacked with a search."""
    images = load_images(data, "test")
    graph = certify.from_torch(net, torch.zeros(1, *images.shape))
    many, few = (images.take(slice(0, n)) for n in (options.images, options.complete))
    union = certify.evaluate(graph, many.x, many.y, eps, verifier="union", attack="quick")
    complete = certify.evaluate(graph, few.x, few.y, eps, verifier="complete", attack="quick",
                                timeout=options.timeout)
    print(f"clean {union.clean:.1f}, union {union.certified:.1f}, complete "
          f"{complete.certified:.1f}", file=sys.stderr)
    return [union.clean, union.certified, union.attacked, complete.certified, complete.attacked]


if __name__ == "__main__":
    sys.exit(main())
