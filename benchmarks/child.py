"""Child processes: measured alone, with calm threads, and stopped when they take too long."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
THREADS = 2
_POLL = 0.005  # seconds


@dataclass(frozen=True)
class Finished:
    """How a process ended.

    Attributes:
        code: exit code; negative: the signal that ended it.
        cpu: user and system seconds, as the operating system counts them.
        wall: seconds.
        stopped: it was killed because its time was over.
    """

    code: int
    stdout: str
    stderr: str
    cpu: float
    wall: float
    stopped: bool

    @property
    def last_words(self) -> str:
        """The last line on stderr, for messages."""
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        return lines[-1][:200] if lines else f"exit code {self.code}"

    def records(self) -> list[dict[str, Any]]:
        """The JSON objects among the lines of stdout."""
        return [json.loads(line) for line in self.stdout.splitlines() if line.startswith("{")]


def environment() -> dict[str, str]:
    """Two threads that sleep while they wait: spinning would be counted as work."""
    fixed = {"OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0",
             "PYTHONPATH": str(ROOT)}
    return {**os.environ, **fixed}


def run(
    arguments: Sequence[object], timeout: float = 3600.0, python: str = sys.executable,
    extra: Mapping[str, str] | None = None,
) -> Finished:
    """Run ``python *arguments`` from the repository root; kill it after ``timeout`` seconds."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        process = subprocess.Popen([python, *map(str, arguments)], cwd=ROOT, stdout=out, stderr=err,
                                   env={**environment(), **(extra or {})}, start_new_session=True)
        stopped, done = False, 0
        while not done:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if not done:
                if not stopped and time.monotonic() - started > timeout:
                    os.killpg(process.pid, signal.SIGKILL)
                    stopped = True
                time.sleep(_POLL)
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return Finished(process.returncode, out.read().decode(errors="replace"),
                        err.read().decode(errors="replace"), usage.ru_utime + usage.ru_stime, wall,
                        stopped)
