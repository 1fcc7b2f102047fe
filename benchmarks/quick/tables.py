"""Per family: what bounds and attack decide, alone and together, and what went wrong."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.machine import header
from benchmarks.quick.answers import Answer
from benchmarks.report import table

_TITLES = ("family", "instances", "unsat", "sat", "attack alone", "bounds alone", "both", "open",
           "wrong", "crashes", "overruns", "median s", "most s")


def report(machine: dict[str, Any], answers: Sequence[Answer], modes: Sequence[str]) -> str:
    """Everything as markdown."""
    families = list(dict.fromkeys(a.family for a in answers))
    rows = [_row(f, [a for a in answers if a.family == f], modes) for f in families]
    main = "full" if "full" in modes else modes[0]
    return "\n".join([
        "# Quick instances", "", header(machine), "",
        "Each instance is one fresh process, start-up included. Attack alone: no bounds; bounds",
        "alone: `certify verify --no-attack`; both: `certify verify`. Open instances and wall",
        f"seconds are those of {_WORDS[main]}; wrong answers, crashes (anything but a documented",
        "answer) and overruns (more than 1 s beyond the time limit) those of all runs.", "",
        table(_TITLES, [*rows, _row("all", list(answers), modes)]), "",
        f"Decided by, {_WORDS[main]}: {_methods([a for a in answers if a.mode == main])}.", "",
        *_incidents(answers), *_open([a for a in answers if a.mode == main]),
    ]).rstrip()


_WORDS = {"full": "both", "bounds": "bounds alone", "attack": "the attack alone"}


def _row(name: str, answers: list[Answer], modes: Sequence[str]) -> list[Any]:
    by_mode = {mode: [a for a in answers if a.mode == mode] for mode in modes}
    main = by_mode["full"] if "full" in by_mode else by_mode[modes[0]]
    known = Counter(a.expected for a in main)

    def decided(mode: str) -> int | None:
        return sum(a.decided for a in by_mode[mode]) if mode in by_mode else None

    seconds = [a.wall for a in main]
    return [
        name, len(main), known["unsat"], known["sat"], decided("attack"), decided("bounds"),
        decided("full"), sum(not a.decided and not a.wrong for a in main),
        sum(a.wrong for a in answers), sum(a.crashed for a in answers),
        sum(a.overran for a in answers), statistics.median(seconds) if seconds else None,
        max(seconds, default=None),
    ]


def _methods(answers: Sequence[Answer]) -> str:
    counts = Counter(a.method or "?" for a in answers if a.decided)
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "nothing"


def _incidents(answers: Sequence[Answer]) -> list[str]:
    found = [a for a in answers if a.wrong or a.crashed or a.overran]
    if not found:
        return ["No wrong answer, no crash, no overrun.", ""]
    return ["What went wrong:", "", *(
        f"* {a.family} {a.onnx} {a.vnnlib} ({a.mode}): {a.word}, expected {a.expected}, exit code "
        f"{a.code}, {a.wall:.1f} of {a.timeout:g} s; {a.note}" for a in found), ""]


def _open(answers: Sequence[Answer]) -> list[str]:
    found = [a for a in answers if not a.decided and not a.wrong]
    if not found:
        return []
    return ["Open:", "", *(
        f"* {a.family} {a.onnx} {a.vnnlib}: {a.word}, expected {a.expected}, {a.wall:.1f} s; "
        f"{a.note}" for a in found)]
