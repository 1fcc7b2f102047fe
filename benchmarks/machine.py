"""What machine this is and how fast it multiplies: the header of every result.

``python -m benchmarks.machine`` prints it; ``--json`` prints it for other commands.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.child import ROOT, THREADS, run

_SIZE = 1536  # rows of the square matrices
_COPIED = 2**27  # bytes
_TRIES = 5


def describe() -> dict[str, Any]:
    """The machine, measured in a process of its own with the benchmarks' thread settings."""
    finished = run(["-m", "benchmarks.machine", "--json"], timeout=120)
    if finished.code:
        sys.exit(f"cannot describe the machine: {finished.last_words}")
    return finished.records()[-1]


def header(machine: dict[str, Any]) -> str:
    """The machine as a few lines of markdown."""
    each = ", ".join(f"{name} {rate['wall']:.0f} GFLOP/s ({rate['cpu']:.0f} per CPU second)"
                     for name, rate in machine["gflops"].items())
    return "\n".join([
        f"Measured {machine['date']} at commit {machine['commit']}, load average "
        f"{machine['load']:.1f} at the start.",
        "",
        f"* {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']:.0f} GB; "
        f"Python {machine['python']}, torch {machine['torch']}, numpy {machine['numpy']}, "
        f"{machine['threads']} threads",
        f"* matrix products: {each}; copying {machine['bandwidth_gb_s']:.0f} GB/s",
    ])


def _measure() -> dict[str, Any]:
    import numpy
    import torch

    torch.set_num_threads(THREADS)
    load = os.getloadavg()[0]
    now = datetime.datetime.now(datetime.UTC)
    return {
        "date": now.strftime("%Y-%m-%d %H:%M UTC"), "commit": _commit(), "load": load,
        "cpu": _cpu(), "cores": os.cpu_count(), "memory_gb": _memory(),
        "python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__,
        "threads": torch.get_num_threads(),
        "gflops": {name: _product(torch, getattr(torch, name)) for name in ("float32", "float64")},
        "bandwidth_gb_s": _bandwidth(torch),
    }


def _product(torch: Any, dtype: Any) -> dict[str, float]:
    """GFLOP per wall second and per CPU second, the best of a few tries."""
    a, b = (torch.rand(_SIZE, _SIZE, dtype=dtype) for _ in range(2))
    wall, cpu = [], []
    for _ in range(_TRIES + 1):
        begun, spent = time.perf_counter(), time.process_time()
        torch.mm(a, b)
        wall.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - spent)
    work = 2e-9 * _SIZE**3
    return {"wall": work / min(wall[1:]), "cpu": work / min(cpu[1:])}


def _bandwidth(torch: Any) -> float:
    """GB read and written per second while copying what no cache holds."""
    source = torch.zeros(_COPIED, dtype=torch.uint8)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(_TRIES):
        begun = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - begun)
    return 2e-9 * _COPIED / best


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True,
                              check=True).stdout.strip()

    try:
        changed = bool(git("status", "--porcelain", "--untracked-files=no"))
        return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main() -> None:
    """Print the machine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machine", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    print(json.dumps(_measure()) if parser.parse_args().json else header(describe()))


if __name__ == "__main__":
    main()
