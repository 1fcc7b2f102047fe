"""Where a result came from: enough to make it again, or to see why a second run differs."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from certify.core.errors import BadInput

Scalar = str | int | float | bool | None
_PACKAGES = ("certify", "torch", "numpy", "onnx", "onnxruntime")


@dataclass(frozen=True, eq=False)
class Provenance:
    """How a certificate was made.

    Attributes:
        model_sha256, spec_sha256: of the files; the specification's is None where it was written in
            Python.
        method: what decided, such as ``"alpha"`` or ``"attack"``.
        settings: names to values.
        seed: of the random search.
        versions: of Python and of the packages that can change a result; "" where not installed.
        device: where it ran.
        seconds: wall time.
        started: ISO 8601, UTC.
    """

    model_sha256: str
    spec_sha256: str | None
    method: str
    settings: Mapping[str, Scalar]
    seed: int
    versions: Mapping[str, str]
    device: str
    seconds: float
    started: str

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise BadInput(f"seconds must not be negative, got {self.seconds}")


def versions() -> dict[str, str]:
    """Versions by name, read from installed metadata: no package is imported for it."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def now() -> str:
    """The time, for ``started``."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
