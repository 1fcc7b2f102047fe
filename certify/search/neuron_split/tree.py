"""The proof by cases as it grows."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np

from certify.core.split_tree import LEAF, SplitTree

_LARGEST = 2_000_000  # nodes kept
_OPEN = -2


@dataclass
class Tree:
    """Nodes in the order they were made; node 0 is the root.

    Attributes:
        first: number of the first child; the second child is the next node.
        multipliers: of the leaves that have any, by node.
    """

    step: array[int] = field(default_factory=lambda: array("i", [_OPEN]))
    element: array[int] = field(default_factory=lambda: array("i", [LEAF]))
    point: array[float] = field(default_factory=lambda: array("d", [0.0]))
    first: array[int] = field(default_factory=lambda: array("i", [0]))
    multipliers: dict[int, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.step)

    @property
    def full(self) -> bool:
        """Whether the tree has become too large to be kept."""
        return len(self) > _LARGEST

    def split(self, node: int, step: int, element: int, point: float) -> int:
        """Split a node; the number of its first child."""
        child = len(self)
        self.step[node], self.element[node], self.point[node] = step, element, point
        self.first[node] = child
        for _ in range(2):
            self.step.append(_OPEN)
            self.element.append(LEAF)
            self.point.append(0.0)
            self.first.append(0)
        return child

    def close(self, node: int, margin: float, multipliers: np.ndarray) -> None:
        """A node is a leaf, refuted by ``margin``."""
        self.step[node], self.point[node] = LEAF, margin
        if len(multipliers):
            self.multipliers[node] = multipliers

    def finished(self) -> SplitTree:
        """In pre-order.

        Raises:
            BadInput: a leaf is still open.
        """
        order, pending = [], [0]
        while pending:
            node = pending.pop()
            order.append(node)
            if self.step[node] >= 0:
                pending += [self.first[node] + 1, self.first[node]]
        step = np.array(self.step, dtype=np.int32)[order]
        element = np.array(self.element, dtype=np.int32)[order]
        none = np.zeros(0, dtype=np.float32)
        leaves = tuple(self.multipliers.get(n, none) for n in order if self.step[n] == LEAF)
        if (step == _OPEN).any():
            raise TypeError("a sub-problem is still open")
        point = np.array(self.point, dtype=np.float64)[order]
        return SplitTree(step, element, point, leaves, method="alpha")
