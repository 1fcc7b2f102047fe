"""The proof by boxes as it grows: one tree for all clauses, taken apart into one for each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certify.core.split_tree import LEAF, SplitTree
from certify.search.boxes import Boxes, Floats, Frame

_LARGEST = 2_000_000  # nodes of all clauses' trees together


class _Splits(NamedTuple):
    """Splits made at one time: ``(N,)`` each; ``open`` is ``(N, clauses)``, in bits.

    The children of the i-th are the nodes ``first + i`` and ``first + N + i``.
    """

    node: NDArray[np.int32]
    picked: NDArray[np.int32]
    point: Floats
    open: NDArray[np.uint8]
    first: int

    def children(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Numbers of the first and second children of some of the splits."""
        return self.first + index, self.first + len(self.node) + index


class BoxTree:
    """Grows by whole rounds; a box that is only cut stays the same node.

    Attributes:
        count: nodes so far; node 0 is the whole region.
    """

    def __init__(self, clauses: int) -> None:
        self.clauses, self.count, self._size = clauses, 1, clauses
        self._rounds: list[_Splits] = []

    @property
    def full(self) -> bool:
        """Whether the trees have become too large to be kept."""
        return self._size > _LARGEST

    def split(
        self, boxes: Boxes, picked: NDArray[np.int64], point: Floats
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Split boxes at free inputs ``picked (N,)``; numbers of the lower and upper halves."""
        made = _Splits(
            boxes.node.astype(np.int32),
            picked.astype(np.int32),
            point,
            np.packbits(boxes.open, axis=1),
            self.count,
        )
        self._rounds.append(made)
        self.count += 2 * len(boxes)
        self._size += 2 * int(boxes.open.sum())
        return made.children(np.arange(len(boxes)))

    def finished(self, frame: Frame, inputs: list[int], margin: float) -> tuple[SplitTree, ...]:
        """One tree per clause: a box without the clause is a leaf.

        Args:
            inputs: steps of the model inputs, in order.
            margin: by which every leaf was refuted at least.
        """
        stops = np.cumsum([int(np.prod(s, dtype=np.int64)) for s in frame.shapes])
        owner = np.searchsorted(stops, frame.free, side="right")
        step = np.array(inputs, dtype=np.int32)[owner]
        element = frame.free - np.concatenate([[0], stops])[owner]
        return tuple(self._alone(k, step, element, margin) for k in range(self.clauses))

    def _alone(
        self, clause: int, step: NDArray[np.int32], element: NDArray[np.int64], margin: float
    ) -> SplitTree:
        byte, bit = clause // 8, np.uint8(128 >> clause % 8)  # as packbits orders them
        here = [np.flatnonzero(made.open[:, byte] & bit) for made in self._rounds]
        size = np.ones(self.count, dtype=np.int32)
        for made, index in zip(reversed(self._rounds), reversed(here), strict=True):
            low, high = made.children(index)
            size[made.node[index]] = 1 + size[low] + size[high]
        place = np.zeros(self.count, dtype=np.int32)
        steps = np.full(size[0], LEAF, dtype=np.int32)
        elements, points = steps.copy(), np.full(size[0], margin)
        for made, index in zip(self._rounds, here, strict=True):
            low, high = made.children(index)
            at, picked = place[made.node[index]], made.picked[index]
            steps[at], elements[at], points[at] = step[picked], element[picked], made.point[index]
            place[low], place[high] = at + 1, at + 1 + size[low]
        return SplitTree(steps, elements, points, method="input")
