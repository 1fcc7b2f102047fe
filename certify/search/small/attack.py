"""Points that may be unsafe: projected gradient descent in plain floats, many starts at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from certify.search.small.memory import Question

_STARTS, _STEPS = 48, 40


def suspects(question: Question, seed: int) -> Iterator[np.ndarray]:
    """Points of the box whose rows, in plain floats, satisfy a clause; the deepest first.

    Each start descends on one clause: its largest row is lowered, by steps along the gradient's
    signs that shrink from half the box.
    """
    rng = np.random.default_rng(seed)
    lower, upper = question.lower, question.upper
    radius = 0.5 * upper - 0.5 * lower
    clauses = len(question.starts) - 1
    clause = np.arange(_STARTS) % clauses
    x = lower + (upper - lower) * rng.random((_STARTS, len(lower)))
    best, worth = x.copy(), np.full(_STARTS, np.inf)
    for step in range(_STEPS):
        values, masks = _values(question, x)
        rows = _largest(question, values, clause)
        height = values[np.arange(_STARTS), rows]
        better = height < worth
        best[better], worth[better] = x[better], height[better]
        slope = _gradient(question, masks, rows)
        x = np.clip(x - radius * 0.5 * 0.87**step * np.sign(slope), lower, upper)
    for i in np.argsort(worth):
        if worth[i] > 0:
            return
        yield best[i]


def _largest(question: Question, values: np.ndarray, clause: np.ndarray) -> np.ndarray:
    """The largest row of each point's clause."""
    rows = np.arange(values.shape[1])
    begin, end = question.starts[clause], question.starts[clause + 1]
    mine = (rows >= begin[:, None]) & (rows < end[:, None])
    return np.asarray(np.where(mine, values, -np.inf).argmax(axis=1))


def _values(question: Question, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rows ``(B, R)`` and each layer's slopes at points ``(B, n)``."""
    widths, inward, biases, leak = (question.net[i] for i in (0, 1, 4, 6))
    at, to, masks, z = 0, 0, [], x
    for k in range(1, len(widths)):
        n, m = widths[k - 1], widths[k]
        z = x @ inward[at : at + n * m].reshape(n, m) + biases[to : to + m]
        masks.append(np.where(z > 0, 1.0, leak[to : to + m]))
        x = z * masks[-1]
        at, to = at + n * m, to + m
    return z[:, : len(question.strict)], masks


def _gradient(question: Question, masks: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
    widths, outward = question.net[0], question.net[2]
    at = len(outward)
    slope = np.zeros((len(rows), int(widths[-1])))
    slope[np.arange(len(rows)), rows] = 1.0
    for k in range(len(widths) - 1, 0, -1):
        n, m = widths[k - 1], widths[k]
        at -= n * m
        if k < len(widths) - 1:
            slope = slope * masks[k - 1]
        slope = slope @ outward[at : at + n * m].reshape(m, n)
    return slope
