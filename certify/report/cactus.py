"""Cactus plots: how many instances are solved within each time limit, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 200, 24, 52
_LEAST = 0.01  # seconds: the left end of the axis at most
_MOST_NAMED = 20
_COLOURS = ("#1b6ca8", "#c0392b", "#2a7d2a", "#8e5ea2", "#b8860b", "#16a085", "#7f8c8d", "#d35400")


def cactus(times: Mapping[str, Sequence[float]]) -> str:
    """One line per name: at x seconds, the number of its instances solved within x seconds.

    Args:
        times: seconds of every solved instance, by name; the first name is drawn thicker.
    """
    known = [t for each in times.values() for t in each]
    low = math.floor(math.log10(max(_LEAST, min(known, default=1.0))))
    high = max(low + 1, math.ceil(math.log10(max(_LEAST, *known, 0.0))))
    most = max([1, *(len(each) for each in times.values())])
    parts = [*_axes(low, high, most)]
    for number, (name, each) in enumerate(list(times.items())[:_MOST_NAMED]):
        colour, width = _COLOURS[number % len(_COLOURS)], 1.5 if number else 3
        points = _steps(sorted(each), low, high, most)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" '
                     f'stroke-width="{width}"/>')
        y = _TOP + 14 + 18 * number
        parts.append(f'<text x="{_WIDTH - _RIGHT + 14}" y="{y}" fill="{colour}">'
                     f"{escape(name)} ({len(each)})</text>")
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>', *parts, "</svg>", ""])


def _steps(times: Sequence[float], low: int, high: int, most: int) -> str:
    """Corner points of the staircase, ending at the right edge."""
    corners = [(10.0**low, 0)]
    for count, seconds in enumerate(times, start=1):
        corners += [(seconds, count - 1), (seconds, count)]
    corners.append((10.0**high, len(times)))
    return " ".join(f"{_x(s, low, high):.1f},{_y(n, most):.1f}" for s, n in corners)


def _axes(low: int, high: int, most: int) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for power in range(low, high + 1):
        x, label = _x(10.0**power, low, high), f"{10.0**power:g}"
        parts += [f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#ddd"/>',
                  f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>']
    for count in sorted({round(most * k / 4) for k in range(5)}):
        y = _y(count, most)
        parts += [f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#ddd"/>',
                  f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{count}</text>']
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 12}" text-anchor="middle">seconds</text>')
    parts.append(f'<text x="16" y="{(_TOP + bottom) / 2:.1f}" text-anchor="middle" '
                 f'transform="rotate(-90 16 {(_TOP + bottom) / 2:.1f})">instances solved</text>')
    return parts


def _x(seconds: float, low: int, high: int) -> float:
    share = (math.log10(max(seconds, 10.0**low)) - low) / (high - low)
    return _LEFT + share * (_WIDTH - _RIGHT - _LEFT)


def _y(count: float, most: int) -> float:
    return _HEIGHT - _BOTTOM - count / most * (_HEIGHT - _BOTTOM - _TOP)
