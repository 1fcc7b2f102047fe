"""Random small networks whose answers are known, against `certify.verify`.

Thresholds are put just beside the true minimum, so that answers are close calls. Piecewise linear
networks have exact minima by mixed-integer programming; for the others a point known to be unsafe
must never be contradicted by a proof. Every answer of a case depends on the seed and its number
alone: ``--only N`` repeats one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.battery.case import Case, ask
from benchmarks.battery.networks import KINDS
from benchmarks.machine import describe, header
from benchmarks.report import RESULTS, table, write


def main() -> int:
    """Run, print, write; exit code 1 after a disagreement."""
    options = _arguments()
    numbers = range(options.count) if options.only is None else [options.only]
    work = [(options.seed, n, options.timeout) for n in numbers]
    machine = describe()
    print(header(machine), "\n", file=sys.stderr)
    cases: list[Case] = []
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for case in pool.imap_unordered(ask, work, chunksize=8):
            cases.append(case)
            if case.wrong:
                print(f"WRONG {case}", file=sys.stderr)
            if len(cases) % 500 == 0:
                print(f"{len(cases)} of {len(work)}", file=sys.stderr)
    cases.sort()
    text = _report(machine, cases, options)
    print(text)
    if options.only is None:
        write(options.out, "battery", text, {"machine": machine, "seed": options.seed,
                                             "cases": [c._asdict() for c in cases]})
    return int(any(c.wrong for c in cases))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.battery", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="this one case")
    parser.add_argument("--timeout", type=float, default=20.0, metavar="S", help="per question")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    return parser.parse_args()


def _report(machine: dict[str, Any], cases: list[Case], options: argparse.Namespace) -> str:
    lines = [[kind, truth, *_counts([c for c in cases if (c.kind, c.truth) == (kind, truth)])]
             for kind in KINDS for truth in ("sat", "unsat", "?")
             if any((c.kind, c.truth) == (kind, truth) for c in cases)]
    lines.append(["all", "", *_counts(cases)])
    wrong = sum(bool(c.wrong) for c in cases)
    return "\n".join([
        "# Differential battery\n", header(machine),
        f"\n`python -m benchmarks.battery --count {options.count} --seed {options.seed}`: random "
        "networks, an eighth of them asked with the attack off and one second; `?`: no sure answer "
        "known. "
        f"Disagreements: **{wrong}**.\n",
        table(["kind", "answer", "questions", "sat", "unsat", "unknown", "timeout", "wrong",
               "median s", "most s"], lines)]) + "\n"


def _counts(cases: list[Case]) -> list[object]:
    said = Counter(c.said for c in cases)
    seconds = [c.seconds for c in cases]
    return [len(cases), *(said[w] for w in ("sat", "unsat", "unknown", "timeout")),
            sum(bool(c.wrong) for c in cases), float(np.median(seconds)), max(seconds)]


if __name__ == "__main__":
    sys.exit(main())
