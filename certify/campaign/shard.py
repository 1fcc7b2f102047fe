"""A share of the items: ``2/8`` is the second of eight."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from certify.core.errors import UsageError, one_line

_T = TypeVar("_T")
_MOST = 100_000


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th item, beginning with number ``index`` (from 1)."""

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count <= _MOST:
            raise UsageError(f"there is no shard {self.index}/{self.count}; "
                             f"the shards of {max(self.count, 1)} are 1 to {max(self.count, 1)}")

    def of(self, items: Sequence[_T]) -> list[_T]:
        """The items of this shard: neighbours, often alike, go to different shards."""
        return list(items[self.index - 1 :: self.count])

    @property
    def journal(self) -> str:
        """Name of the file with this shard's results."""
        return "items.jsonl" if self.count == 1 else f"items-{self.index}of{self.count}.jsonl"


def parse_shard(text: str) -> Shard:
    """``"2/8"``.

    Raises:
        UsageError: not a shard.
    """
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if found is None:
        raise UsageError(f"{one_line(text, 40)!r} is not a shard; write for example 1/4")
    return Shard(int(found[1]), int(found[2]))
