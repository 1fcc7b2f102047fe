"""Margins of every method against another library's, on the instances it published bounds for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.child import run
from benchmarks.data import Reference, references
from benchmarks.machine import describe, header
from benchmarks.options import methods
from benchmarks.report import RESULTS, shown, table, write
from benchmarks.tightness.compare import TOLERANCE, Line, Results, lines

_TITLES = ("net", "method", "instances", "compared", "worst row", "mean", "ours worse",
           "least gain over crown", "not above crown", "above samples", "CPU s", "verdict")


def main() -> None:
    """Bound, compare, print and write the table."""
    options = _arguments()
    chosen: dict[str, list[Reference]] = {}
    for reference in references(options.nets or ()):
        if reference.number < options.instances:
            chosen.setdefault(reference.net, []).append(reference)
    machine = describe()
    print(header(machine), "\n", file=sys.stderr)
    found: list[Line] = []
    margins: list[dict[str, Any]] = []
    for net, mine in chosen.items():
        results = _results(net, options)
        margins += results.values()
        found += lines(mine, results, options.methods)
        for line in found[-len(options.methods):]:
            print(f"{net} {line.method}: worst {shown(line.worst)}, {line.verdict}",
                  file=sys.stderr)
        write(options.out, "tightness", _report(machine, found, options.semantics), {
            "machine": machine, "semantics": options.semantics,
            "lines": [line._asdict() for line in found], "margins": margins})
    print(_report(machine, found, options.semantics))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tightness", description=__doc__)
    parser.add_argument("--nets", nargs="+", metavar="NET", help="default: all")
    methods(parser)
    parser.add_argument("--instances", type=int, default=100, help="most per network")
    parser.add_argument("--semantics", choices=("real", "search"), default="real",
                        help="float64 with all rounding accounted for, or plain float32")
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="S", help="per network")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    return parser.parse_args()


def _results(net: str, options: argparse.Namespace) -> Results:
    finished = run(["-m", "benchmarks.tightness.ours", net, *options.methods, "--instances",
                    options.instances, "--semantics", options.semantics], timeout=options.timeout)
    if finished.code and not finished.stopped:
        print(f"{net}: {finished.last_words}", file=sys.stderr)
    return {(r["number"], r["method"]): r for r in finished.records()}


def _report(machine: dict[str, Any], found: list[Line], semantics: str) -> str:
    arithmetic = {"real": "float64 with all rounding accounted for", "search": "plain float32"}
    errors = [f"* {line.net} {line.method}, {e}" for line in found for e in line.errors]
    return "\n".join([
        "# Tightness", "", header(machine), "",
        f"Lower bounds of the specification's rows in {arithmetic[semantics]}, against",
        "auto_LiRPA's in float32. Differences are relative, positive where ours are larger, which",
        f"is better; a row is worse beyond {TOLERANCE:g}. `alpha-20` takes as many steps as the",
        "other library, `alpha` has our defaults. Above samples: rows above what random points",
        "reached, which would be unsound. Good: IBP equal, the rest no worse, alpha above crown.",
        "",
        table(_TITLES, [_row(line) for line in found]),
        *(["", "What failed:", "", *errors] if errors else []),
    ])


def _row(line: Line) -> list[Any]:
    return [line.net, line.method, line.ran, line.compared, line.worst, line.mean, line.ours_worse,
            line.gain, line.not_above, line.unsound, line.seconds, line.verdict]


if __name__ == "__main__":
    main()
