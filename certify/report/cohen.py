"""The tab-separated logs of Cohen et al. 2019, which the field exchanges: read, written, doubted.

Columns ``idx label predict radius correct time``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from certify.core.errors import BadInput, one_line
from certify.report.smoothed import Row

_HEAD = ("idx", "label", "predict", "radius", "correct", "time")
_DIGITS = 5e-3  # relative; logs carry three significant digits, sometimes fewer decimals


def as_tsv(found: Sequence[Row]) -> str:
    """The log of a run; radii are rounded down."""
    lines = ["\t".join(_HEAD)]
    for row in found:
        radius = math.floor(row.radius * 1e6) / 1e6
        lines.append(f"{row.index}\t{row.label}\t{row.predict}\t{radius:.6f}\t{int(row.correct)}\t"
                     f"{row.seconds:.3f}")
    return "\n".join(lines) + "\n"


def read_tsv(path: str | Path) -> list[Row]:
    """The rows of a log.

    Raises:
        BadInput: it cannot be read, or a line is not one of a log.
    """
    shown = one_line(path, 120)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise BadInput(f"{shown}: cannot be read: {one_line(problem, 80)}") from None
    if not lines or tuple(lines[0].split())[:5] != _HEAD[:5]:
        raise BadInput(f"{shown}: the first line must name the columns {' '.join(_HEAD)}")
    return [_row(line, f"{shown}, line {n}") for n, line in enumerate(lines[1:], 2) if line.strip()]


def _row(line: str, where: str) -> Row:
    cells = line.split("\t") if "\t" in line else line.split()
    try:
        index, label, predict = (int(float(c)) for c in cells[:3])
        radius, correct = float(cells[3]), int(float(cells[4]))
    except (ValueError, IndexError):
        raise BadInput(f"{where}: not a line of a log") from None
    if not 0 <= radius < math.inf:
        raise BadInput(f"{where}: the radius {radius} is not one")
    if correct and predict != label:
        raise BadInput(f"{where}: says it is correct, and that {predict} is not {label}")
    return Row(index, label, predict, radius if predict >= 0 else 0.0)


def doubts(found: Sequence[Row], largest: float, second: float) -> list[str]:
    """How a log contradicts what is said of it; [] where it does not.

    Votes that were multiplied, another number of them, or another alpha show at the top.

    Args:
        largest: the radius if all votes agree, at the declared sigma, n and alpha.
        second: if all but one do.
    """
    said, radii = [], sorted({row.radius for row in found}, reverse=True)
    if radii and radii[0] > largest * (1 + _DIGITS):
        said.append(f"a radius of {radii[0]:g} is above {largest:.4g}, the most that the declared "
                    "votes can give")
    between = [r for r in radii if second * (1 + _DIGITS) < r < largest * (1 - _DIGITS)]
    if between:
        said.append(f"a radius of {between[0]:g} lies between {second:.4g} and {largest:.4g}, "
                    "where the declared votes give none")
    return said
