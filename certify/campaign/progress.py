"""How far a campaign has come: one moving line on a terminal, plain lines or nothing elsewhere."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from certify.core.errors import one_line

Describe = Callable[[Mapping[str, Any]], tuple[str, str, bool]]
"""A record -> its word, a line about it, and whether it is alarming."""


class Progress:
    """A `Watch` on stderr.

    Args:
        describe: what to say about a record.
        quiet: say nothing.
        verbose: a line for every item, also where stderr is no terminal.
    """

    def __init__(self, describe: Describe, quiet: bool = False, verbose: bool = False) -> None:
        self._describe, self._quiet, self._verbose = describe, quiet, verbose
        self._counts: Counter[str] = Counter()
        self._bar: Any = None
        self._task: Any = None

    def begin(self, total: int, before: int, notes: Sequence[str]) -> None:
        """Draw the line."""
        if self._quiet:
            return
        for note in notes:
            self._line(f"note: {note}")
        if before:
            self._line(f"{before} of {total} done before, going on")
        if sys.stderr is not None and sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task("", total=total, completed=before, words="")
            self._bar.start()

    def finished(self, record: Mapping[str, Any]) -> None:
        """Count the item; alarming ones get a line of their own, in red on a terminal."""
        word, line, alarming = self._describe(record)
        self._counts[word] += 1
        if self._quiet:
            return
        if self._verbose or alarming:
            self._line(line, alarming)
        if self._bar is not None:
            words = "  ".join(f"{word} {count}" for word, count in sorted(self._counts.items()))
            self._bar.update(self._task, advance=1, words=words)

    def end(self) -> None:
        """Leave the line as it is, and the terminal in order."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, text: str, alarming: bool = False) -> None:
        with suppress(OSError):  # nobody listens any more: no reason to stop working
            if self._bar is not None:
                from rich.text import Text

                style = "bold red" if alarming else ""
                self._bar.console.print(Text(one_line(text, 1000), style), soft_wrap=True)
            elif sys.stderr is not None:
                sys.stderr.write(one_line(text, 1000) + "\n")
                sys.stderr.flush()


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(MofNCompleteColumn(), BarColumn(bar_width=20), TextColumn("{task.fields[words]}"),
               TextColumn("ETA"), TimeRemainingColumn(), console=Console(stderr=True))
