"""Dual methods against optimised slopes: bounds over CPU time on the same networks."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data import references
from benchmarks.machine import describe, header
from benchmarks.problems import read
from benchmarks.report import RESULTS, table, write
from certify.bounds.alpha import Alpha
from certify.bounds.budget import Limits
from certify.bounds.methods import METHODS, analyse, lower_rows
from certify.bounds.program import prepare
from certify.core.region import L2, Region
from certify.core.semantics import Semantics

FAMILIES = ("mnist_256x2", "mnist_256x4", "mnist_256x6", "oval21_base")
CASES: dict[str, tuple[str, Alpha]] = {
    "crown": ("crown", Alpha()),
    "alpha, last layer, 10": ("alpha", Alpha(iterations=10, unit_iterations=0)),
    "alpha, last layer, 40": ("alpha", Alpha(iterations=40, unit_iterations=0)),
    "decomposition, 80": ("decomposition", Alpha(iterations=10)),
    "decomposition, 320": ("decomposition", Alpha(iterations=40)),
    "dual, 80": ("dual", Alpha(iterations=10)),
    "dual, 320": ("dual", Alpha(iterations=40)),
}
"""Every method on the same intermediate bounds: CROWN's."""
BALLS = {name: case for name, case in CASES.items() if case[0] in ("crown", "alpha")} | {
    f"sdp-crown, {8 * n}": ("sdp-crown", Alpha(iterations=n, unit_iterations=0)) for n in (10, 40)
}
"""And for L2 balls."""


def main() -> int:
    """Bound, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dual", description=__doc__)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--l2", type=float, default=0.5, metavar="EPS",
                        help="radius of the L2 balls")
    parser.add_argument("--instances", type=int, default=2, metavar="N", help="per family")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine, rows, balls = describe(), list[list[Any]](), list[list[Any]]()
    for family in options.families.split(","):
        rows += _family(family, options.instances, None)
        balls += _family(family, options.instances, options.l2)
    text = "\n".join([
        "# Dual bounds\n", header(machine),
        "\n`python -m benchmarks.dual`: mean lower bound of the rows of each property (search "
        "semantics, float32, one thread), and CPU seconds, CROWN's intermediate bounds "
        "included. Higher is tighter. With equal intermediate bounds, alpha, dual and "
        "decomposition have one optimum, that of the linear programme over triangles: what "
        "differs is how fast they get there. Slopes lie between 0 and 1 and start well; "
        "multipliers are unbounded, one per neuron and row, and need many more passes.\n",
        table(["network", "method", "mean bound", "CPU s"], rows),
        f"\nOver L2 balls of radius {options.l2} around the centres of the same boxes (`--l2`):\n",
        table(["network", "method", "mean bound", "CPU s"], balls)])
    print(text)
    write(options.out, "dual", text, {"machine": machine, "rows": rows, "balls": balls})
    return 0


def _family(family: str, count: int, radius: float | None) -> list[list[Any]]:
    cases = CASES if radius is None else BALLS
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for reference in references([family])[:count]:
        problem = read(reference)
        program = prepare(problem.network, torch.float32)
        y: Any = torch.from_numpy(problem.rows.y).float()
        rows = {program.output: y.reshape(*y.shape[:2], *program.shape(program.output))}
        region = problem.region if radius is None else _ball(problem.region, radius)
        for name, (method, settings) in cases.items():
            begun = time.process_time()
            with torch.no_grad():
                state = analyse(program, region, METHODS["crown"], Semantics.SEARCH,
                                Limits(), settings)
                values, _ = lower_rows(state, rows, METHODS[method], settings)
            margins = values[0].double() - torch.from_numpy(problem.rows.bound)
            found[name].append((float(margins.mean()), time.process_time() - begun))
    rows = [[family, name, f"{np.mean([v for v, _ in values]):.4f}",
             f"{np.mean([s for _, s in values]):.2f}"] for name, values in found.items() if values]
    for row in rows:
        print(row, flush=True)
    return rows


def _ball(box: Region, radius: float) -> Region:
    lower, upper = (np.asarray(side, dtype=np.float64) for side in box.bounding_box())
    return L2((lower + upper) / 2, radius).batched(lower.shape[1:])


if __name__ == "__main__":
    sys.exit(main())
