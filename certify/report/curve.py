"""Certified accuracy over radius, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from certify.report.smoothed import Run, abstention, average_radius, caption, radii_of

_WIDTH, _HEIGHT = 760, 470
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 230, 24, 92
_COLOURS = ("#1b6ca8", "#c0392b", "#2a7d2a", "#8e5ea2", "#b8860b", "#16a085", "#7f8c8d", "#d35400")


def curve(runs: Sequence[Run]) -> str:
    """One staircase per run: the share of inputs certified beyond each radius."""
    most = max([r.radius for run in runs for r in run.rows if r.correct], default=1.0) or 1.0
    parts = _axes(most, [r for r in radii_of(runs) if r <= most])
    for number, run in enumerate(runs):
        colour = _COLOURS[number % len(_COLOURS)]
        dash = ' stroke-dasharray="5 4"' if run.envelope else ""
        parts.append(f'<polyline points="{_steps(run, most)}" fill="none" stroke="{colour}" '
                     f'stroke-width="2"{dash}/>')
        x, y = _WIDTH - _RIGHT + 14, _TOP + 14 + 36 * number
        parts.append(f'<text x="{x}" y="{y}" fill="{colour}">{escape(run.name[-30:])}</text>')
        parts.append(f'<text x="{x}" y="{y + 15}" fill="#555" font-size="11">mean radius '
                     f"{average_radius(run.rows):.3f}, abstained {100 * abstention(run.rows):.1f} %"
                     "</text>")
    for number, line in enumerate(caption(runs)):
        parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 34 + 14 * number}" fill="#555" '
                     f'font-size="10">{escape(line)}</text>')
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>', *parts, "</svg>", ""])


def _steps(run: Run, most: float) -> str:
    radii = sorted(row.radius for row in run.rows if row.correct)
    total, left = max(1, len(run.rows)), len(radii)
    corners = [(0.0, left / total)]
    for radius in radii:
        corners.append((radius, left / total))
        left -= 1
        corners.append((radius, left / total))
    return " ".join(f"{_x(r, most):.1f},{_y(s):.1f}" for r, s in corners)


def _axes(most: float, radii: Sequence[float]) -> list[str]:
    bottom, right, parts = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT, []
    for radius in radii:
        x = _x(radius, most)
        parts += [f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#ddd"/>',
                  f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{radius:.3g}'
                  "</text>"]
    for k in range(6):
        y = _y(k / 5)
        parts += [f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#ddd"/>',
                  f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{20 * k} %</text>']
    parts.append(f'<text x="{(_LEFT + right) / 2:.1f}" y="{bottom + 38}" text-anchor="middle">'
                 "radius</text>")
    return parts


def _x(radius: float, most: float) -> float:
    return _LEFT + radius / most * (_WIDTH - _RIGHT - _LEFT)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)
