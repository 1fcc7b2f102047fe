"""`certify verify` on the quick competition instances: with both, with bounds, with the attack."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.data import competition
from benchmarks.machine import describe, header
from benchmarks.quick.answers import MODES, Answer, ask
from benchmarks.quick.tables import report
from benchmarks.report import RESULTS, write


def main() -> int:
    """Ask, print and write the table; exit code 1 after a wrong answer, a crash or an overrun."""
    options = _arguments()
    modes = options.modes or MODES
    instances = competition(options.families or ())
    machine = describe()
    print(header(machine), "\n", file=sys.stderr)
    answers: list[Answer] = []
    counts: dict[str, int] = {}
    for instance in instances:
        counts[instance.family] = counts.get(instance.family, 0) + 1
        if counts[instance.family] > options.instances:
            continue
        for mode in modes:
            answers.append(ask(instance, mode, min(instance.timeout, options.timeout_cap)))
            print(_line(answers[-1]), file=sys.stderr)
        write(options.out, "quick", report(machine, answers, modes),
              {"machine": machine, "answers": [a._asdict() for a in answers]})
    print(report(machine, answers, modes))
    return int(any(a.wrong or a.crashed or a.overran for a in answers))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quick", description=__doc__)
    parser.add_argument("--families", nargs="+", metavar="FAMILY", help="default: all")
    parser.add_argument("--instances", type=int, default=1000, help="most per family")
    parser.add_argument("--timeout-cap", type=float, default=float("inf"), metavar="S",
                        help="the time limit is the instance's own, but at most this")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--full-only", dest="modes", action="store_const", const=("full",),
                      help="bounds and attack together")
    only.add_argument("--no-attack", dest="modes", action="store_const", const=("bounds",),
                      help="bounds alone")
    only.add_argument("--attack-only", dest="modes", action="store_const", const=("attack",),
                      help="the attack alone")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    return parser.parse_args()


def _line(answer: Answer) -> str:
    flag = "WRONG " if answer.wrong else "CRASH " if answer.crashed else \
        "LATE " if answer.overran else ""
    return (f"{flag}{answer.family} {answer.onnx} {answer.vnnlib} {answer.mode}: {answer.word} "
            f"(expected {answer.expected}) by {answer.method or '-'}, {answer.wall:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
