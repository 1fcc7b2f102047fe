"""Limits: how many rows fit into memory, and how long a call may take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certify.core.errors import CertifyError, UsageError

if TYPE_CHECKING:
    from certify.bounds.program import Program

DEFAULT_MEMORY = 4 * 2**30


class OutOfTime(CertifyError):
    """The time limit passed in the middle of a computation."""


@dataclass(frozen=True)
class Limits:
    """What one call may use.

    Attributes:
        memory: bytes that coefficient tensors may take.
        deadline: `time.monotonic` at which work stops.
    """

    memory: int = DEFAULT_MEMORY
    deadline: float = float("inf")

    def check(self) -> None:
        """Raise `OutOfTime` once the deadline has passed."""
        if time.monotonic() > self.deadline:
            raise OutOfTime("the time limit passed")

    def remaining(self) -> float:
        """Seconds left."""
        return self.deadline - time.monotonic()


_COPIES = 6  # coefficient tensors of one size alive at once in a backward pass
_CPU_TENSOR = 8 * 2**20  # bytes: larger tensors leave the caches and are mapped anew every time


def row_chunks(program: Program, index: int, batch: int, rows: int, memory: int) -> Iterator[slice]:
    """Slices of ``rows`` rows, each small enough for a backward pass within ``memory``.

    Args:
        index: the step the pass starts from.
        memory: bytes.
    """
    size = max(_elements(program, i) for i in program.ancestors[index])
    per_row = 2 * batch * size * program.dtype.itemsize
    chunk = memory // (per_row * _COPIES)
    if program.device.type == "cpu":
        chunk = min(chunk, max(16, _CPU_TENSOR // per_row))
    chunk = max(1, min(rows, chunk))
    return (slice(i, min(rows, i + chunk)) for i in range(0, rows, chunk))


def _elements(program: Program, index: int) -> int:
    count = 1
    for n in program.shape(index):
        count *= n
    return count


def parse_memory(text: str) -> int:
    """Bytes from ``8GiB``, ``500MB``, ``2e9``.

    Raises:
        UsageError: not a size.
    """
    units = {
        "": 1,
        "b": 1,
        "k": 2**10,
        "kb": 10**3,
        "kib": 2**10,
        "m": 2**20,
        "mb": 10**6,
        "mib": 2**20,
        "g": 2**30,
        "gb": 10**9,
        "gib": 2**30,
    }
    number = text.strip().rstrip("abcdfghijklmnopqrstuvwxyzABCDFGHIJKLMNOPQRSTUVWXYZ")
    unit = text.strip()[len(number) :].lower()
    try:
        size = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        raise UsageError(
            f"--memory {text!r} is not a size; write for example 8GiB or 500MB"
        ) from None
    if size < 2**20:
        raise UsageError(f"--memory {text!r} is below 1 MiB; write for example 8GiB")
    return size
