"""What sampling costs beyond the bare forward passes on the same batches, and normals per
second."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.machine import describe, header
from benchmarks.report import RESULTS, table, write
from certify import smooth
from certify.smoothing.methods import METHODS
from certify.smoothing.noise import Gaussian
from certify.training import network

SHAPE = (1, 28, 28)
NETS = ("cnn3", "dm-small", "dm-medium")


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smoothing_cost",
                                     description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--batch", type=int, default=250, metavar="N", help="default: 250")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()
    machine = describe()
    torch.manual_seed(0)
    rows = [_row(name, options.batch, options.repeats) for name in NETS]
    normals, torchs = _normals(options.repeats)
    text = "\n".join([
        "# Cost of sampling\n", header(machine),
        f"\n`python -m benchmarks.smoothing_cost`: process CPU milliseconds per batch of "
        f"{options.batch} MNIST-sized images, medians of {options.repeats}. *Bare*: the model "
        f"alone "
        "on a batch that lies ready. *Sampling*: noise, model, votes and counts, as in "
        "`certify.smooth`; first-order also sums noise by vote.\n",
        table(["network", "bare", "sampling", "first-order", "overhead %", "first-order overhead "
                                                                           "%"],
              rows),
        f"\nNoise alone: {normals:.0f} million normals per CPU second, torch.randn {torchs:.0f}."])
    print(text)
    write(options.out, "smoothing_cost", text, {"machine": machine, "rows": rows,
                                                "normals": normals, "torch": torchs})
    return 0


def _row(name: str, batch: int, repeats: int) -> list[Any]:
    model = network(name, SHAPE, 10).eval()
    x = torch.rand(batch, *SHAPE).contiguous(memory_format=torch.channels_last)
    count = 4

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(count):
                model(x)

    image = torch.rand(1, *SHAPE)
    runs: list[Callable[[], None]] = [bare]
    for method in ("single-stage", "first-order"):
        runs.append(_sampling(model, method, image, count * batch, batch))
    times = _interleaved(runs, repeats)
    plain, zero, first = (1000 * t / count for t in times)
    return [name, plain, zero, first, 100 * (zero / plain - 1), 100 * (first / plain - 1)]


def _sampling(
    model: nn.Module, method: str, image: torch.Tensor, n: int, batch: int
) -> Callable[[], None]:
    """Counts only: no certificate, no check of the model."""
    from certify.smoothing.sampling import Sampler, drive

    smoothed = smooth(model, sigma=0.5, method=method, n=n, n0=1, batch=batch)
    base, flat = smoothed.base(tuple(image.shape[1:])), image.reshape(-1)

    def run() -> None:
        plan = METHODS[method].plan(smoothed.budget, smoothed.noise, base.size)
        drive(Sampler(base, smoothed.noise, 0, batch), [("x", flat)], [plan])

    return run


def _interleaved(runs: list[Callable[[], None]], repeats: int) -> list[float]:
    """Median CPU seconds of each, measured in turn so that load meets all alike."""
    found: list[list[float]] = [[] for _ in runs]
    for number in range(repeats + 1):
        for times, run in zip(found, runs, strict=True):
            begun = time.process_time()
            run()
            if number:  # the first round warms up
                times.append(time.process_time() - begun)
    return [statistics.median(times) for times in found]


def _normals(repeats: int) -> tuple[float, float]:
    out, x = torch.empty(2000, 784), torch.zeros(784)
    noise = Gaussian(1.0)
    ours, theirs = _interleaved([lambda: noise.fill(x, 1, 0, out), lambda: out.normal_()], repeats)
    return out.numel() / ours / 1e6, out.numel() / theirs / 1e6


if __name__ == "__main__":
    sys.exit(main())
