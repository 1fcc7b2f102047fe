"""A proof by cases: binary splits in pre-order, with what each leaf needs to be checked again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from certify.core.errors import BadInput

LEAF = -1


@dataclass(frozen=True, eq=False)
class SplitTree:
    """Splits ``value <= point`` (first child) and ``value >= point`` (second child) in pre-order.

    The first child of node i is node i + 1; the second follows the first one's whole subtree. A
    tree without both children of every split cannot be written down this way.

    Attributes:
        step: ``(N,)`` int32, index of the split node in the graph (model inputs too), -1 at leaves.
        element: ``(N,)`` int32, flat position in that node's result; at leaves the refuted row
            of the first clause, or -1.
        point: ``(N,)`` float64; at leaves the proved margin.
        multipliers: one ``(depth,)`` float32 array per leaf, in leaf order, for the splits on
            its path from the root; empty arrays, or none at all, where none were used.
        slopes: per node name, ``(leaves, ...)`` uint8 shares of each slope's range in 255ths.
        method: how leaves were bounded.
    """

    step: np.ndarray
    element: np.ndarray
    point: np.ndarray
    multipliers: tuple[np.ndarray, ...] = ()
    slopes: Mapping[str, np.ndarray] = field(default_factory=dict)
    method: str = "crown"

    def __post_init__(self) -> None:
        if not len(self.step) == len(self.element) == len(self.point):
            raise BadInput("a split tree's arrays have different lengths")
        pending = np.cumsum(np.where(self.step == LEAF, -1, 1)) + 1
        if not len(self.step) or pending[-1] != 0 or (pending[:-1] <= 0).any():
            raise BadInput("a split tree lacks a child of one of its splits")
        if self.multipliers and len(self.multipliers) != self.leaves:
            raise BadInput(f"{len(self.multipliers)} lists of multipliers for {self.leaves} leaves")

    @property
    def leaves(self) -> int:
        """How many cases the proof has."""
        return int((self.step == LEAF).sum())
