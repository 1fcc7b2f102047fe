"""A range of parameters cut into equal pieces, and binary splits of blocks of pieces."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from certify.core.errors import UsageError
from certify.core.split_tree import LEAF, SplitTree

Block = tuple[tuple[int, int], ...]  # per parameter, the first piece and the one after the last

MOST_PIECES = 10_000_000


@dataclass(frozen=True, eq=False)
class Pieces:
    """The ranges of all parameters and the pieces they are cut into.

    Attributes:
        names: of the transformations.
        lower, upper: ``(k,)`` ends of the ranges.
        counts: pieces per parameter.
    """

    names: tuple[str, ...]
    lower: np.ndarray
    upper: np.ndarray
    counts: tuple[int, ...]

    @classmethod
    def of(cls, ranges: Mapping[str, tuple[float, float]], piece: Mapping[str, float]) -> Pieces:
        """Pieces no wider than asked for.

        Args:
            ranges: parameter ranges by name of transformation.
            piece: width of a piece by name; a parameter without one is cut into 64.

        Raises:
            UsageError: an empty range, a width that is not positive, or far too many pieces.
        """
        counts = []
        for name, (low, high) in ranges.items():
            if not low <= high or not math.isfinite(high - low):
                raise UsageError(f"{name}={low:g}:{high:g} is no range; write LOW:HIGH")
            width = piece.get(name, (high - low) / 64)
            if width < 0 or (width == 0 and high > low):
                raise UsageError(f"a piece of {name} must be wider than 0, got {width:g}")
            counts.append(max(1, math.ceil((high - low) / width * (1 - 1e-9))) if width else 1)
        if math.prod(counts) > MOST_PIECES:
            raise UsageError(f"{math.prod(counts)} pieces are too many (at most {MOST_PIECES}); "
                             "give a larger --piece")
        ends = np.array(list(ranges.values()), dtype=np.float64)
        return cls(tuple(ranges), ends[:, 0], ends[:, 1], tuple(counts))

    @property
    def whole(self) -> Block:
        """The block of all pieces."""
        return tuple((0, n) for n in self.counts)

    @cached_property
    def cuts(self) -> tuple[np.ndarray, ...]:
        """Per parameter the ends of its pieces, ``(count + 1,)``."""
        found = []
        for low, high, count in zip(self.lower, self.upper, self.counts, strict=True):
            ends = low + (high - low) * (np.arange(count + 1) / count)
            ends[-1] = high
            found.append(ends)
        return tuple(found)

    def ends(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Ends ``(k,)`` of a block's box of parameters."""
        return (np.array([c[a] for c, (a, _) in zip(self.cuts, block, strict=True)]),
                np.array([c[b] for c, (_, b) in zip(self.cuts, block, strict=True)]))

    def size(self, block: Block) -> int:
        """How many pieces a block has."""
        return math.prod(b - a for a, b in block)

    def split(self, block: Block) -> tuple[int, Block, Block] | None:
        """The parameter that has most pieces and the two halves; None for a single piece."""
        spans = [b - a for a, b in block]
        dim = int(np.argmax(spans))
        if spans[dim] < 2:
            return None
        a, b = block[dim]
        middle = (a + b) // 2
        return (dim, (*block[:dim], (a, middle), *block[dim + 1:]),
                (*block[:dim], (middle, b), *block[dim + 1:]))

    def blocks(self, most: int) -> list[Block]:
        """The first blocks of at most ``most`` pieces that splitting leads to."""
        pending, found = [self.whole], []
        while pending:
            block = pending.pop()
            halves = self.split(block) if self.size(block) > most else None
            if halves is None:
                found.append(block)
            else:
                pending += halves[1:]
        return found

    def covered(self, proved: Mapping[Block, float], block: Block | None = None) -> int:
        """Pieces of a block (of everything) that proved blocks cover, each counted once."""
        pending, count = ([self.whole if block is None else block] if proved else []), 0
        while pending:
            here = pending.pop()
            if here in proved:
                count += self.size(here)
            elif (halves := self.split(here)) is not None:
                pending += halves[1:]
        return count

    def tree(self, margins: Mapping[Block, float]) -> SplitTree:
        """The proof by cases behind a full cover of proved blocks.

        Args:
            margins: of blocks that splitting leads to.

        Raises:
            KeyError: the blocks do not cover everything.
        """
        steps, elements, points = list[int](), list[int](), list[float]()
        pending = [self.whole]
        while pending:
            block = pending.pop()
            halves = None if block in margins else self.split(block)
            if halves is None:
                steps.append(LEAF)
                elements.append(LEAF)
                points.append(margins[block])
                continue
            dim, low, high = halves
            steps.append(0)
            elements.append(dim)
            points.append(float(self.cuts[dim][low[dim][1]]))
            pending += (high, low)
        return SplitTree(np.array(steps, np.int32), np.array(elements, np.int32),
                         np.array(points), method="input")
