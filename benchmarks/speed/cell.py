"""One cell of the speed table: our processes, and the other library's where there is one."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import THREADS, Finished, run
from benchmarks.data import Reference

PUBLISHED = json.loads((Path(__file__).parent / "peer.json").read_text())
_LONGEST = 900.0  # seconds of one process


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Attributes:
        repeats: timed calls per instance.
        instances: per network.
        budget: seconds after which a process starts no further call.
    """

    repeats: int = 5
    instances: int = 3
    budget: float = 60.0

    @property
    def options(self) -> list[str]:
        """As command-line options."""
        return ["--repeats", str(self.repeats), "--budget", str(self.budget)]


def peer_python(place: str | None) -> str | None:
    """The interpreter that has auto_LiRPA.

    Args:
        place: an interpreter, a virtual environment, or a folder with one in ``venv``.
    """
    if place is None:
        return None
    root = Path(place).expanduser().absolute()  # not resolved: a link leads out of the environment
    python = next((p for p in (root, root / "bin" / "python", root / "venv" / "bin" / "python")
                   if p.is_file()), None)
    if python is None:
        sys.exit(f"--peer {place}: no Python there; name a virtual environment or its interpreter")
    found = run(["-c", "import auto_LiRPA, onnx"], python=str(python))
    if found.code:
        sys.exit(f"--peer {place}: {found.last_words}; install torch, onnx and auto_LiRPA there")
    return str(python)


def export(net: str, effort: Effort, target: Path) -> None:
    """Write a network's problems for the peer."""
    finished = run(["-m", "benchmarks.speed.ours", net, "--instances", effort.instances,
                    "--export", target])
    if finished.code:
        sys.exit(f"{net}: {finished.last_words}")


def ours(net: str, method: str, semantics: str, effort: Effort) -> dict[str, Any]:
    """Our measurement, or ``{"error": ...}``."""
    return _record(run(["-m", "benchmarks.speed.ours", net, "--method", method,
                        "--semantics", semantics, "--instances", effort.instances,
                        *effort.options], timeout=_LONGEST))


def theirs(
    python: str, reference: Reference, problems: Path, method: str, effort: Effort
) -> dict[str, Any] | None:
    """The peer's measurement, ``{"error": ...}``, or None where it has no such method."""
    if method == "alpha":
        return None
    return _record(run(["-m", "benchmarks.speed.peer_runner", reference.onnx, problems,
                        "--method", method, "--threads", THREADS, *effort.options],
                       timeout=_LONGEST, python=python))


def published(net: str, method: str) -> dict[str, Any] | None:
    """The peer's numbers from the committed table."""
    found: dict[str, Any] | None = PUBLISHED["nets"].get(net, {}).get(method)
    return found


def _record(finished: Finished) -> dict[str, Any]:
    if finished.stopped:
        return {"error": f"stopped after {_LONGEST:.0f} s"}
    records = finished.records()
    return {"error": finished.last_words} if finished.code or not records else records[-1]
