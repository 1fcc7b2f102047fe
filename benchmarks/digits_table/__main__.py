"""``python -m benchmarks.digits_table``: train, judge, compare with the published table.

Every finished cell is one line in ``--work``; the same command goes on where it stopped. The exit
code is 1 when a cell is worse than the published one by more than the tolerance.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine, report
from benchmarks.digits_table.cell import COLUMNS, METHODS, RADII, cell, recipe

TOLERANCE = 2.5  # points
_COMPARED = ("clean", "ibp-no-elision", "ibp", "crown-ibp", "crown", "pgd")
_PUBLISHED = Path(__file__).with_name("published.json")


def main() -> int:
    """Fill the table, write it after every cell, compare."""
    options = _arguments()
    methods = options.methods.split(",")
    done = _read(options.work)
    here = machine.describe()
    for seed, eps, method in itertools.product(range(options.seeds), RADII, methods):
        key = f"{method}:{eps}:{seed}"
        if key not in done and not options.summary_only:
            done[key] = {"key": key, **cell(recipe(method, eps, seed))}
            with open(options.work, "a", encoding="utf-8") as file:
                file.write(json.dumps(done[key]) + "\n")
            print(json.dumps(done[key]), file=sys.stderr, flush=True)
            _write(options, here, done, methods)
    return _write(options, here, done, methods)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.digits_table", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS), metavar="M,...")
    parser.add_argument("--work", type=Path, default=Path("digits_table.jsonl"),
                        help="cells that are done (default: digits_table.jsonl)")
    parser.add_argument("--summary-only", action="store_true", help="only write the table again")
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    return parser.parse_args()


def _read(work: Path) -> dict[str, dict[str, Any]]:
    lines = work.read_text(encoding="utf-8").splitlines() if work.exists() else []
    return {entry["key"]: entry for entry in map(json.loads, lines)}


def _write(options: argparse.Namespace, here: dict[str, Any], done: dict[str, dict[str, Any]],
           methods: list[str]) -> int:
    """Write what there is; 1 where it is worse than what was published."""
    rows = [row for eps in RADII for method in methods
            if (row := _row(done, eps, method, options.seeds))]
    worse = [line for row in rows for line in _worse(row)]
    text = _text(here, rows, worse)
    report.write(options.out, "digits_table", text, {
        "machine": here, "cells": list(done.values()), "rows": rows, "worse": worse})
    print(text)
    return 1 if worse else 0


def _row(done: dict[str, dict[str, Any]], eps: float, method: str, seeds: int) -> dict[str, Any]:
    """Means over the seeds that are done, their spread, and the published values; {} for none."""
    keys = [f"{method}:{eps}:{seed}" for seed in range(seeds)]
    mine = [done[key] for key in keys if key in done]
    if not mine:
        return {}
    reference = json.loads(_PUBLISHED.read_text(encoding="utf-8"))
    published = dict(zip(reference["columns"], reference[str(eps)][method], strict=True))
    means = {c: statistics.fmean(entry[c] for entry in mine) for c in COLUMNS}
    spread = {c: max(e[c] for e in mine) - min(e[c] for e in mine) for c in COLUMNS}
    return {"eps": eps, "method": method, "seeds": len(mine), "mean": means, "spread": spread,
            "published": published}


def _worse(row: dict[str, Any]) -> list[str]:
    """Certified and attacked accuracy below the published by more than the tolerance."""
    found = []
    for column in _COMPARED:
        mine, theirs = row["mean"][column], row["published"][column]
        if mine < theirs - TOLERANCE:
            found.append(f"eps {row['eps']} {row['method']} {column}: {mine:.1f}, published "
                         f"{theirs:.1f}")
    return found


def _text(here: dict[str, Any], rows: list[dict[str, Any]], worse: list[str]) -> str:
    titles = ["eps", "method", "seeds", *COLUMNS]
    lines = [[row["eps"], row["method"], row["seeds"], *(_cell(row, c) for c in COLUMNS)]
             for row in rows]
    verdict = f"No cell is below the published one by more than {TOLERANCE} points."
    if worse:
        verdict = (f"Below the published table by more than {TOLERANCE} points:\n\n"
                   + "\n".join(f"* {line}" for line in worse))
    return "\n\n".join([
        "# Certified training on digits",
        machine.header(here) + "\n\nThe machine was shared with other work; training cost is in "
        "CPU seconds.",
        "Mean over seeds, the published value (one seed) in parentheses; per cent of 450 test "
        "images. Certified with all rounding accounted for; CROWN columns include intervals.",
        report.table(titles, lines), verdict])


def _cell(row: dict[str, Any], column: str) -> str:
    digits = 2 if column == "tightness" else 0 if column == "cpu_seconds" else 1
    theirs = row["published"].get(column)
    mine = f"{row['mean'][column]:.{digits}f}"
    return mine if theirs is None else f"{mine} ({theirs:.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())
