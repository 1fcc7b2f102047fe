"""Bounds the rows of one network's instances in this process; prints one JSON object per result."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.child import THREADS
from benchmarks.data import references

if TYPE_CHECKING:
    from certify.core.graph import Graph


def main() -> None:
    """All instances and methods of one network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("net")
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--semantics", choices=("real", "search"), required=True)
    parser.add_argument("--instances", type=int, required=True)
    options = parser.parse_args()
    import torch

    from benchmarks.problems import lower_bounds, read

    torch.set_num_threads(THREADS)
    networks: dict[Path, Graph] = {}
    for reference in references([options.net])[: options.instances]:
        problem = read(reference, networks.get(reference.onnx))
        networks[reference.onnx] = problem.network
        for method in options.methods:
            begun = time.process_time()
            try:
                found = lower_bounds(problem, method, options.semantics).margins
                outcome: dict[str, Any] = {"margins": [float(m) for m in found]}
            except Exception as problem_met:  # one method must not cost the others their results
                outcome = {"error": f"{type(problem_met).__name__}: {problem_met}"[:200]}
            print(json.dumps({"net": options.net, "number": reference.number, "method": method,
                              "seconds": time.process_time() - begun, **outcome}), flush=True)


if __name__ == "__main__":
    main()
