"""Measures one network and method in this process; prints one JSON object.

With ``--export FILE`` it writes the same problems for another library instead.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

from benchmarks.speed.clock import measure, resident_mb


def main() -> None:
    """One measurement."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.ours", description=__doc__)
    parser.add_argument("net")
    parser.add_argument("--method", default="crown")
    parser.add_argument("--semantics", default="search", choices=("search", "real"))
    parser.add_argument("--instances", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--export", metavar="FILE")
    options = parser.parse_args()
    problems = _problems(options)
    if options.export:
        _export(problems, options.export)
    else:
        print(json.dumps(_measured(problems, options)))


def _problems(options: argparse.Namespace) -> list[Any]:
    from benchmarks.data import references
    from benchmarks.problems import read

    found: list[Any] = []
    for reference in references([options.net])[: options.instances]:
        same = next((p.network for p, onnx in found if onnx == reference.onnx), None)
        found.append((read(reference, same), reference.onnx))
    return [problem for problem, _ in found]


def _measured(problems: list[Any], options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from benchmarks.child import THREADS
    from benchmarks.problems import VARIANTS, lower_bounds
    from benchmarks.speed.flops import as_run, by_definition
    from certify.bounds.methods import METHODS

    torch.set_num_threads(THREADS)
    base, last = resident_mb()[0], {}

    def call(number: int) -> None:
        last[number] = lower_bounds(problems[number], options.method, options.semantics)

    calls = [partial(call, i) for i in range(len(problems))]
    timing = measure(calls, options.repeats, options.budget)
    peak = resident_mb()[1]
    name, alpha = VARIANTS[options.method]
    found = last[0]
    dense = by_definition(found.state, METHODS[name], alpha, len(problems[0].rows.bound))
    cheap = timing.cpu_ms < 250 * options.budget
    return {
        **timing._asdict(), "base_mb": base, "peak_mb": peak,
        "margin": float(found.margins.mean()), "dense_flops": dense,
        "flops": as_run(calls[0]) if cheap else None,
    }


def _export(problems: list[Any], path: str) -> None:
    import numpy as np

    from certify.search.replay import replay

    arrays: dict[str, Any] = {"count": len(problems)}
    for i, problem in enumerate(problems):
        lower, upper = (np.asarray(end, np.float32) for end in problem.region.bounding_box())
        arrays |= {f"lower{i}": lower, f"upper{i}": upper, f"d{i}": problem.rows.bound,
                   f"C{i}": problem.rows.y.astype(np.float32),
                   f"y{i}": replay(problem.network, (lower + upper) / 2)}
    np.savez(path, **arrays)


if __name__ == "__main__":
    main()
