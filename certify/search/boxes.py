"""Boxes to decide: where they lie in the model's inputs, and the list of those still open."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from certify.core.graph import Shape
from certify.core.region import Box, Product, Region
from certify.core.region_box import BoxShaped

Floats = NDArray[np.float64]
_THIN = 4.0  # units in the last place
_SHOWN = 6  # inputs named when a box is put into words


@dataclass(frozen=True, eq=False)
class Frame:
    """The whole region as a box, and which of its inputs have a width.

    Attributes:
        shapes: of the model inputs.
        lower, upper: ends ``(n,)`` over all inputs, flattened and joined in order.
    """

    shapes: tuple[Shape, ...]
    lower: Floats
    upper: Floats

    @classmethod
    def of(cls, region: Region) -> Frame | None:
        """The frame of a region of batch 1, fitted to a graph; None if it is no box."""
        parts = region.parts if isinstance(region, Product) else (region,)
        if not all(isinstance(p, BoxShaped) for p in parts):
            return None
        ends = [tuple(np.asarray(e, dtype=np.float64).reshape(-1) for e in p.ends()) for p in parts]
        shapes = tuple(p.shape or () for p in parts)
        return cls(
            shapes, np.concatenate([e[0] for e in ends]), np.concatenate([e[1] for e in ends])
        )

    @cached_property
    def free(self) -> NDArray[np.int64]:
        """Positions ``(f,)`` of the inputs with a width.

        A decimal that is no float64 becomes an interval of one unit in the last place: fixed too.
        """
        unit = np.spacing(np.maximum(np.abs(self.lower), np.abs(self.upper)))
        return np.flatnonzero(self.upper - self.lower > _THIN * unit)

    @cached_property
    def fixed(self) -> NDArray[np.int64]:
        """Positions of the other inputs."""
        return np.setdiff1d(np.arange(len(self.lower)), self.free)

    @cached_property
    def width(self) -> Floats:
        """Widths ``(f,)`` of the free inputs."""
        found: Floats = self.upper[self.free] - self.lower[self.free]
        return found

    def points(self, free: Floats) -> Floats:
        """All inputs ``(N, n)`` from the free ones ``(N, f)``; the others at their lower ends."""
        return self._filled(self.lower, free)

    def _filled(self, rest: Floats, free: Floats) -> Floats:
        found = np.repeat(rest[None], len(free), axis=0)
        found[:, self.free] = free
        return found

    def split(self, flat: Floats) -> list[Floats]:
        """``(N, n)`` as one ``(N, *shape)`` per model input."""
        stops = np.cumsum([0, *(math.prod(s) for s in self.shapes)])
        return [
            flat[:, a:b].reshape(-1, *s)
            for (a, b), s in zip(itertools.pairwise(stops), self.shapes, strict=True)
        ]

    def region(self, lower: Floats, upper: Floats) -> Region:
        """Boxes of free inputs ``(N, f)`` as one region with a batch of N."""
        low, high = self._filled(self.lower, lower), self._filled(self.upper, upper)
        ends = zip(self.split(low), self.split(high), strict=True)
        parts = [Box(a, b).batched(s) for (a, b), s in zip(ends, self.shapes, strict=True)]
        return parts[0] if len(parts) == 1 else Product(parts)

    def volume(self, lower: Floats, upper: Floats) -> Floats:
        """Share of the region's volume that each box ``(N, f)`` takes."""
        share: Floats = np.prod((upper - lower) / self.width, axis=1)
        return share

    def words(self, lower: Floats, upper: Floats) -> str:
        """One box ``(f,)`` in words."""
        order = self.free[:_SHOWN]
        shown = [
            f"X_{i} in [{a:.6g}, {b:.6g}]" for i, a, b in zip(order, lower, upper, strict=False)
        ]
        more = len(self.free) - len(shown)
        return "the box " + ", ".join(shown) + (f" and {more} more inputs" if more > 0 else "")


@dataclass(frozen=True, eq=False)
class Boxes:
    """A batch of open boxes.

    Attributes:
        lower, upper: ``(N, f)`` free inputs.
        open: ``(N, clauses)``: which clauses are not refuted yet in the box.
        margin: ``(N,)`` the worst margin of an open clause that is known to hold in the box.
        rule: ``(N,)`` which rule of choosing dimensions made the box.
        node: ``(N,)`` number in the tree.
    """

    lower: Floats
    upper: Floats
    open: NDArray[np.bool_]
    margin: Floats
    rule: NDArray[np.int64]
    node: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.margin)

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Boxes:
        """The boxes named by an index or a mask."""
        return Boxes(
            self.lower[index],
            self.upper[index],
            self.open[index],
            self.margin[index],
            self.rule[index],
            self.node[index],
        )

    def moved(self, lower: Floats, upper: Floats) -> Boxes:
        """The same with other ends."""
        return replace(self, lower=lower, upper=upper)


def joined(parts: Iterable[Boxes]) -> Boxes:
    """Several batches as one."""
    every = list(parts)
    if len(every) == 1:
        return every[0]
    return Boxes(
        *(
            np.concatenate([getattr(b, name) for b in every])
            for name in ("lower", "upper", "open", "margin", "rule", "node")
        )
    )


@dataclass
class WorkList:
    """Open boxes in blocks, each sorted by margin.

    The block with the worst margin comes first, which finds counterexamples and raises the proved
    margin; above ``limit`` boxes the one nearest to a proof, so that the list stops growing.
    """

    limit: int
    block: int = 256
    blocks: list[Boxes] = field(default_factory=list)
    count: int = 0

    def push(self, boxes: Boxes) -> None:
        """Add boxes."""
        order = np.argsort(boxes.margin, kind="stable")
        for start in range(0, len(order), self.block):
            self.blocks.append(boxes.take(order[start : start + self.block]))
        self.count += len(boxes)

    def pop(self, count: int) -> Boxes:
        """Take up to ``count`` boxes off the list."""
        deep = self.count > self.limit
        found, size = list[Boxes](), 0
        while self.blocks and size < count:
            worst = [float(b.margin[0]) for b in self.blocks]
            place = int(np.argmax(worst) if deep else np.argmin(worst))
            block = self.blocks.pop(place)
            room = count - size
            if len(block) > room:
                self.blocks.append(block.take(slice(room, None)))
                block = block.take(slice(room))
            found.append(block)
            size += len(block)
        self.count -= size
        return joined(found)

    def worst(self) -> Boxes | None:
        """The box with the worst margin; None when the list is empty."""
        if not self.blocks:
            return None
        block = min(self.blocks, key=lambda b: float(b.margin[0]))
        return block.take(slice(1))

    def volume(self, frame: Frame) -> float:
        """Share of the region that is open."""
        return float(sum(frame.volume(b.lower, b.upper).sum() for b in self.blocks))
