"""CPU milliseconds, memory and floating-point operations of every bound method.

Each network and method runs in a fresh process: lower bounds of the specification's rows, every
intermediate bound included, model and property already read. ``search`` is plain float32, the
arithmetic of the peer; ``real`` is float64 with all rounding accounted for.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.data import references, suite
from benchmarks.machine import describe, header
from benchmarks.report import RESULTS, table, write
from benchmarks.speed.cell import (
    METHODS,
    PUBLISHED,
    Effort,
    Peer,
    export,
    ours,
    peer_at,
    published,
    theirs,
)

_TIMES = ("net", "method", "ours CPU ms", "wall ms", "real CPU ms", "peer CPU ms", "published",
          "ours/peer", "ours MB", "real MB", "peer MB", "margin", "peer margin")
_FLOORS = ("net", "method", "MFLOP as run", "MFLOP by definition", "floor ms", "ours/floor", "real floor ms",
           "real/floor")


def main() -> None:
    """Measure, print and write the tables."""
    options = _arguments()
    effort = Effort(options.repeats, options.instances, options.budget)
    nets = options.nets or suite("speed")
    known = {r.net: r for r in reversed(references(nets))}
    peer = peer_at(options.peer)
    machine = describe()
    print(header(machine), "\n", file=sys.stderr)
    cells = []
    with tempfile.TemporaryDirectory() as scratch:
        for net in nets:
            problems = Path(scratch) / f"{net}.npz"
            if peer is not None:
                export(net, effort, problems)
            for method in options.methods:
                cells.append(_cell(peer, known[net], problems, method, effort))
                text = _report(machine, cells)
                write(options.out, "speed", text, {"machine": machine, "peer": PUBLISHED["source"],
                                                   "cells": cells})
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--nets", nargs="+", metavar="NET", help="default: suites/speed.toml")
    parser.add_argument("--methods", type=_methods, metavar="M,...", default=list(METHODS),
                        help=f"default: {','.join(METHODS)}")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls per instance")
    parser.add_argument("--instances", type=int, default=3, help="per network")
    parser.add_argument("--budget", type=float, default=60.0, metavar="S",
                        help="seconds per process after which no further call is begun")
    parser.add_argument("--peer", metavar="PATH",
                        help="measure auto_LiRPA beside: a virtual environment or its Python")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    return parser.parse_args()


def _methods(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in METHODS:
            raise argparse.ArgumentTypeError(f"no method {name!r}; choose among {', '.join(METHODS)}")
    return names


def _cell(peer: Peer | None, reference: Any, problems: Path, method: str, effort: Effort) -> dict[str, Any]:
    net = reference.net
    cell = {"net": net, "method": method, "published": published(net, method),
            "search": ours(net, method, "search", effort)}
    cell["peer"] = None if peer is None else theirs(peer, reference, problems, method, effort)
    cell["real"] = ours(net, method, "real", effort)
    notes = [f"{who}: {cell[who]['error']}" for who in ("search", "peer", "real")
             if cell[who] and "error" in cell[who]]
    print(f"{net} {method}: {_value(cell['search'], 'cpu_ms')} ms {'; '.join(notes)}", file=sys.stderr)
    return cell


def _report(machine: dict[str, Any], cells: list[dict[str, Any]]) -> str:
    rates = {name: 1e6 * r["cpu"] for name, r in machine["gflops"].items()}  # per CPU millisecond
    notes = [f"* {c['net']} {c['method']}, {who}: {c[who]['error']}" for c in cells
             for who in ("search", "real", "peer") if c[who] and "error" in c[who]]
    return "\n".join([
        "# Speed", "", header(machine), "",
        "CPU milliseconds of one call after warm-up. Peer: auto_LiRPA, in the same run; published: "
        f"{PUBLISHED['source']}. ours/peer compares with the same run where there is one, else with the "
        "published number. `alpha-20` optimises as many steps as the peer does, `alpha` has our "
        "defaults. MB: resident memory at its largest. Margin: mean over the rows of the first instance. `*`: "
        "one call took too long to repeat.", "",
        table(_TIMES, [_times(c) for c in cells]), "",
        "Floor: what the matrix products and convolutions that really ran would take at the measured "
        "rate of a large product, in CPU milliseconds. By definition: had every pass been a full matrix pass.",
        "", table(_FLOORS, [_floors(c, rates) for c in cells]), *(["", *notes] if notes else []),
    ])


def _value(record: dict[str, Any] | None, key: str) -> Any:
    return None if record is None else record.get(key)


def _starred(record: dict[str, Any] | None) -> Any:
    value = _value(record, "cpu_ms")
    return value if value is None or record is None or record.get("calls", 1) else f"{value:.0f}*"


def _times(cell: dict[str, Any]) -> list[Any]:
    search, real, peer, known = (cell[k] for k in ("search", "real", "peer", "published"))
    mine, base = _value(search, "cpu_ms"), _value(peer, "cpu_ms") or _value(known, "cpu_ms")
    memory = _value(peer, "peak_mb")
    return [
        cell["net"], cell["method"], _starred(search), _value(search, "wall_ms"), _starred(real),
        _starred(peer), _value(known, "cpu_ms"), mine / base if mine and base else None,
        _value(search, "peak_mb"), _value(real, "peak_mb"),
        memory if memory is not None or known is None else float(known["peak_mb"][1]),
        _value(search, "margin"), _value(peer, "margin"),
    ]


def _floors(cell: dict[str, Any], rates: dict[str, float]) -> list[Any]:
    row: list[Any] = [cell["net"], cell["method"]]
    for who, rate in (("search", rates["float32"]), ("real", rates["float64"])):
        record = cell[who]
        work, dense = _value(record, "flops"), _value(record, "dense_flops")
        if who == "search":
            row += [None if work is None else work / 1e6, None if dense is None else dense / 1e6]
        floor = None if work is None else work / rate
        row += [floor, record["cpu_ms"] / floor if floor else None]
    return row


if __name__ == "__main__":
    main()
