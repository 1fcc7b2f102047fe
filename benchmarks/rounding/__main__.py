"""CPU time of bounds with all rounding accounted for, in units of the same bounds in plain floats.

Both run in float64 with the same method on the same instance; only the semantics differ.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.child import run
from benchmarks.data import references, suite
from benchmarks.machine import describe, header
from benchmarks.options import METHODS
from benchmarks.report import RESULTS, shown, table, write

_ALLOWED = 1.2
_TITLES = (
    "net",
    "plain CPU ms",
    "rigorous CPU ms",
    "ratio",
    "within",
    "repeats",
    "plain margin",
    "rigorous margin",
)
_ABOUT = """CPU milliseconds of one call of `{method}`, model and property already read: the first
instance of each network in float64, plain (search semantics) and rigorous (real semantics), taken
in turn in one process. Times are medians, the ratio is the median of the pairs' ratios. Wanted: at
most {allowed}. Margins: mean over the rows."""
_LONGEST = 900.0  # seconds of one process


def main() -> None:
    """Measure, print and write the table."""
    options = _arguments()
    nets = options.nets or suite("speed")
    references(nets)  # says what is missing before anything is measured
    machine = describe()
    rows: list[dict[str, Any]] = []
    for net in nets:
        rows.append({"net": net, **_pair(net, options)})
        print(f"{net}: {shown(rows[-1].get('ratio'))}", file=sys.stderr)
        text = _report(machine, options.method, rows)
        write(
            options.out,
            "rounding",
            text,
            {"machine": machine, "method": options.method, "rows": rows},
        )
    print(_report(machine, options.method, rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounding", description=__doc__)
    parser.add_argument("--nets", nargs="+", metavar="NET", help="default: suites/speed.toml")
    parser.add_argument("--method", choices=METHODS, default="crown")
    parser.add_argument("--repeats", type=int, default=15, help="timed pairs per network")
    parser.add_argument(
        "--budget",
        type=float,
        default=90.0,
        metavar="S",
        help="seconds per network after which no further pair is begun",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    return parser.parse_args()


def _pair(net: str, options: argparse.Namespace) -> dict[str, Any]:
    """The network's measurement, or ``{"error": ...}``."""
    finished = run(
        [
            "-m",
            "benchmarks.rounding.pair",
            net,
            "--method",
            options.method,
            "--repeats",
            options.repeats,
            "--budget",
            options.budget,
        ],
        timeout=_LONGEST,
    )
    if finished.stopped:
        return {"error": f"stopped after {_LONGEST:.0f} s"}
    records = finished.records()
    return {"error": finished.last_words} if finished.code or not records else records[-1]


def _report(machine: dict[str, Any], method: str, rows: list[dict[str, Any]]) -> str:
    notes = [f"* {row['net']}: {row['error']}" for row in rows if "error" in row]
    return "\n".join(
        [
            "# Rigorous rounding",
            "",
            header(machine),
            "",
            _ABOUT.format(method=method, allowed=_ALLOWED),
            "",
            table(_TITLES, [_row(row) for row in rows]),
            *(["", "What failed:", "", *notes] if notes else []),
        ]
    )


def _row(row: dict[str, Any]) -> list[Any]:
    ratio = row.get("ratio")
    within = None if ratio is None else "yes" if ratio <= _ALLOWED else "no"
    keys = ("repeats", "plain_margin", "rigorous_margin")
    times = (row.get("plain_ms"), row.get("rigorous_ms"))
    return [row["net"], *times, ratio, within, *(row.get(key) for key in keys)]


if __name__ == "__main__":
    main()
