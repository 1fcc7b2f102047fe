"""Bounds as text. Decimals are rounded outward, so what is printed is still a bound."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

_DIGITS = 8


def as_table(names: Sequence[str], lower: Iterable[float], upper: Iterable[float]) -> str:
    """Aligned columns: row, lower bound, upper bound."""
    rows = [("row", "lower", "upper")]
    rows += [(name, _outward(low, ROUND_FLOOR), _outward(high, ROUND_CEILING))
             for name, low, high in zip(names, lower, upper, strict=True)]
    return columns(rows)


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of cells as aligned text; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join([row[0].ljust(widths[0]),
                        *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
             for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def as_json(facts: Mapping[str, Any], names: Sequence[str], lower: Iterable[float],
            upper: Iterable[float]) -> str:
    """One JSON object; a bound that is not finite is null."""
    rows = [{"row": name, "lower": _finite(low), "upper": _finite(high)}
            for name, low, high in zip(names, lower, upper, strict=True)]
    return json.dumps({**facts, "rows": rows}, indent=1)


def _outward(value: float, rounding: str) -> str:
    if not math.isfinite(value):
        return "none"
    return f"{Context(prec=_DIGITS, rounding=rounding).create_decimal(Decimal(float(value))):g}"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
