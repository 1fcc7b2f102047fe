"""The proofs by cases as they grow: one tree per clause."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from certify.core.split_tree import LEAF, LeafSlopes, SplitTree
from certify.search.neuron_split.root import Layout

LARGEST = 2**25  # bytes of a proof's evidence
_NODE = 16  # bytes of a node
_OPEN = -2


@dataclass
class Tree:
    """Nodes in the order they were made; node 0 is the root.

    Attributes:
        first: number of the first child; the second child is the next node.
        multipliers, weights, slopes: bytes of each leaf's arrays, by node.
    """

    step: array[int] = field(default_factory=lambda: array("i", [_OPEN]))
    element: array[int] = field(default_factory=lambda: array("i", [LEAF]))
    point: array[float] = field(default_factory=lambda: array("d", [0.0]))
    first: array[int] = field(default_factory=lambda: array("i", [0]))
    multipliers: dict[int, bytes] = field(default_factory=dict)
    weights: dict[int, bytes] = field(default_factory=dict)
    slopes: dict[int, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.step)

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

    def close(self, node: int, margin: float) -> None:
        """A node is a leaf, refuted by ``margin``."""
        self.step[node], self.point[node] = LEAF, margin

    def finished(self, layout: Layout, rows: int) -> SplitTree:
        """In pre-order.

        Args:
            layout: where the slopes of a leaf belong.
            rows: of the clause.

        Raises:
            TypeError: a leaf is still open.
        """
        order, pending = [], [0]
        while pending:
            node = pending.pop()
            order.append(node)
            if self.step[node] >= 0:
                pending += [self.first[node] + 1, self.first[node]]
        step = np.array(self.step, dtype=np.int32)[order]
        if (step == _OPEN).any():
            raise TypeError("a sub-problem is still open")
        leaves = [n for n in order if self.step[n] == LEAF]
        weights = _joined(self.weights, leaves, np.float32)
        return SplitTree(
            step,
            np.array(self.element, dtype=np.int32)[order],
            np.array(self.point, dtype=np.float64)[order],
            _joined(self.multipliers, leaves, np.float32),
            weights.reshape(-1, rows) if len(weights) else weights,
            self._slopes(layout, leaves) if self.slopes else (),
        )

    def _slopes(self, layout: Layout, leaves: list[int]) -> tuple[LeafSlopes, ...]:
        share = _joined(self.slopes, leaves, np.uint8).reshape(len(leaves), layout.size)
        return tuple(
            LeafSlopes(
                place.step,
                place.number,
                place.index.cpu().numpy().astype(np.int32),
                np.ascontiguousarray(share[:, place.start : place.stop]),
            )
            for place in layout.places
        )


def _joined(found: dict[int, bytes], leaves: list[int], dtype: type) -> np.ndarray:
    return np.frombuffer(b"".join(found.get(n, b"") for n in leaves), dtype=dtype)


@dataclass(frozen=True, eq=False)
class Leaves:
    """Refuted sub-problems, one entry each.

    Attributes:
        clause, node, depth: ``(N,)``; margin: ``(N,)``.
        multipliers: ``(N, D)`` float32, of which ``depth`` are used; weights: ``(N, r)`` float32.
        shares: ``(N, M)`` uint8 slopes, or None.
    """

    clause: NDArray[np.int64]
    node: NDArray[np.int64]
    depth: NDArray[np.int64]
    margin: NDArray[np.float64]
    multipliers: NDArray[np.float32]
    weights: NDArray[np.float32]
    shares: NDArray[np.uint8] | None


class Forest:
    """A tree per clause, as long as all of them together stay small enough to be kept.

    Attributes:
        rows: of each clause.
        slopes: whether there is still room for slopes.
        full: whether the trees have become too large to be kept.
    """

    def __init__(self, layout: Layout, rows: list[int]) -> None:
        self.trees = [Tree() for _ in rows]
        self.layout, self.rows = layout, rows
        self.bytes, self.slope_bytes = len(rows) * _NODE, 0
        self.slopes = layout.size > 0

    @property
    def full(self) -> bool:
        """See the class."""
        return self.bytes > LARGEST

    def split(self, clause: int, node: int, step: int, element: int, point: float) -> int:
        """Split a node of a clause's tree; the number of its first child."""
        self.bytes += 2 * _NODE
        return self.trees[clause].split(node, step, element, point)

    def close(self, leaves: Leaves) -> None:
        """Sub-problems become leaves; slopes are forgotten when they outgrow their room."""
        for k, (clause, node) in enumerate(
            zip(leaves.clause.tolist(), leaves.node.tolist(), strict=True)
        ):
            tree = self.trees[clause]
            tree.close(node, float(leaves.margin[k]))
            tree.multipliers[node] = leaves.multipliers[k, : leaves.depth[k]].tobytes()
            self.bytes += 4 * int(leaves.depth[k])
            rows = self.rows[clause]
            if rows > 1:
                tree.weights[node] = leaves.weights[k, :rows].tobytes()
                self.bytes += 4 * rows
            if self.slopes and leaves.shares is not None:
                tree.slopes[node] = leaves.shares[k].tobytes()
                self.slope_bytes += self.layout.size
        if self.slopes and self.bytes + self.slope_bytes > LARGEST:
            self.slopes = False
            for tree in self.trees:
                tree.slopes.clear()

    def finished(self) -> tuple[SplitTree, ...]:
        """All trees, in clause order."""
        pairs = zip(self.trees, self.rows, strict=True)
        return tuple(tree.finished(self.layout, rows) for tree, rows in pairs)
