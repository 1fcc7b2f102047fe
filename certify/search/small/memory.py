"""The arrays one worker of the compiled search needs; kernels allocate nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from certify.core.spec import Rows
from certify.search.small.network import Layers

_GENERATORS = 512  # of unstable neurons that are told apart; more become plain errors
_STACK = 1024  # boxes; grows


@dataclass(frozen=True, eq=False)
class Question:
    """What the kernels are asked.

    Attributes:
        net: see `certify.kernels.boxes`.
        lower, upper: ``(n,)`` ends of the region's box.
        free: inputs that are not fixed.
        starts: ``(clauses + 1,)`` where each clause's rows begin.
        strict: ``(R,)``.
    """

    net: tuple[np.ndarray, ...]
    lower: np.ndarray
    upper: np.ndarray
    free: np.ndarray
    starts: np.ndarray
    strict: np.ndarray

    @classmethod
    def of(cls, layers: Layers, rows: Rows, lower: np.ndarray, upper: np.ndarray) -> Question:
        """From a lowered network, its rows, and the flat ends of a box."""
        count = len(rows.bound)
        starts = np.searchsorted(rows.group, np.arange(int(rows.group[-1]) + 2)).astype(np.int64)
        return cls(
            (*layers.arrays, layers.rough),
            lower,
            upper,
            np.flatnonzero(lower < upper).astype(np.int64),
            starts,
            np.ascontiguousarray(rows.strict[:count]),
        )


class Memory:
    """Scratch and a stack of boxes, for one thread."""

    def __init__(self, question: Question) -> None:
        widths = question.net[0]
        n, free, R = len(question.lower), len(question.free), len(question.strict)
        neurons, width = int(widths[1:].sum()), int(widths.max())
        clauses = len(question.starts) - 1
        rows = 1 + free + min(neurons, _GENERATORS)
        self.state = np.zeros((5, neurons))
        self.inputs = np.zeros((neurons, free))
        self.work: tuple[Any, ...] = (
            np.zeros((rows, width)),
            np.zeros((rows, width)),
            np.zeros(width, dtype=np.int64),
            np.zeros((4, width)),
        )
        self.frame: tuple[Any, ...] = (
            np.zeros((4, n)),
            np.zeros((9, free)),
            np.zeros((R + clauses, 1 + free)),
            np.zeros(R + clauses),
            np.zeros(R),
            np.zeros(rows),
            np.zeros(rows),
        )
        self.stack = _stack(_STACK, n)
        self.counts = np.array([0.0, 0.0, 0.0, 0.0, np.inf])
        self.found = np.zeros(n)

    @property
    def top(self) -> int:
        """Boxes on the stack."""
        return int(self.counts[0])

    def push(self, lower: np.ndarray, upper: np.ndarray, share: float) -> None:
        """One box more."""
        top = self.top
        self.stack[0][top], self.stack[1][top] = lower, upper
        self.stack[2][top], self.stack[3][top] = 0, share
        self.counts[0] = top + 1

    def grow(self) -> None:
        """Twice as many places for boxes."""
        larger = _stack(2 * len(self.stack[2]), self.stack[0].shape[1])
        for new, old in zip(larger, self.stack, strict=True):
            new[: len(old)] = old
        self.stack = larger

    def give_half(self, other: Memory) -> None:
        """Hand the larger boxes, those at the bottom, to an idle worker."""
        total = self.top
        count = total // 2
        while len(other.stack[2]) < count + 2:
            other.grow()
        for mine, theirs in zip(self.stack, other.stack, strict=True):
            theirs[:count] = mine[:count]
            mine[: total - count] = mine[count:total].copy()
        other.counts[0], self.counts[0] = count, total - count


def _stack(count: int, n: int) -> tuple[np.ndarray, ...]:
    return (
        np.zeros((count, n)),
        np.zeros((count, n)),
        np.zeros(count, dtype=np.int64),
        np.zeros(count),
    )
