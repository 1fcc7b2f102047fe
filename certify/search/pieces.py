"""Proofs over pieces of a box: every leaf of one tree proves the whole specification by itself."""

from __future__ import annotations

import math

import numpy as np

from certify.bounds.decide import Means, Question, decide
from certify.core.certificate import Evidence
from certify.core.claim import Case
from certify.core.errors import BadInput
from certify.core.graph import Graph
from certify.core.region import Box
from certify.core.semantics import Semantics
from certify.core.split_tree import SplitTree

METHOD = "pieces"
_AT_ONCE = 64
_HALVED = 5  # times that a leaf may be halved where another road than the first one's proves it
_LADDER = ("ibp", "crown-ibp", "forward", "crown")  # each on what the one before left open


def prove_pieces(graph: Graph, case: Case, evidence: Evidence, means: Means) -> tuple[bool, float]:
    """Whether every leaf is proved again, and the smallest margin.

    Raises:
        BadInput: the tree does not fit the case.
    """
    region = case.region
    fits = isinstance(region, Box) and len(evidence.trees) == region.batch
    if not fits or not isinstance(region, Box) or any(len(t) != 1 for t in evidence.trees):
        raise BadInput("a proof by pieces needs a box and one tree per example")
    worst = math.inf
    for example, (tree,) in enumerate(evidence.trees):
        leaves, spec = leaf_boxes(region.rows([example]), tree), case.spec.only(example)
        for _ in range(_HALVED + 1):
            proved, margins = _proved(graph, Case(Box(*leaves), spec), means)
            worst = min(worst, float(margins[proved].min(initial=math.inf)))
            if proved.all():
                break
            leaves = _halves(leaves[0][~proved], leaves[1][~proved])
        else:
            return False, float(margins.min())
    return True, worst


def _halves(lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both halves of each box ``(N, n)``, cut where it is widest for its size."""
    width = (upper - lower) / np.maximum(np.maximum(np.abs(lower), np.abs(upper)), 1e-300)
    axis, every = width.argmax(1), np.arange(len(lower))
    middle = 0.5 * (lower[every, axis] + upper[every, axis])
    below, above = upper.copy(), lower.copy()
    below[every, axis] = above[every, axis] = middle
    return np.concatenate([lower, above]), np.concatenate([below, upper])


def leaf_boxes(region: Box, tree: SplitTree) -> tuple[np.ndarray, np.ndarray]:
    """Boxes ``(leaves, n)`` of a tree that splits elements of one input.

    Raises:
        BadInput: a split of something else, or outside its box.
    """
    lower, upper = (np.asarray(e, dtype=np.float64).reshape(-1) for e in region.ends())
    lows, highs = [], []
    for path in tree.paths():
        low, high = lower.copy(), upper.copy()
        for node in path:
            at = node if node >= 0 else ~node
            element, point = int(tree.element[at]), float(tree.point[at])
            if tree.step[at] != 0 or element >= len(low) or not low[element] <= point \
                    <= high[element]:
                raise BadInput("a piece of the proof is not inside the region")
            (high if node >= 0 else low)[element] = point
        lows.append(low)
        highs.append(high)
    return np.stack(lows), np.stack(highs)


def _proved(graph: Graph, case: Case, means: Means) -> tuple[np.ndarray, np.ndarray]:
    """Which leaves a method proves, and the smallest margin found at each; never NaN."""
    region = case.region.batched(graph.input_shapes[0])
    rows = case.spec.rows()
    proved, found = np.zeros(region.batch, dtype=bool), np.full(region.batch, -np.inf)
    for method in _LADDER:
        if method == "forward" and means.semantics is Semantics.FLOAT32:
            continue
        open_ = np.flatnonzero(~proved)
        for start in range(0, len(open_), _AT_ONCE):
            part = open_[start:start + _AT_ONCE]
            bound = np.broadcast_to(rows.bound, (len(part), rows.bound.shape[-1])).copy()
            decision = decide(graph, Question(region.rows(part), rows, bound), method, means)
            margins = np.nan_to_num(decision.margins, nan=-np.inf)
            proved[part] = decision.proved
            found[part] = rows.clause_margins(margins).min(axis=1)
    return proved, found
