"""A campaign: every item done once, its result on the disk, resumed after any interruption."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from certify.campaign.job import Item, Job, check_unique
from certify.campaign.manifest import claim_folder
from certify.campaign.pool import Pool
from certify.campaign.shard import Shard
from certify.core.errors import CannotWrite, one_line
from certify.core.journal import Journal, read_journal

_JOURNALS = "items*.jsonl"


class Watch(Protocol):
    """Who is told how a campaign goes."""

    def begin(self, total: int, before: int, notes: Sequence[str]) -> None:
        """``total`` items are to be done, ``before`` of them were done by earlier runs."""

    def finished(self, record: Mapping[str, Any]) -> None:
        """An item is done, and its record is on the disk."""

    def end(self) -> None:
        """No more items; also after an error."""


@dataclass(frozen=True)
class Effort:
    """How much of the work is done here, and with what; never changes a result.

    Attributes:
        workers: processes.
        shard: which of the items.
        environment: variables for the workers.
    """

    workers: int = 1
    shard: Shard = Shard()
    environment: Mapping[str, str] | None = None


def run(
    job: Job, items: Sequence[Item], folder: Path, effort: Effort, watch: Watch
) -> list[dict[str, Any]]:
    """Do what is not done yet; `Journal` lines in ``folder`` tell.

    Returns:
        The records of all finished items, other shards' in the same folder included.

    Raises:
        BadInput: two items with one key, or a job that cannot be started.
        UsageError: the folder belongs to other items or other settings.
        CannotWrite: the folder cannot be written; what was finished is kept.
    """
    check_unique(items)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise CannotWrite(f"{one_line(folder, 120)}: cannot be made: "
                          f"{problem.strerror or type(problem).__name__}") from None
    notes = claim_folder(folder, job, items)
    with Journal(folder / effort.shard.journal) as journal:
        done = {record["key"] for record in read_records(folder)}
        mine = effort.shard.of(items)
        places, host = {item.key: i for i, item in enumerate(items)}, platform.node()
        todo = [item for item in mine if item.key not in done]
        watch.begin(len(mine), len(mine) - len(todo), notes)
        try:
            with Pool(job, effort.workers, effort.environment) as pool:
                for outcome in pool.outcomes(todo):
                    record = outcome.record() | {"index": places[outcome.item.key], "on": host}
                    journal.append(record)
                    watch.finished(record)
        finally:
            watch.end()
    return read_records(folder)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """One record per finished item, of all shards in a folder, in the order of the items.

    Raises:
        BadInput: a journal cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob(_JOURNALS)):
        for record in read_journal(path):
            found.setdefault(record["key"], record)
    return sorted(found.values(), key=lambda record: int(record.get("index", 0)))
