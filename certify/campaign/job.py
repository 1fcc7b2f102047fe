"""What is to be done: items, the function that does one of them, and what came of it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from certify.core.errors import BadInput, one_line

Function = Callable[[dict[str, Any], dict[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Item:
    """One piece of work.

    Attributes:
        key: names it; unique within a campaign, and the same in every run of it.
        data: JSON values, or a dataclass of them; what the function is given.
        limit: seconds after which it is given up (a grace period comes on top); None: never.
    """

    key: str
    data: Any
    limit: float | None = None

    def plain(self) -> dict[str, Any]:
        """``data`` as JSON values.

        Raises:
            BadInput: it holds something that JSON does not.
        """
        data = self.data
        if dataclasses.is_dataclass(data) and not isinstance(data, type):
            data = dataclasses.asdict(data)
        try:
            found = json.loads(json.dumps(data, allow_nan=False))
        except (TypeError, ValueError) as problem:
            raise BadInput(f"item {one_line(self.key, 80)!r} cannot be written as JSON: "
                           f"{one_line(problem, 100)}") from None
        if not isinstance(found, dict):
            raise BadInput(f"item {one_line(self.key, 80)!r} is not a JSON object")
        return found


@dataclass(frozen=True)
class Job:
    """What to do with every item.

    Attributes:
        function: ``"module:function"``, called as ``function(item data, settings)`` in a worker
            process; returns a mapping of JSON values.
        settings: JSON values; a campaign is only resumed with the same ones.
        local: further settings that may differ from run to run: folders, threads.
        prepare: ``"module:function"``, called with the settings once in every worker, before its
            first item; "" for none.
        memory: bytes of data a worker may allocate; None: no limit.
        grace: seconds an item may take beyond its limit before its worker is killed.
    """

    function: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    local: Mapping[str, Any] = field(default_factory=dict)
    prepare: str = ""
    memory: int | None = None
    grace: float = 5.0


@dataclass(frozen=True)
class Outcome:
    """What came of one item.

    Attributes:
        status: ``done``: the function returned; ``error``: it raised; ``timeout``: it was killed
            after its limit; ``crashed``: its process died.
        result: what the function returned; None unless done.
        error: why there is no result, one line; "" when done.
        stderr: the end of what the worker had written to stderr, where there is no result.
        seconds, cpu_seconds: wall time, and processor time of all threads.
        peak_memory: bytes resident at the worst moment; None where that is not known.
    """

    item: Item
    status: str
    seconds: float
    result: Mapping[str, Any] | None = None
    error: str = ""
    stderr: str = ""
    cpu_seconds: float | None = None
    peak_memory: int | None = None

    def record(self) -> dict[str, Any]:
        """One line of the journal."""
        found: dict[str, Any] = {
            "key": self.item.key, "status": self.status, "item": self.item.plain(),
            "result": self.result, "seconds": round(self.seconds, 6),
            "cpu_seconds": None if self.cpu_seconds is None else round(self.cpu_seconds, 6),
            "peak_memory": self.peak_memory,
        }
        if self.status != "done":
            found |= {"error": self.error, "stderr": self.stderr}
        return found


def named(name: str) -> Any:
    """The function called ``"module:function"``.

    Raises:
        BadInput: there is none.
    """
    module, colon, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute) if colon else None
    except (ImportError, AttributeError, ValueError) as problem:
        raise BadInput(f"{one_line(name, 80)}: {one_line(problem, 150)}") from None
    if not callable(found):
        raise BadInput(f"{one_line(name, 80)} names no function; write 'module:function'")
    return found


def check_unique(items: Iterable[Item]) -> None:
    """Refuse two items of one key: a resumed run could not tell them apart.

    Raises:
        BadInput: there are two.
    """
    seen: dict[str, int] = {}
    for number, item in enumerate(items):
        if item.key in seen:
            raise BadInput(f"items {seen[item.key]} and {number} have the same key "
                           f"{one_line(item.key, 120)!r}; every item needs one of its own")
        seen[item.key] = number


def digest(items: Iterable[Item]) -> str:
    """SHA-256 of keys, data and limits, in order."""
    hashed = hashlib.sha256()
    for item in items:
        line = json.dumps([item.key, item.plain(), item.limit], sort_keys=True)
        hashed.update(line.encode() + b"\n")
    return hashed.hexdigest()
