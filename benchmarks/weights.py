"""Labels of the bundled digits network that survive every rounding of its weights."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

import certify
from benchmarks.machine import describe, header
from benchmarks.report import RESULTS, table, write
from certify.evaluation.quantised import evaluate_quantised
from certify.importers.datasets import load_images

MODEL = Path(__file__).resolve().parent.parent / "examples" / "digits" / "digits.onnx"


def main() -> int:
    """Certify, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__)
    parser.add_argument("--limit", type=int, default=100, help="test images (default: 100)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network, images, machine = certify.load(MODEL), load_images("digits", "test"), describe()
    x, y, rows = images.x[:options.limit], images.y[:options.limit], []
    for bits in (16, 12, 10, 8, 7, 6, 4):
        begun = time.process_time()
        found = evaluate_quantised(network, x, y, [bits])
        shares = [100 * sum(part) / len(found) for part in (
            [f.predicted == f.label for f in found], [f.rounded == f.label for f in found],
            [f.certified for f in found])]
        rows.append([bits, *(f"{s:.0f}" for s in shares), f"{time.process_time() - begun:.1f}"])
    text = "\n".join([
        "# Rounded weights of the digits network\n", header(machine),
        f"\n`python -m benchmarks.weights --limit {options.limit}`: per cent of the first test "
        "images, signed integers with one step per output channel. *Certified*: proved for every "
        "network whose weights lie within half a step (ibp, crown-ibp, crown); *rounded*: the one "
        "rounded to nearest. One thread.\n",
        table(["bits", "clean %", "rounded %", "certified %", "CPU s"], rows)])
    print(text)
    write(options.out, "weights", text, {"machine": machine, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
