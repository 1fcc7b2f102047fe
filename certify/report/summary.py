"""The table of a benchmark: what was solved in each family, how fast, and what was wrong."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from certify.report.row import WORDS, Row

_RED, _PLAIN = "\x1b[31m", "\x1b[0m"
_HEAD = ("family", "instances", "solved", *WORDS, "wrong", "median s", "longest s")
_REASONS = 10  # errors that are listed


def as_text(rows: Sequence[Row], total: int, colour: bool = False) -> str:
    """For a terminal: what is wrong first, in red if ``colour``.

    Args:
        total: instances there are, finished or not.
    """
    cells = _table(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    table = ["  ".join([line[0].ljust(widths[0]),
                        *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
             for line in cells]
    alarm = [f"WRONG: {line}" for line in _wrong(rows)]
    if colour:
        alarm = [f"{_RED}{line}{_PLAIN}" for line in alarm]
    return "\n".join([*alarm, *table, *_errors(rows), *_rest(rows, total)])


def as_markdown(rows: Sequence[Row], total: int, facts: Sequence[str]) -> str:
    """For a repository or a mail; ``facts`` say how the results were made."""
    cells = [[_escaped(c) for c in line] for line in _table(rows)]
    lines = [_md(cells[0]), _md(["---", *["---:"] * (len(cells[0]) - 1)]), *map(_md, cells[1:])]
    parts = [f"**WRONG**: {_escaped(line)}" for line in _wrong(rows)]
    parts += ["\n".join(lines), "\n".join(f"* {_escaped(fact)}" for fact in facts)]
    parts += [_escaped(line) for line in (*_errors(rows), *_rest(rows, total))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(rows: Sequence[Row]) -> list[list[str]]:
    families = list(dict.fromkeys(row.family for row in rows))
    lines = [_line(name, [row for row in rows if row.family == name]) for name in families]
    return [list(_HEAD), *lines, *([_line("all", rows)] if len(families) != 1 else [])]


def _line(name: str, rows: Sequence[Row]) -> list[str]:
    words = Counter(row.word for row in rows)
    times = [row.seconds for row in rows if row.solved]
    counts = [len(rows), len(times), *(words[w] for w in WORDS), sum(bool(r.wrong) for r in rows)]
    median = f"{statistics.median(times):.2f}" if times else "-"
    return [name, *map(str, counts), median, f"{max(times):.2f}" if times else "-"]


def _wrong(rows: Sequence[Row]) -> list[str]:
    return [row.wrong for row in rows if row.wrong]


def _errors(rows: Sequence[Row]) -> list[str]:
    """The first few errors, and how many more there are."""
    failed = [row for row in rows if row.word == "error"]
    lines = [f"error: {row.name}: {row.why}" for row in failed[:_REASONS]]
    more = len(failed) - len(lines)
    return [*lines, *([f"and {more} more errors"] if more else [])]


def _rest(rows: Sequence[Row], total: int) -> list[str]:
    return [f"{len(rows)} of {total} instances finished"] if len(rows) < total else []


def _md(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in "|<>*_`[]" else c for c in text)
