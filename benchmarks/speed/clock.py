"""CPU time of a call and memory of a process. Standard library only: both libraries use it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_LEAST = 0.02  # seconds measured at once: shorter calls are repeated
_MOST_REPEATS = 50


class Timing(NamedTuple):
    """Milliseconds of one call after warm-up, the median over calls and then over inputs.

    Attributes:
        first_s: seconds of CPU time of the very first call, imports and compilation included.
        calls: how many timings there are; 0: the first call took so long that it stands for all.
    """

    cpu_ms: float
    wall_ms: float
    first_s: float
    calls: int


def measure(calls: Sequence[Callable[[], Any]], repeats: int, budget: float) -> Timing:
    """Time each call ``repeats`` times, or fewer once ``budget`` seconds have passed."""
    first_cpu, first_wall = _once(calls[0], 1)
    if first_wall > budget:
        return Timing(1e3 * first_cpu, 1e3 * first_wall, first_cpu, 0)
    end, count = time.perf_counter() + budget, 0
    cpu: list[float] = []
    wall: list[float] = []
    for call in calls:
        if cpu and time.perf_counter() > end:
            break
        inner = 1 if first_wall > 1 else _repeats(_once(call, 1)[1])
        timings: list[tuple[float, float]] = []
        for _ in range(repeats):
            if timings and time.perf_counter() > end:
                break
            timings.append(_once(call, inner))
        count += len(timings)
        cpu.append(statistics.median(t[0] for t in timings))
        wall.append(statistics.median(t[1] for t in timings))
    return Timing(1e3 * statistics.median(cpu), 1e3 * statistics.median(wall), first_cpu, count)


def _repeats(seconds: float) -> int:
    """How many calls of so many seconds to measure at once."""
    return max(1, min(_MOST_REPEATS, math.ceil(_LEAST / max(1e-6, seconds))))


def _once(call: Callable[[], Any], times: int) -> tuple[float, float]:
    """CPU and wall seconds per call."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - cpu) / times, (time.perf_counter() - wall) / times


def resident_mb() -> tuple[float, float]:
    """Resident memory now and at its largest, of this program alone."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            found[name] = float(value.split()[0]) / 1024
    return found["VmRSS"], found["VmHWM"]
