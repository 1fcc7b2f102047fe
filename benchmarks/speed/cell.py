"""One cell of the speed table: our processes, and the other library's where there is one."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import THREADS, run
from benchmarks.data import Reference

METHODS = ("ibp", "crown-ibp", "crown", "forward", "alpha-20", "alpha")
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
        return ["--repeats", str(self.repeats), "--budget", str(self.budget)]


@dataclass(frozen=True)
class Peer:
    """The other library.

    Attributes:
        python: the interpreter that can import it.
        path: folders to put on its import path.
    """

    python: str
    path: str = ""


def peer_at(place: str | None) -> Peer | None:
    """The peer in a virtual environment, an interpreter, or a folder with ``venv`` and a checkout."""
    if place is None:
        return None
    root = Path(place).expanduser().resolve()
    candidates = [root, root / "bin" / "python", root / "venv" / "bin" / "python",
                  root / ".venv" / "bin" / "python"]
    # A virtual environment's interpreter is a link: following it would leave the environment.
    python = next((p for p in [Path(place).expanduser().absolute(), *candidates[1:]] if p.is_file()), None)
    if python is None:
        sys.exit(f"--peer {place}: no Python there; name a virtual environment, or a folder with one in venv/")
    checkout = next((str(p) for p in (root, root / "auto_LiRPA") if (p / "auto_LiRPA").is_dir()
                     and (p / "setup.py").is_file()), "")
    peer = Peer(str(python), checkout)
    found = _run_peer(peer, ["-c", "import auto_LiRPA"])
    if found.code:
        sys.exit(f"--peer {place}: cannot import auto_LiRPA: {found.last_words}")
    return peer


def export(net: str, effort: Effort, target: Path) -> None:
    """Write a network's problems for the peer."""
    finished = run(["-m", "benchmarks.speed.ours", net, "--instances", effort.instances,
                    "--export", target])
    if finished.code:
        sys.exit(f"{net}: {finished.last_words}")


def ours(net: str, method: str, semantics: str, effort: Effort) -> dict[str, Any]:
    """Our measurement, or ``{"error": ...}``."""
    return _record(run(["-m", "benchmarks.speed.ours", net, "--method", method, "--semantics", semantics,
                        "--instances", effort.instances, *effort.options], timeout=_LONGEST))


def theirs(
    peer: Peer, reference: Reference, problems: Path, method: str, effort: Effort
) -> dict[str, Any] | None:
    """The peer's measurement, ``{"error": ...}``, or None where it has no such method."""
    if method == "alpha":
        return None
    return _record(_run_peer(peer, ["-m", "benchmarks.speed.peer_runner", reference.onnx, problems,
                                    "--method", method, "--threads", THREADS, *effort.options]))


def published(net: str, method: str) -> dict[str, Any] | None:
    """The peer's numbers from the committed table."""
    found: dict[str, Any] | None = PUBLISHED["nets"].get(net, {}).get(method)
    return found


def _run_peer(peer: Peer, arguments: list[Any]) -> Any:
    from benchmarks.child import ROOT

    extra = {"PYTHONPATH": f"{ROOT}:{peer.path}" if peer.path else str(ROOT)}
    return run(arguments, timeout=_LONGEST, python=peer.python, extra=extra)


def _record(finished: Any) -> dict[str, Any]:
    if finished.stopped:
        return {"error": f"stopped after {_LONGEST:.0f} s"}
    records: list[dict[str, Any]] = finished.records()
    if finished.code or not records:
        return {"error": finished.last_words}
    return records[-1]
