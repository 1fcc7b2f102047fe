"""Lists of instances: a network, a property and a time limit per line."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from certify.core.errors import BadInput, one_line

_ANSWERS = {"": "", "unknown": "", "sat": "sat", "violated": "sat", "unsat": "unsat",
            "holds": "unsat"}
_LIMIT_COLUMNS = ("timeout_s", "timeout")


@dataclass(frozen=True)
class Instance:
    """A network and a property.

    Attributes:
        family: the benchmark it belongs to.
        onnx, vnnlib: as the list writes them, relative to ``folder``.
        folder: of the list, relative to the root it was read with.
        timeout: seconds.
        expected: ``sat``, ``unsat``, or "" where nobody knows.
    """

    family: str
    onnx: str
    vnnlib: str
    folder: str
    timeout: float
    expected: str = ""

    @property
    def key(self) -> str:
        """Names the instance within a campaign."""
        return f"{self.family}:{self.onnx}:{self.vnnlib}"


def read_instances(path: Path, root: Path | None = None, family: str = "") -> list[Instance]:
    """The instances in a CSV file.

    Two forms are read: the competition's ``onnx,vnnlib,timeout`` without a header, and any columns
    with a header that names ``onnx``, ``vnnlib`` and ``timeout`` or ``timeout_s``; ``family`` and
    ``expected`` may be among them. Files are relative to the CSV file; where one is missing, its
    name with ``.gz`` (or without) is tried.

    Args:
        root: what `Instance.folder` is relative to; default: the folder of ``path``.
        family: of rows that name none; default: the name of the folder.

    Raises:
        BadInput: unreadable, a malformed line, an instance twice, or a file that is not there; the
            message names the file and the line.
    """
    place = path.parent
    folder = "." if root is None else place.relative_to(root).as_posix()
    blank = Instance(family or _folder_name(place), "", "", folder, 0.0)
    found: list[Instance] = []
    seen: dict[str, int] = {}
    for line, cells in _rows(path):
        where = f"{one_line(path, 100)}, line {line}"
        instance = _instance(cells, blank, where)
        if instance.key in seen:
            raise BadInput(f"{where}: the same instance as in line {seen[instance.key]}")
        seen[instance.key] = line
        for name in (instance.onnx, instance.vnnlib):
            if existing(place / name) is None:
                raise BadInput(f"{where}: no such file: {one_line(name, 120)}, plain or .gz")
        found.append(instance)
    if not found:
        raise BadInput(f"{one_line(path, 100)}: no instances in it")
    return found


def existing(path: Path) -> Path | None:
    """``path``, or what is there of it with or without ``.gz``; None when neither is."""
    other = path.with_suffix("") if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
    try:
        return next((p for p in (path, other) if p.is_file()), None)
    except (OSError, ValueError):
        return None


def scaled(instance: Instance, scale: float, fixed: float | None) -> Instance:
    """The instance with its time limit multiplied, or with another one."""
    return replace(instance, timeout=instance.timeout * scale if fixed is None else fixed)


def _folder_name(place: Path) -> str:
    """The benchmark's name: the folder's, or its parent's where the folder is a format version."""
    parts = [p for p in place.resolve().parts if not re.fullmatch(r"[0-9]+\.[0-9]+", p)]
    return parts[-1] if parts else str(place)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and named cells; blank lines are left out."""
    names: list[str] = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            for raw in reader:
                cells = [cell.strip() for cell in raw]
                if not any(cells):
                    continue
                if not names:
                    headed = {"onnx", "vnnlib"} <= set(cells)
                    names = cells if headed else ["onnx", "vnnlib", "timeout"]
                    if headed:
                        continue
                yield reader.line_num, _named(names, cells, path, reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        reason = getattr(problem, "strerror", None) or one_line(problem, 100)
        raise BadInput(f"{one_line(path, 100)}: cannot be read: {reason}") from None


def _named(names: list[str], cells: list[str], path: Path, line: int) -> dict[str, str]:
    if len(cells) != len(names):
        raise BadInput(f"{one_line(path, 100)}, line {line}: {len(cells)} columns where "
                       f"{len(names)} belong ({one_line(','.join(names), 60)})")
    return dict(zip(names, cells, strict=True))


def _instance(cells: Mapping[str, str], blank: Instance, where: str) -> Instance:
    limits = [cells[name] for name in _LIMIT_COLUMNS if name in cells]
    if not limits:
        raise BadInput(f"{where}: no column 'timeout' or 'timeout_s'")
    expected = cells.get("expected", "").lower()
    if expected not in _ANSWERS:
        raise BadInput(f"{where}: expected {one_line(expected, 40)!r}; write sat, unsat or unknown")
    if not cells["onnx"] or not cells["vnnlib"]:
        raise BadInput(f"{where}: no name of a {'property' if cells['onnx'] else 'network'} file")
    return replace(blank, family=cells.get("family") or blank.family, onnx=cells["onnx"],
                   vnnlib=cells["vnnlib"], timeout=_seconds(limits[0], where),
                   expected=_ANSWERS[expected])


def _seconds(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise BadInput(f"{where}: the time limit {one_line(text, 40)!r} is not a number of seconds "
                       "above 0")
    return value
