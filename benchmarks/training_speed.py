"""CPU time of one training step of every method, in units of a clean step of the same network."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.machine import describe, header
from benchmarks.report import RESULTS, table, write
from certify.training import CertifiedLoss, Schedule, network

EPS = 0.1
HALF = Schedule(kappa=0.5, beta=1.0)
CASES: dict[str, tuple[dict[str, Any], float | None]] = {
    "ibp": ({"method": "ibp"}, 2.2),
    "ibp, clean term": ({"method": "ibp", "schedule": HALF}, 3.2),
    "crown-ibp fused, clean term": ({"method": "crown-ibp", "schedule": HALF}, 4.5),
    "crown-ibp all rows": ({"method": "crown-ibp", "schedule": Schedule(beta=1.0),
                            "fusion": False}, 11.0),
    "mtl-ibp, 1 step": ({"method": "mtl-ibp"}, None),
    "sabr, 8 steps": ({"method": "sabr"}, None),
    "pgd, 8 steps": ({"method": "pgd"}, None),
}
"""What is measured, and the multiple of a clean step that it should not exceed."""


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_speed",
                                     description=__doc__)
    parser.add_argument("--arch", default="dm-small", help="default: dm-small")
    parser.add_argument("--batch", type=int, default=128, metavar="N", help="default: 128")
    parser.add_argument("--repeats", type=int, default=11, metavar="N", help="default: 11")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()
    machine = describe()
    rows = _measure(options)
    text = "\n".join([
        "# Training speed\n", header(machine),
        f"\n`python -m benchmarks.training_speed --arch {options.arch} --batch {options.batch}`: "
        "process CPU milliseconds of a whole step (loss, gradient, Adam), medians of "
        f"{options.repeats}, all cases in turn.\n",
        table(["step", "CPU ms", "times a clean step", "at most"], rows)])
    print(text)
    write(options.out, "training_speed", text, {"machine": machine, "rows": rows})
    return 0


def _measure(options: argparse.Namespace) -> list[list[Any]]:
    torch.manual_seed(0)
    x = torch.rand(options.batch, 1, 28, 28)
    y = torch.randint(0, 10, (options.batch,))
    model = network(options.arch, (1, 28, 28), 10)
    optimiser = torch.optim.Adam(model.parameters(), 1e-4)

    def step(loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()

        return run

    runs = {"clean": step(lambda: F.cross_entropy(model(x), y))}
    for name, (given, _) in CASES.items():
        loss = CertifiedLoss(model, eps=EPS, **given)
        runs[name] = step(lambda loss=loss: loss(x, y, 1000))  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(options.repeats + 2):
        for name, run in runs.items():
            begun = time.process_time()
            run()
            if number > 1:
                times[name].append(time.process_time() - begun)
    middle = {name: statistics.median(found) for name, found in times.items()}
    goals = {"clean": None, **{name: goal for name, (_, goal) in CASES.items()}}
    return [[name, 1000 * t, t / middle["clean"], goals[name]] for name, t in middle.items()]


if __name__ == "__main__":
    sys.exit(main())
