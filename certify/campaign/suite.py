"""Named lists of benchmark families in somebody's clone of a competition's repository."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from certify.campaign.instances import Instance, read_instances
from certify.core.errors import BadInput, one_line


def read_suite(path: Path, root: Path, wanted: set[str]) -> list[Instance]:
    """The instances of a suite.

    A suite is a TOML file with ``source``, where to clone from, and a table ``families`` from
    names to instance lists, relative to the clone.

    Args:
        root: the clone.
        wanted: families; empty for all. Only their files need to be there.

    Raises:
        BadInput: not a suite, or a list or one of its files is not in the clone.
    """
    content = _content(path)
    families: Mapping[str, str] = content["families"]
    if not root.is_dir():
        raise BadInput(f"--root {one_line(root, 100)}: no such folder; clone "
                       f"{one_line(content['source'], 100)} and give its folder")
    check_families(wanted, list(families), path)
    found: list[Instance] = []
    for name, listed in families.items():
        if wanted and name not in wanted:
            continue
        if not (root / listed).is_file():
            raise BadInput(f"{one_line(path, 80)}: {one_line(listed, 80)} of family {name} is not "
                           f"in {one_line(root, 80)}; is that a clone of "
                           f"{one_line(content['source'], 80)}?")
        found += read_instances(root / listed, root, name)
    return found


def check_families(wanted: set[str], known: list[str], path: Path) -> None:
    """Refuse a family that a list does not have.

    Raises:
        BadInput: there is one.
    """
    unknown = sorted(wanted - set(known))
    if unknown:
        raise BadInput(f"{one_line(path, 80)}: no family {one_line(', '.join(unknown), 80)}; there "
                       f"are {one_line(', '.join(sorted(set(known))), 120)}")


def _content(path: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or one_line(problem, 120)
        raise BadInput(f"{one_line(path, 100)}: cannot be read: {reason}") from None
    families, source = found.get("families"), found.get("source")
    names = list(families.values()) if isinstance(families, dict) else []
    if not names or not all(isinstance(text, str) for text in (source, *names)):
        raise BadInput(f"{one_line(path, 100)}: not a suite of instances; it needs 'source' and a "
                       "table 'families' of instance lists")
    return found
