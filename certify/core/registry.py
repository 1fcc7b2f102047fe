"""Tables of things by name that refuse to be overwritten."""

from __future__ import annotations

from typing import Any, TypeVar

_T = TypeVar("_T")


def enter(table: dict[str, Any], name: str, item: _T, what: str) -> _T:
    """Put ``item`` into ``table``; returns it.

    Args:
        what: kind of thing, for the message.

    Raises:
        ValueError: the name is taken.
    """
    if name in table:
        raise ValueError(f"{what} {name!r} is registered twice")
    table[name] = item
    return item
