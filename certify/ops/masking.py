"""Finds the mask of a softmax in what a model adds to, or selects for, its scores.

Minus infinity as a constant means "not seen". Kept as a number it would poison every linear bound
that passes it, so it becomes the mask of the softmax record instead.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from certify.core.graph import Node
from certify.ops.builder import Builder, Value, as_numpy


class Scores(NamedTuple):
    """Scores without infinities, and which of them count (None for all)."""

    value: Value
    seen: np.ndarray | None


def unmasked(b: Builder, scores: Value) -> Scores:
    """``scores`` as the sum or the selection they are, with minus infinity as a mask."""
    node = next((n for n in reversed(b.nodes) if n.name == scores.name), None)
    if node is None or scores.constant is not None:
        return Scores(scores, None)
    if node.op == "add":
        return _added(b, node, scores)
    return _selected(b, node, scores) if node.op == "where" else Scores(scores, None)


def _added(b: Builder, node: Node, scores: Value) -> Scores:
    for bias, other in (node.inputs, node.inputs[::-1]):
        if bias not in b.constants:
            continue
        array = as_numpy(b.constants[bias])
        seen = array != -np.inf
        if seen.all():
            break
        rest = Value(other, _shape_of(b, other))
        finite = np.where(seen, array, 0)
        if rest.shape != scores.shape or finite.any():
            rest = b.add("add", rest, b.constant(finite))
        return Scores(rest, seen)
    return Scores(scores, None)


def _selected(b: Builder, node: Node, scores: Value) -> Scores:
    condition, *branches = node.inputs
    for k, name in enumerate(branches):
        other = branches[1 - k]
        if name not in b.constants or other in b.constants:
            continue
        if (as_numpy(b.constants[name]) == -np.inf).all() and _shape_of(b, other) == scores.shape:
            chosen = as_numpy(b.constants[condition]) != 0
            return Scores(Value(other, scores.shape), ~chosen if k == 0 else chosen)
    return Scores(scores, None)


def _shape_of(b: Builder, name: str) -> tuple[int, ...]:
    return next(n.shape for n in reversed(b.nodes) if n.name == name)
