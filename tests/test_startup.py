"""Start-up is a feature: deciding a tiny instance costs little more than importing torch."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models

ROOT = Path(__file__).resolve().parent.parent
ALLOWED_RATIO = 1.6
REPEATS = 3


def cpu_seconds(*arguments: object) -> float:
    """User and system time of one Python process, as the operating system counts it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    process = subprocess.Popen([sys.executable, *map(str, arguments)], env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode in (0, 1), arguments
    return usage.ru_utime + usage.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize("unsafe", [tiny_models.HOLDS, tiny_models.VIOLATED])
def test_verify_costs_little_more_than_importing_torch(tmp_path: Path, unsafe: str) -> None:
    model = tiny_models.absolute_sum(tmp_path / "net.onnx")
    spec = tiny_models.specification(tmp_path / "spec.vnnlib", unsafe)
    verify = ("-m", "certify", "verify", model, spec, "-q")
    cpu_seconds(*verify)  # writes the bytecode caches
    pairs = [(cpu_seconds(*verify), cpu_seconds("-c", "import torch")) for _ in range(REPEATS)]
    ours, base = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = ours / base
    assert ratio <= ALLOWED_RATIO, f"{ratio:.2f} times the CPU time of importing torch"
