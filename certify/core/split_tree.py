"""A proof by cases: binary splits in pre-order, with what each leaf needs to be checked again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from certify.core.errors import BadInput

LEAF = -1


def _nothing() -> np.ndarray:
    return np.zeros(0, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class LeafSlopes:
    """One slope tensor of one nonlinear node, at every leaf.

    Attributes:
        step: index of the node in the graph; number: of the tensor among the node's.
        element: ``(m,)`` int32, flat positions in the tensor; others have their default.
        share: ``(leaves, m)`` uint8, how far along its range each slope is, in 255ths.
    """

    step: int
    number: int
    element: np.ndarray
    share: np.ndarray

    def __post_init__(self) -> None:
        fits = self.element.dtype == np.int32 and self.share.dtype == np.uint8
        fits = fits and self.element.ndim == 1 and self.share.ndim == 2
        if not fits or self.share.shape[1] != len(self.element):
            raise BadInput("the slopes of a split tree do not fit their elements")


@dataclass(frozen=True, eq=False)
class SplitTree:
    """Splits ``value <= point`` (first child) and ``value >= point`` (second child) in pre-order.

    The first child of node i is node i + 1; the second follows the first one's whole subtree. A
    tree without both children of every split cannot be written down this way.

    Attributes:
        step: ``(N,)`` int32, index of the split node in the graph (model inputs too), -1 at leaves.
        element: ``(N,)`` int32, flat position in that node's result; -1 at leaves.
        point: ``(N,)`` float64; at leaves the proved margin.
        multipliers: float32, for the splits on each leaf's path from the root, all leaves joined in
            leaf order; empty where none were used.
        weights: ``(leaves, r)`` float32, of the clause's rows; empty where there is one row.
        slopes: of every leaf; empty where they are not kept.
        method: how leaves were bounded: ``"input"`` over boxes of inputs, ``"neuron"`` with
            slopes and multipliers.
    """

    step: np.ndarray
    element: np.ndarray
    point: np.ndarray
    multipliers: np.ndarray = field(default_factory=_nothing)
    weights: np.ndarray = field(default_factory=_nothing)
    slopes: tuple[LeafSlopes, ...] = ()
    method: str = "neuron"

    def __post_init__(self) -> None:
        arrays = (self.step, self.element, self.point)
        if not all(a.shape == (len(self.step),) for a in arrays):
            raise BadInput("a split tree's arrays have different lengths")
        if tuple(a.dtype.name for a in arrays) != ("int32", "int32", "float64"):
            raise BadInput("a split tree's arrays must be int32, int32 and float64")
        pending = np.cumsum(np.where(self.step == LEAF, -1, 1)) + 1
        if not len(self.step) or pending[-1] != 0 or (pending[:-1] <= 0).any():
            raise BadInput("a split tree lacks a child of one of its splits")
        split = self.step != LEAF
        if (self.step[split] < 0).any() or (self.element[split] < 0).any():
            raise BadInput("a split tree has a negative step or element")
        if np.isnan(self.point).any() or not np.isfinite(self.point[split]).all():
            raise BadInput("a split tree has a point that is not finite")
        self._check_leaves()

    def _check_leaves(self) -> None:
        for name, values in (("multiplier", self.multipliers), ("weight", self.weights)):
            if values.dtype != np.float32 or not np.isfinite(values).all() or (values < 0).any():
                raise BadInput(f"a split tree has a {name} that is no float32 number >= 0")
        if len(self.multipliers):
            wanted = sum(len(path) for path in self.paths())
            if self.multipliers.shape != (wanted,):
                raise BadInput(
                    f"{self.multipliers.size} multipliers for {wanted} splits above leaves"
                )
        if len(self.weights) and (
            self.weights.ndim != 2
            or len(self.weights) != self.leaves
            or not (self.weights.sum(axis=1) > 0).all()
        ):
            raise BadInput(f"the weights do not fit {self.leaves} leaves, or are all 0 at one")
        if any(len(s.share) != self.leaves for s in self.slopes):
            raise BadInput(f"the slopes are not those of {self.leaves} leaves")

    @property
    def leaves(self) -> int:
        """How many cases the proof has."""
        return int((self.step == LEAF).sum())

    @property
    def size(self) -> int:
        """Bytes of all arrays."""
        parts = [self.step, self.element, self.point, self.multipliers, self.weights]
        parts += [a for s in self.slopes for a in (s.element, s.share)]
        return sum(a.nbytes for a in parts)

    def without_slopes(self) -> SplitTree:
        """The same proof; slopes have to be found again."""
        return replace(self, slopes=())

    def paths(self) -> Iterator[list[int]]:
        """Per leaf, in leaf order, the splits above it from the root on.

        A split node i is given as ``i`` where its first child is meant and as ``~i`` for its
        second. The list is changed in place from one leaf to the next.
        """
        path: list[int] = []
        for node, step in enumerate(self.step.tolist()):
            if step != LEAF:
                path.append(node)
                continue
            yield path
            while path and path[-1] < 0:
                path.pop()
            if path:
                path[-1] = ~path[-1]
