"""CPU milliseconds, memory and floating-point operations of every bound method."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.data import Reference, references, suite
from benchmarks.machine import describe, header
from benchmarks.options import methods
from benchmarks.report import RESULTS, shown, write
from benchmarks.speed.cell import Effort, export, ours, peer_python, published, theirs
from benchmarks.speed.tables import failures, report


def main() -> None:
    """Measure, print and write the tables."""
    options = _arguments()
    effort = Effort(options.repeats, options.instances, options.budget)
    known = {r.net: r for r in reversed(references(options.nets or suite("speed")))}
    peer = peer_python(options.peer)
    machine = describe()
    print(header(machine), "\n", file=sys.stderr)
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for net in options.nets or suite("speed"):
            problems = Path(scratch) / f"{net}.npz"
            if peer is not None:
                export(net, effort, problems)
            for method in options.methods:
                cells.append(_cell(peer, known[net], problems, method, effort))
                write(options.out, "speed", report(machine, cells),
                      {"machine": machine, "cells": cells})
    print(report(machine, cells))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--nets", nargs="+", metavar="NET", help="default: suites/speed.toml")
    methods(parser)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls per instance")
    parser.add_argument("--instances", type=int, default=3, help="per network")
    parser.add_argument("--budget", type=float, default=60.0, metavar="S",
                        help="seconds per process after which no further call is begun")
    parser.add_argument("--peer", metavar="PATH",
                        help="measure auto_LiRPA beside: a virtual environment or its Python")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    return parser.parse_args()


def _cell(
    peer: str | None, reference: Reference, problems: Path, method: str, effort: Effort
) -> dict[str, Any]:
    net = reference.net
    cell: dict[str, Any] = {"net": net, "method": method, "published": published(net, method)}
    cell["search"] = ours(net, method, "search", effort)
    cell["peer"] = theirs(peer, reference, problems, method, effort) if peer else None
    cell["real"] = ours(net, method, "real", effort)
    times = (shown((cell[who] or {}).get("cpu_ms")) for who in ("search", "real", "peer"))
    print(f"{net} {method}: ours, real, peer: {', '.join(times)} CPU ms",
          *failures(cell), sep="; ", file=sys.stderr)
    return cell


if __name__ == "__main__":
    main()
