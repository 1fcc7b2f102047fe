"""Votes already counted, on the disk: runs go on where they ended, and nothing is drawn twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from certify.core.codec import canonical
from certify.core.journal import Journal, read_journal


class Ledger:
    """An append-only file of counts; one process writes it at a time.

    Counts are found again only by the same model, noise, seed and input: another run's lines are
    simply not its own. Counts that exist are never drawn afresh, so an interrupted run cannot be
    turned into a choice between samples.

    Raises:
        CannotWrite: the file cannot be written, or another run writes to it.
        BadInput: it holds something else.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any]) -> None:
        """``about``: JSON values that decide the samples and the answers."""
        self._mark = hashlib.sha256(canonical(dict(about)).encode()).hexdigest()[:16]
        self._journal = Journal(Path(path))
        records = read_journal(Path(path))
        self._known = {str(r["key"]): r["votes"] for r in records if "votes" in r}

    def find(self, place: str, first: int, count: int) -> np.ndarray | None:
        """``(heads, classes + 1)`` votes of these samples, or None."""
        found = self._known.get(self._key(place, first, count))
        return None if found is None else np.array(found, np.int64)

    def append(self, place: str, first: int, count: int, votes: np.ndarray) -> None:
        """Keep the votes of these samples."""
        key = self._key(place, first, count)
        self._known[key] = votes.tolist()
        self._journal.append({"key": key, "votes": votes.tolist()})

    def _key(self, place: str, first: int, count: int) -> str:
        return f"{self._mark}/{place}/{first}+{count}"

    def close(self) -> None:
        """Let go of the file."""
        self._journal.close()
