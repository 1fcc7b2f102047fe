"""Tables, and results as a markdown file for people with a JSON file for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table with aligned columns; numbers stand right, None is a dash."""
    cells = [list(titles), *([shown(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(titles))]
    left = [all(isinstance(row[i], str) for row in rows) for i in range(len(titles))]

    def line(row: Sequence[str]) -> str:
        sized = (c.ljust(w) if at_left else c.rjust(w)
                 for c, w, at_left in zip(row, widths, left, strict=True))
        return "| " + " | ".join(sized) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if at_left else ":")
                          for w, at_left in zip(widths, left, strict=True)) + "|"
    return "\n".join([line(cells[0]), rule, *(line(row) for row in cells[1:])])


def shown(value: Any) -> str:
    """A number in three significant digits; None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{value:.0f}" if 100 <= abs(value) < 1e5 else f"{value:.3g}"
    return str(value)


def write(place: Path, name: str, text: str, data: dict[str, Any]) -> None:
    """``name.md`` and ``name.json`` in ``place``."""
    place.mkdir(parents=True, exist_ok=True)
    for suffix, content in ((".md", text), (".json", json.dumps(data, indent=1))):
        target = place / (name + suffix)
        partial = target.with_suffix(suffix + ".partial")
        partial.write_text(content + "\n", encoding="utf-8")
        partial.replace(target)
