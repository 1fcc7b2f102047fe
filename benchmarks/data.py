"""Where the networks and properties lie, and which there are. Nothing of them is copied."""

from __future__ import annotations

import csv
import json
import os
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import ROOT

SUITES = Path(__file__).resolve().parent / "suites"


@dataclass(frozen=True, eq=False)
class Reference:
    """An instance with the bounds another library prints for it.

    Attributes:
        number: position among the instances of its network.
        methods: that library's results by its own method names.
        sampled: per row, the smallest value that random points reached: no sound bound is above it.
    """

    net: str
    number: int
    onnx: Path
    vnnlib: Path
    methods: dict[str, Any]
    sampled: list[float]

    def margins(self, method: str) -> list[float] | None:
        """Lower bounds of the rows by one of that library's methods; None when there are none."""
        found = self.methods.get(method)
        return None if found is None else list(found["margins_lb"])


@dataclass(frozen=True)
class Instance:
    """A network and a property with a known answer, ``sat`` or ``unsat``."""

    family: str
    onnx: Path
    vnnlib: Path
    timeout: float
    expected: str


def folder(part: str) -> Path:
    """A part of the data folder; ends the command with a message where it is absent."""
    root = Path(os.environ.get("CERTIFY_DATA", ROOT.parent / "shared" / "data"))
    if not (root / part).is_dir():
        print(f"skipped: no {part} in {root}; name the data folder in CERTIFY_DATA")
        sys.exit(0)
    return root / part


def references(nets: Iterable[str] = ()) -> list[Reference]:
    """The instances with another library's bounds; of all networks, or of those named."""
    place = folder("reference_bounds")
    found = json.loads((place / "reference_bounds.json").read_text())["instances"]
    known = list(dict.fromkeys(e["net"] for e in found))
    wanted = list(nets) or known
    for name in wanted:
        if name not in known:
            sys.exit(f"there is no network {name!r}; choose among {', '.join(known)}")
    chosen = []
    for net in wanted:
        mine = [e for e in found if e["net"] == net]
        chosen += [
            Reference(net, i, place / e["onnx"], place / e["vnnlib"], e["methods"],
                      e["sampled_min_margins"])
            for i, e in enumerate(mine)
        ]
    return chosen


def competition(families: Iterable[str] = ()) -> list[Instance]:
    """The quick competition instances; of all families, or of those named."""
    place, wanted = folder("vnncomp_public"), set(families)
    with open(place / "quick.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    unknown = wanted - {r["family"] for r in rows}
    if unknown:
        sys.exit(f"there is no family {', '.join(sorted(unknown))}; choose among "
                 f"{', '.join(dict.fromkeys(r['family'] for r in rows))}")
    return [
        Instance(r["family"], place / r["onnx"], place / r["vnnlib"], float(r["timeout_s"]),
                 r["expected"])
        for r in rows if not wanted or r["family"] in wanted
    ]


def suite(name: str) -> list[str]:
    """The networks listed in ``suites/<name>.toml``."""
    return list(tomllib.loads((SUITES / f"{name}.toml").read_text())["nets"])
