"""Certified, unknown, broken, misclassified: a table, and a picture of stacked bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _BAR, _GAP, _LEFT, _TOP = 720, 30, 16, 110, 46
_COLOURS = (("certified", "#2a7d2a"), ("unknown", "#d9b44a"), ("broken", "#c0392b"),
            ("misclassified", "#7f8c8d"))
_COLUMNS = ("eps", "images", "clean", "certified", "attacked", "unknown")


def as_text(rows: Sequence[Mapping[str, float]]) -> str:
    """Aligned columns, one line per radius; shares in per cent.

    Args:
        rows: ``eps``, ``images``, ``clean``, ``certified``, ``attacked``, ``unknown``, and a share
            for each verifier that certified something.
    """
    names = [*_COLUMNS, *dict.fromkeys(n for row in rows for n in row if n not in _COLUMNS)]
    cells = [names, *([_cell(row.get(name, 0.0), name) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)).rstrip()
                     for line in cells)


def as_svg(rows: Sequence[Mapping[str, float]], title: str) -> str:
    """A bar per radius: what is proved from the left, what is wrong from the right."""
    height = _TOP + len(rows) * (_BAR + _GAP) + 40
    parts = [f'<text x="{_LEFT}" y="20" font-weight="bold">{escape(title)}</text>']
    for number, row in enumerate(rows):
        parts += _bar(row, _TOP + number * (_BAR + _GAP))
    x = _LEFT
    for name, colour in _COLOURS:
        parts.append(f'<rect x="{x}" y="{height - 26}" width="12" height="12" fill="{colour}"/>'
                     f'<text x="{x + 18}" y="{height - 16}">{name}</text>')
        x += 130
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>', *parts, "</svg>", ""])


def _bar(row: Mapping[str, float], y: int) -> list[str]:
    shares = (row["certified"], row["unknown"], row["clean"] - row["attacked"],
              100 - row["clean"])
    parts = [f'<text x="{_LEFT - 10}" y="{y + 20}" text-anchor="end">eps {row["eps"]:.4g}</text>']
    scale, x = (_WIDTH - _LEFT - 20) / 100, float(_LEFT)
    for share, (name, colour) in zip(shares, _COLOURS, strict=True):
        width = scale * share
        parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" '
                     f'fill="{colour}"><title>{name} {share:.2f} %</title></rect>')
        if width > 40:
            parts.append(f'<text x="{x + width / 2:.1f}" y="{y + 20}" fill="white" '
                         f'text-anchor="middle">{share:.1f}</text>')
        x += width
    return parts


def _cell(value: float, name: str) -> str:
    if name == "images":
        return f"{value:.0f}"
    return f"{value:.4g}" if name == "eps" else f"{value:.2f}"
