"""One run of one instance, and what was wrong with it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.child import Finished, run
from benchmarks.data import Instance

MODES = ("full", "bounds", "attack")
_CODES = {"unsat": 0, "sat": 1, "unknown": 3, "timeout": 3}
_LATE = 1.0  # seconds an answer may come after the time limit


class Answer(NamedTuple):
    """Attributes:
        mode: ``full``: `certify verify`; ``bounds``: with ``--no-attack``; ``attack``: no bounds.
        word: first line of stdout; ``killed`` or ``crash`` where there was none.
        code: exit code, negative for a signal.
        method: what decided, from the certificate.
        wall, cpu: seconds of the whole process.
        note: the reason on stderr where there is no answer.
    """

    family: str
    onnx: str
    vnnlib: str
    expected: str
    mode: str
    word: str
    code: int
    method: str
    timeout: float
    wall: float
    cpu: float
    note: str

    @property
    def decided(self) -> bool:
        """It is an answer, and the right one."""
        return self.word == self.expected

    @property
    def wrong(self) -> bool:
        """It contradicts the known answer."""
        return self.word in ("sat", "unsat") and self.word != self.expected

    @property
    def crashed(self) -> bool:
        """It ended otherwise than documented."""
        return self.word == "crash"

    @property
    def overran(self) -> bool:
        """No answer in time."""
        return self.word == "killed" or self.wall > self.timeout + _LATE


def ask(instance: Instance, mode: str, timeout: float) -> Answer:
    """Run one instance in a fresh process; killed when far beyond its time limit."""
    patience = timeout + max(20.0, 0.2 * timeout)
    with tempfile.TemporaryDirectory() as scratch:
        certificate = Path(scratch) / "certificate.json"
        files = [instance.onnx, instance.vnnlib, "--timeout", timeout]
        if mode == "attack":
            finished = run(["-m", "benchmarks.quick.attack_only", *files], timeout=patience)
        else:
            options = ["--no-attack"] if mode == "bounds" else []
            finished = run(["-m", "certify", "verify", *files, "--certificate", certificate,
                            *options], timeout=patience)
        word = _word(finished)
        method = _method(certificate) if mode != "attack" else "attack"
    return Answer(instance.family, instance.onnx.name, instance.vnnlib.name, instance.expected,
                  mode, word, finished.code, method, timeout, finished.wall, finished.cpu,
                  "" if word in ("sat", "unsat") else _why(finished))


def _why(finished: Finished) -> str:
    lines = [n for n in finished.stderr.splitlines() if n and not n.startswith("certificate saved")]
    return lines[-1][:250] if lines else ""


def _word(finished: Finished) -> str:
    if finished.stopped:
        return "killed"
    first = finished.stdout.split("\n", 1)[0].strip()
    return first if _CODES.get(first) == finished.code else "crash"


def _method(certificate: Path) -> str:
    """The method that decided, or the last one tried."""
    try:
        found: dict[str, Any] = json.loads(certificate.read_text())
        return str(found["certificate"]["provenance"]["method"])
    except (OSError, ValueError, KeyError):
        return ""
