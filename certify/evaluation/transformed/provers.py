"""Two ways to prove a label over a box of transformation parameters.

`Warped` bounds the transformed images by intervals that serve all images at once, and propagates
them through the network. `Grafted` puts the transformation in front of the network as a graph and
uses any bound method on the parameters: far tighter, and one image at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from certify.bounds.decide import Means, Question, decide
from certify.core.graph import Graph, chained
from certify.core.region import Box, Product, Region, as_inputs
from certify.core.spec import Spec
from certify.evaluation.transformed.pieces import Block, Pieces
from certify.ops import load
from certify.ops.builder import Builder
from certify.semantic.edits import transformed
from certify.semantic.planes import warped_planes
from certify.semantic.transforms import Transform, named
from certify.semantic.warp import warped_boxes

_AT_ONCE = 512  # boxes bounded together
_AT_ONCE_GRAFTED = 32  # likewise, each with a whole image of interpolation weights


@dataclass(frozen=True, eq=False)
class Task:
    """A classifier, images with labels, and what may happen to them.

    Attributes:
        network: one input of the images' size.
        images: ``(N, C, H, W)`` float64 in [0, 1].
        labels: ``(N,)``.
        pieces: ranges and pieces of the parameters.
        means: how bounds are decided.
    """

    network: Graph
    images: np.ndarray
    labels: np.ndarray
    pieces: Pieces
    means: Means

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """The transformations, in order."""
        return named(self.pieces.names)

    @property
    def classes(self) -> int:
        """How many labels the network tells apart."""
        return int(np.prod(self.network.output_shape))


class Wanted(NamedTuple):
    """A block of pieces to be proved for some images, ``images (M,)`` indices."""

    block: Block
    images: np.ndarray


class Proved(NamedTuple):
    """Margins of a block, ``(M,)``, positive only where the label is proved."""

    block: Block
    images: np.ndarray
    margins: np.ndarray


def decided(graph: Graph, region: Region, labels: np.ndarray, classes: int, method: str,
            means: Means) -> np.ndarray:
    """Proved margins ``(B,)`` of the labels over a batch of regions; -inf where not proved."""
    rows = Spec.classify(labels, classes).rows()
    bound = np.broadcast_to(rows.bound, (len(labels), classes - 1)).copy()
    question = Question(region, rows, bound)
    found = decide(graph, question, method, means)
    return np.where(found.proved, found.margins.min(axis=1), -np.inf)


class Warped:
    """Intervals through the warp and the network; for geometric transformations, and those of
    values after them."""

    method = "ibp"

    def __init__(self, task: Task) -> None:
        self._task = task
        self._moves = [t for t in task.transforms if t.geometric]
        self._rest = [t for t in task.transforms if not t.geometric]

    @cached_property
    def _graph(self) -> Graph:
        """The network behind the transformations of values, over (image, their parameters)."""
        network = self._task.network
        return _after_values(network, self._task.images.shape[1:], self._rest)

    def prove(self, wanted: Sequence[Wanted]) -> Iterator[Proved]:
        """Each block for its images, several blocks at a time."""
        for group in _grouped(wanted):
            boxes = [self._box(w) for w in group]
            lower, upper = (np.concatenate([b[side] for b in boxes]) for side in (0, 1))
            region: Region = Box(lower, upper).batched(lower.shape[1:])
            if self._rest:
                ends = [self._task.pieces.ends(w.block) for w in group]
                low, high = (np.concatenate([
                    np.broadcast_to(e[side][len(self._moves):], (len(w.images), len(self._rest)))
                    for e, w in zip(ends, group, strict=True)]) for side in (0, 1))
                region = Product([region, Box(low, high)]).batched(self._graph.input_shapes)
            else:
                shape = self._graph.input_shapes[0]
                region = Box(lower.reshape(-1, *shape), upper.reshape(-1, *shape)).batched(shape)
            images = np.concatenate([w.images for w in group])
            margins = decided(self._graph, region, self._task.labels[images], self._task.classes,
                              self.method, self._task.means)
            at = 0
            for w in group:
                yield Proved(w.block, w.images, margins[at:at + len(w.images)])
                at += len(w.images)

    def _box(self, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
        low, high = self._task.pieces.ends(wanted.block)
        return warped_boxes(self._task.images[wanted.images], self._moves, low, high)


class Planed:
    """Planes per pixel in front of linear bounds of the network; for geometric transformations."""

    method = "crown-ibp"

    def __init__(self, task: Task) -> None:
        self._task = task

    def prove(self, wanted: Sequence[Wanted]) -> Iterator[Proved]:
        """Each block for its images."""
        task, shape = self._task, self._task.network.input_shapes[0]
        for block, images in wanted:
            low, high = task.pieces.ends(block)
            for start in range(0, len(images), _AT_ONCE_GRAFTED):
                here = images[start:start + _AT_ONCE_GRAFTED]
                images_of = task.images[here]
                found = warped_planes(images_of, task.transforms, low, high)
                (region,) = as_inputs(found.batched(images_of.shape[1:]), [shape])
                yield Proved(block, here, decided(task.network, region, task.labels[here],
                                                  task.classes, self.method, task.means))


class Grafted:
    """Linear bounds of the network as a function of the parameters, image by image."""

    def __init__(self, task: Task, method: str = "crown") -> None:
        self._task, self.method = task, method

    def prove(self, wanted: Sequence[Wanted]) -> Iterator[Proved]:
        """Each image for its blocks, all of them together."""
        by_image: dict[int, list[Block]] = {}
        for block, images in wanted:
            for i in images.tolist():
                by_image.setdefault(i, []).append(block)
        task = self._task
        for i, blocks in by_image.items():
            graph = transformed(task.network, task.images[i], task.pieces.names)
            for start in range(0, len(blocks), _AT_ONCE_GRAFTED):
                part = blocks[start:start + _AT_ONCE_GRAFTED]
                ends = [task.pieces.ends(b) for b in part]
                region = Box(*(np.stack([e[side] for e in ends]) for side in (0, 1)))
                labels = np.full(len(part), task.labels[i])
                margins = decided(graph, region.batched(graph.input_shapes[0]), labels,
                                  task.classes, self.method, task.means)
                for block, margin in zip(part, margins, strict=True):
                    yield Proved(block, np.array([i]), margin[None])


def _grouped(wanted: Sequence[Wanted]) -> Iterator[list[Wanted]]:
    """Blocks together until there are about enough boxes for one call."""
    group, count = list[Wanted](), 0
    for w in wanted:
        for start in range(0, len(w.images), _AT_ONCE):
            part = Wanted(w.block, w.images[start:start + _AT_ONCE])
            if group and count + len(part.images) > _AT_ONCE:
                yield group
                group, count = [], 0
            group.append(part)
            count += len(part.images)
    if group:
        yield group


def _after_values(network: Graph, shape: tuple[int, ...], values: Sequence[Transform]) -> Graph:
    if not values:
        return network
    load()
    b = Builder()
    b.prefix = "image"
    image = b.input("image", tuple(shape))
    parameters = b.input("parameters", (len(values),))
    for i, change in enumerate(t.pixels for t in values if t.pixels is not None):
        share = b.add("gather", parameters, indices=np.array([i]), axis=-1)
        image = change(b, image, share)
    front = b.finish(image, {"format": "graph"})
    return chained(front, network, {"format": "graph", "dtype": network.source.get("dtype")})
