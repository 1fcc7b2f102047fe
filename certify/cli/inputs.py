"""Reading what a command is given; every error names the file it is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from certify.core.errors import CertifyError, LimitExceeded, UsageError
from certify.importers.files import shown

if TYPE_CHECKING:
    from certify.core.graph import Graph


@contextmanager
def about(*paths: str) -> Iterator[None]:
    """Put ``paths`` in front of the message of any error raised inside that names none of them.

    Raises:
        CertifyError: of the same class.
    """
    names = [shown(p) for p in paths]
    try:
        yield
    except MemoryError:
        raise LimitExceeded(f"{' with '.join(names)}: needs more memory than there is") from None
    except CertifyError as problem:
        if any(Path(n).name in str(problem) for n in names):
            raise
        raise type(problem)(f"{' with '.join(names)}: {problem}") from problem


def read_model(path: str) -> Graph:
    """The network in a file, see `certify.load`."""
    from certify.importers.model_file import load

    with about(path):
        return load(path)


def device_named(name: str) -> str:
    """``cpu`` or ``cuda`` for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UsageError: ``cuda`` where there is none.
    """
    if name == "cpu":
        return name
    import torch

    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UsageError("--device cuda: torch finds no CUDA device; use --device cpu")
    return "cuda" if there else "cpu"
