"""Measures one network with and without rounding accounted for; prints one JSON object."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

_LEAST = 0.1  # seconds of one call in one timing: shorter ones are repeated, by turns
_SEMANTICS = ("search", "real")


def main() -> None:
    """One network."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounding.pair", description=__doc__)
    parser.add_argument("net")
    parser.add_argument("--method", default="crown")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--budget", type=float, default=90.0)
    print(json.dumps(_measured(parser.parse_args())))


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from benchmarks.child import THREADS
    from benchmarks.data import references
    from benchmarks.problems import lower_bounds, read

    torch.set_num_threads(THREADS)
    problem = read(references([options.net])[0])
    calls = [
        partial(lower_bounds, problem, options.method, semantics, torch.float64)
        for semantics in _SEMANTICS
    ]
    margins = [float(call().margins.mean()) for call in calls]  # compiles, too
    times = _in_turn(calls, options.repeats, options.budget)
    plain, rigorous = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    return {
        "plain_ms": plain,
        "rigorous_ms": rigorous,
        "ratio": statistics.median(real / search for search, real in times),
        "repeats": len(times),
        "plain_margin": margins[0],
        "rigorous_margin": margins[1],
    }


def _in_turn(
    calls: list[Callable[[], Any]], repeats: int, budget: float
) -> list[tuple[float, ...]]:
    """CPU seconds of each call, taken in turn, so that what slows one slows the other."""
    inner = max(1, math.ceil(_LEAST / max(1e-4, _seconds(calls[0]))))
    end = time.perf_counter() + budget
    found: list[tuple[float, ...]] = []
    while len(found) < repeats and (not found or time.perf_counter() < end):
        pairs = [[_seconds(call) for call in calls] for _ in range(inner)]
        found.append(tuple(sum(column) / inner for column in zip(*pairs, strict=True)))
    return found


def _seconds(call: Callable[[], Any]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
