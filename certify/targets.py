"""What is left to decide: one example at a time, and the batches they are bounded in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from certify.bounds.decide import Question
from certify.bounds.program import prepare
from certify.core.graph import Graph
from certify.core.region import Box, Product, Region
from certify.search.target import Target

_LARGEST_GROUP = 256  # examples bounded together
_GROUP_OPERATIONS = 4e8  # about this many per step of a group


def question(group: list[Target]) -> Question:
    """One batched question from targets of equal structure."""
    rows = [t.spec.only(t.example).rows() for t in group]
    bound = np.stack([r.bound for r in rows])
    if len(group) == 1:
        return Question(group[0].region, rows[0], bound)
    y = np.concatenate([r.y for r in rows])
    x = None if rows[0].x is None else np.concatenate([r.x for r in rows if r.x is not None])
    return Question(_stacked([t.region for t in group]), rows[0]._replace(y=y, x=x), bound)


def _stacked(regions: list[Region]) -> Region:
    first = regions[0]
    if isinstance(first, Product):
        columns = zip(*(r.parts for r in regions if isinstance(r, Product)), strict=True)
        return Product(tuple(_stacked(list(column)) for column in columns))
    boxes = [r for r in regions if isinstance(r, Box)]
    if first.shape is None:
        raise TypeError("a target's region has no shape: fit it to the network first")
    lower = np.concatenate([np.asarray(b.lower) for b in boxes])
    upper = np.concatenate([np.asarray(b.upper) for b in boxes])
    return Box(lower, upper).batched(first.shape)


def groups(graph: Graph, targets: list[Target]) -> Iterator[list[Target]]:
    """Targets that can be bounded in one batch: boxes, with rows of one structure."""
    size = max(1, min(_LARGEST_GROUP, int(_GROUP_OPERATIONS / prepare(graph).operations)))
    found: dict[Any, list[Target]] = {}
    for target in targets:
        rows = target.spec.rows()
        same = (rows.y.shape[1:], rows.x is None, rows.group.tobytes(), rows.strict.tobytes())
        key: Any = (*same, None) if _is_boxes(target.region) else (*same, target.key)
        found.setdefault(key, []).append(target)
    for group in found.values():
        yield from (group[i : i + size] for i in range(0, len(group), size))


def _is_boxes(region: Region) -> bool:
    if isinstance(region, Product):
        return all(_is_boxes(p) for p in region.parts)
    return type(region) is Box and isinstance(region.lower, np.ndarray)
