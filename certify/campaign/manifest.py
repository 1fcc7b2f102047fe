"""What a folder of results is about: written first, compared when a campaign is resumed."""

from __future__ import annotations

import json
import os
import platform
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from certify.campaign.job import Item, Job, digest
from certify.core.errors import BadInput, CannotWrite, UsageError, one_line
from certify.core.provenance import now, versions

SCHEMA = "certify-campaign/1"
NAME = "manifest.json"


def describe(job: Job, items: Sequence[Item]) -> dict[str, Any]:
    """The manifest of a campaign that starts now on this machine."""
    settings = {**job.settings, "worker_memory": job.memory}
    return {
        "schema": SCHEMA,
        "job": job.function,
        "settings": json.loads(json.dumps(settings)),
        "items": {"count": len(items), "sha256": digest(items)},
        "versions": versions(),
        "machine": machine(),
        "started": now(),
    }


def machine() -> dict[str, Any]:
    """This machine, in words."""
    return {"name": platform.node(), "system": platform.platform(), "processor": _processor(),
            "cores": os.cpu_count()}


def claim_folder(folder: Path, job: Job, items: Sequence[Item]) -> list[str]:
    """Write the manifest, or see that the folder's own fits.

    Returns:
        What differs and does not stand in the way: versions.

    Raises:
        UsageError: the folder holds results of another job, other items or other settings, or
            something else altogether.
        CannotWrite, BadInput: the manifest cannot be written, or read.
    """
    wanted, file = describe(job, items), folder / NAME
    if not file.exists():
        strangers = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        if strangers and not file.exists():  # another shard may just have begun
            raise UsageError(f"{one_line(folder, 80)} holds other things, such as "
                             f"{one_line(strangers[0], 40)}; choose a new or an empty folder")
        if _write_new(file, wanted):
            return []
    there = read_manifest(folder)
    differences = _differences(there, wanted)
    if differences:
        raise UsageError(f"{one_line(folder, 80)} was begun otherwise: {'; '.join(differences)}. "
                         "Go on with the same settings, or choose another folder")
    mine = wanted["versions"]
    return [f"{name} was {old or 'absent'} when this campaign began and is now "
            f"{mine.get(name) or 'absent'}"
            for name, old in there.get("versions", {}).items() if mine.get(name) != old]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in a folder.

    Raises:
        BadInput: there is none, or it is not one.
    """
    path = folder / NAME
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{one_line(folder, 100)}: no results here, {NAME} is missing") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise BadInput(f"{one_line(path, 100)}: cannot be read: {one_line(problem, 100)}") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not all(
        isinstance(found.get(name), dict) for name in ("settings", "items", "versions")
    ):
        raise BadInput(f"{one_line(path, 100)}: not the manifest of a campaign ({SCHEMA})")
    return found


def _differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Every difference that matters, as a clause."""
    if there.get("job") != wanted["job"]:
        return [f"its job was {one_line(there.get('job'), 60)}"]
    old, new = there["settings"], wanted["settings"]
    found = [f"{name} was {_shown(old, name)} and is now {_shown(new, name)}"
             for name in sorted({*old, *new})
             if old.get(name) != new.get(name) or (name in old) != (name in new)]
    if there["items"] != wanted["items"] and not found:
        before, after = there["items"].get("count"), wanted["items"]["count"]
        found.append(f"it had {before} items, now there are {after}" if before != after else
                     "the list of items has changed")
    return found


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return one_line(json.dumps(settings[name]), 60) if name in settings else "absent"


def _write_new(path: Path, content: Mapping[str, Any]) -> bool:
    """Write a file that is whole or not there; False where another run came first."""
    spare = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        with open(spare, "xb") as file:
            file.write(json.dumps(content, indent=1).encode("ascii") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(spare, path)  # unlike a rename, it never replaces what is there
    except FileExistsError:
        return False
    except OSError as problem:
        raise CannotWrite(f"{one_line(path, 120)}: cannot be written: "
                          f"{problem.strerror or type(problem).__name__}") from None
    finally:
        with suppress(OSError):
            spare.unlink(missing_ok=True)
    return True


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
