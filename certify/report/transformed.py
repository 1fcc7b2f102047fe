"""Certified ranges of transformations: a table, and a picture with one line per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

VERDICTS = ("certified", "unknown", "attacked", "misclassified")
_COLOURS = {"certified": "#2a7d2a", "unknown": "#d9b44a", "attacked": "#c0392b",
            "misclassified": "#7f8c8d"}
_WIDTH, _LEFT, _TOP, _LINE = 760, 120, 64, 14
_MOST = 60  # images drawn


def summary(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Shares in per cent; ``attacked accuracy`` is what no attack broke."""
    total = max(1, len(found))
    shares = {v: 100 * sum(f["verdict"] == v for f in found) / total for v in VERDICTS}
    return {"images": float(len(found)), "clean": 100 - shares["misclassified"],
            "certified": shares["certified"], "unknown": shares["unknown"],
            "not attacked": shares["certified"] + shares["unknown"]}


def as_text(found: Sequence[Mapping[str, Any]], title: str, each: int = 20) -> str:
    """The summary and the first images."""
    facts = summary(found)
    lines = [title, "  ".join(f"{name} {value:.0f}" if name == "images" else f"{name} {value:.1f} %"
                              for name, value in facts.items()), ""]
    rows = [("image", "label", "verdict", "proved", "certified range", "no attack within")]
    rows += [(str(f["index"]), str(f["label"]), f["verdict"], f"{100 * f['share']:.1f} %",
              _range(f.get("certified_range")), _range(f.get("attacked_range")))
             for f in found[:each]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
              for row in rows]
    if len(found) > each:
        lines.append(f"... and {len(found) - each} more")
    return "\n".join(lines)


def _range(ends: Sequence[float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:.4g} to {ends[1]:.4g}"


def as_svg(found: Sequence[Mapping[str, Any]], title: str, low: float, high: float) -> str:
    """Per image the proved range (dark) within the range no attack broke (light).

    Args:
        found: records of one parameter.
        low, high: the range asked about.
    """
    drawn = list(found[:_MOST])
    height = _TOP + _LINE * len(drawn) + 50
    scale = (_WIDTH - _LEFT - 20) / ((high - low) or 1.0)
    parts = [f'<text x="{_LEFT}" y="20" font-weight="bold">{escape(title)}</text>']
    for x, (text, colour) in zip((_LEFT, _LEFT + 110, _LEFT + 260), (
            ("proved", "#2a7d2a"), ("no attack found", "#e8d9a8"), ("misclassified", "#7f8c8d")),
            strict=True):
        parts.append(f'<rect x="{x}" y="32" width="12" height="12" fill="{colour}"/>'
                     f'<text x="{x + 18}" y="42">{text}</text>')
    for number, f in enumerate(drawn):
        y = _TOP + _LINE * number
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 10}" text-anchor="end" font-size="10" '
                     f'fill="{_COLOURS[f["verdict"]]}">{f["index"]}: {f["label"]}</text>')
        if f["verdict"] == "misclassified":
            parts.append(_bar((low, high), y, low, scale, "#7f8c8d"))
        for ends, colour in ((f.get("attacked_range"), "#e8d9a8"),
                             (f.get("certified_range"), "#2a7d2a")):
            if ends is not None and f["verdict"] != "misclassified":
                parts.append(_bar(ends, y, low, scale, colour))
    bottom = _TOP + _LINE * len(drawn) + 18
    parts += [f'<text x="{_LEFT + scale * (v - low):.1f}" y="{bottom}" text-anchor="middle" '
              f'font-size="11">{v:.4g}</text>' for v in (low, (low + high) / 2, high)]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>', *parts, "</svg>", ""])


def _bar(ends: Sequence[float], y: int, low: float, scale: float, colour: str) -> str:
    left, width = _LEFT + scale * (ends[0] - low), max(1.0, scale * (ends[1] - ends[0]))
    return (f'<rect x="{left:.1f}" y="{y + 1}" width="{width:.1f}" height="{_LINE - 3}" '
            f'fill="{colour}"><title>{ends[0]:.4g} to {ends[1]:.4g}</title></rect>')
