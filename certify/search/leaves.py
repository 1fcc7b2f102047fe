"""A proof by cases read back: the search is taken up again at its leaves.

Nothing in a tree is believed. Whatever its splits are, their leaves cover the region, because a
split's children are ``value <= point`` and ``value >= point``; every leaf is bounded again with all
rounding accounted for, from its slopes and multipliers, then from better ones, and what is left is
split further. So a wrong tree costs time, and proves nothing that is false.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from certify.core.certificate import Verdict
from certify.core.errors import BadInput
from certify.core.graph import INPUT, Graph
from certify.core.split_tree import LEAF, SplitTree
from certify.search.boxes import Boxes, Floats, Frame
from certify.search.input_split import split_inputs
from certify.search.neuron_split.bounding import opened
from certify.search.neuron_split.domains import NONE, Domains
from certify.search.neuron_split.engine import split_neurons
from certify.search.neuron_split.root import Chooser, Root
from certify.search.problem import Findings, Problem

_DEEPEST = 4096  # splits above a leaf
_MOST = 2**25  # ends of leaves' boxes
_METHODS = ("input", "neuron")


def prove_trees(problem: Problem, trees: tuple[SplitTree, ...]) -> Findings:
    """Prove a problem again, from one tree per clause.

    Returns:
        See `Findings`: HOLDS only when every leaf of every tree was refuted, by this call.

    Raises:
        BadInput: the trees do not fit the problem.
        BrokenArithmetic: this machine's arithmetic cannot carry a proof.
    """
    count = int(problem.rows.group[-1]) + 1
    if len(trees) != count:
        raise BadInput(f"{len(trees)} split trees for {count} clauses")
    methods = {tree.method for tree in trees}
    if len(methods) != 1 or not methods <= set(_METHODS):
        raise BadInput(f"split trees must all be of one method, {' or '.join(_METHODS)}")
    for tree in trees:
        _check_places(problem.graph, tree)
    if methods == {"neuron"}:
        for tree in trees:
            _check_neurons(tree)
        return split_neurons(problem, lambda root, size: _domains(root, trees, size))
    frame = Frame.of(problem.region)
    if frame is None:
        raise BadInput("a split tree over boxes needs a region that is a box")
    return split_inputs(problem, _boxes(problem.graph, frame, trees))


def prove_tree(problem: Problem, clause: int, tree: SplitTree) -> tuple[bool, float]:
    """Whether the leaves of one clause's tree refute it, and the smallest margin found.

    Raises:
        BadInput: as `prove_trees`.
    """
    here = np.flatnonzero(problem.rows.group == clause)
    if not len(here):
        raise BadInput(f"there is no clause {clause}")
    rows = problem.rows
    alone = rows._replace(
        y=rows.y[:, here],
        x=None if rows.x is None else rows.x[:, here],
        bound=rows.bound.reshape(-1)[here],
        strict=rows.strict[here],
        group=np.zeros(len(here), dtype=np.int64),
    )
    found = prove_trees(replace(problem, rows=alone), (tree,))
    return found.verdict is Verdict.HOLDS, found.margin


def _check_places(graph: Graph, tree: SplitTree) -> None:
    """Every split is at an element that exists."""
    split = tree.step != LEAF
    step, element = tree.step[split], tree.element[split]
    sizes = np.array([math.prod(node.shape) for node in graph.nodes])
    if (step >= len(sizes)).any():
        raise BadInput(f"a split tree splits node {int(step.max())} of {len(sizes)}")
    wrong = element >= sizes[step] if len(step) else np.zeros(0, dtype=bool)
    if wrong.any():
        k = int(np.flatnonzero(wrong)[0])
        raise BadInput(
            f"a split tree splits element {int(element[k])} of node "
            f"{graph.nodes[step[k]].name!r}, which has {int(sizes[step[k]])}"
        )


# -- boxes ----------------------------------------------------------------------------------------


def _boxes(graph: Graph, frame: Frame, trees: tuple[SplitTree, ...]) -> Boxes:
    """Every leaf's box, with the clauses of whose trees it is a leaf."""
    if sum(tree.leaves for tree in trees) * len(frame.free) > _MOST:
        raise BadInput("split trees over boxes have too many leaves for so many inputs")
    inputs = [i for i, node in enumerate(graph.nodes) if node.op == INPUT]
    starts = dict(zip(inputs, np.cumsum([0, *(math.prod(s) for s in frame.shapes)]), strict=False))
    column = {int(flat): k for k, flat in enumerate(frame.free)}
    ends, clauses = [], []
    for clause, tree in enumerate(trees):
        flat = []
        for step, element in zip(tree.step.tolist(), tree.element.tolist(), strict=True):
            place = column.get(int(starts[step]) + element) if step in starts else None
            if place is None and step != LEAF:
                raise BadInput("a split tree over boxes splits what is no input with a width")
            flat.append(LEAF if place is None else place)
        found = _leaf_boxes(frame, tree, flat)
        ends.append(found)
        clauses += [clause] * len(found)
    every, where = np.unique(np.concatenate(ends), axis=0, return_inverse=True)
    still = np.zeros((len(every), len(trees)), dtype=bool)
    still[np.asarray(where).reshape(-1), clauses] = True
    none = np.zeros(len(every), dtype=np.int64)
    lower, upper = every[:, 0], every[:, 1]
    return Boxes(lower, upper, still, np.full(len(every), -np.inf), none, none)


def _leaf_boxes(frame: Frame, tree: SplitTree, flat: list[int]) -> Floats:
    """Ends ``(leaves, 2, f)``, without boxes in which nothing is left."""
    free = frame.free
    pending, found = [np.stack([frame.lower[free], frame.upper[free]])], []
    for place, point in zip(flat, tree.point.tolist(), strict=True):
        box = pending.pop()
        if place == LEAF:
            if (box[0] <= box[1]).all():
                found.append(box)
            continue
        low, high = box.copy(), box
        low[1, place] = min(low[1, place], point)
        high[0, place] = max(high[0, place], point)
        pending += [high, low]
    return np.array(found).reshape(-1, 2, len(free))


# -- neurons --------------------------------------------------------------------------------------


def _check_neurons(tree: SplitTree) -> None:
    split = tree.step != LEAF
    point = tree.point[split]
    with np.errstate(over="ignore"):
        if (point != point.astype(np.float32)).any():
            # Bounds in float32 are clipped at it; rounding it would lose part of the region.
            raise BadInput("a split tree has a point that is no float32 number")
    if max(len(path) for path in tree.paths()) > _DEEPEST:
        raise BadInput(f"a split tree is deeper than {_DEEPEST}")


def _domains(root: Root, trees: tuple[SplitTree, ...], size: int) -> Iterator[Domains]:
    """All leaves, at most ``size`` at a time."""
    for clause, tree in enumerate(trees):
        inputs = set(root.fast.inputs)
        allowed = set(root.operands) | inputs if root.box else set(root.operands) - inputs
        if not np.isin(tree.step, [LEAF, *allowed]).all():
            raise BadInput("a split tree splits a node that is no operand of a nonlinearity")
        if tree.weights.size and tree.weights.shape[1] != root.clauses.used[clause].sum():
            raise BadInput("a split tree's weights do not fit the clause")
        paths, first, used = list[np.ndarray](), 0, 0
        for path in tree.paths():
            paths.append(np.array(path, dtype=np.int64))
            if len(paths) == size:
                yield _batch(root, clause, tree, (paths, first, used))
                first += len(paths)
                used += sum(len(p) for p in paths)
                paths = []
        if paths:
            yield _batch(root, clause, tree, (paths, first, used))


def _batch(
    root: Root, clause: int, tree: SplitTree, part: tuple[list[np.ndarray], int, int]
) -> Domains:
    """Some leaves: their paths, the number of the first, and its first multiplier."""
    paths, first, used = part
    count, depth = len(paths), np.array([len(p) for p in paths])
    shape = (count, int(depth.max(initial=0)))
    here = np.arange(shape[1]) < depth[:, None]
    signed = np.concatenate(paths) if here.any() else np.zeros(0, dtype=np.int64)
    node = np.where(signed < 0, ~signed, signed)

    def filled(values: Any, blank: float, dtype: type) -> torch.Tensor:
        whole: np.ndarray = np.full(shape, blank, dtype=dtype)
        whole[here] = values
        return torch.from_numpy(whole).to(root.fast.device)

    beta = filled(
        tree.multipliers[used : used + len(node)] if len(tree.multipliers) else 0.0, 0.0, np.float32
    )
    usual = beta.sum(1, keepdim=True) / torch.from_numpy(depth).clamp(min=1)[:, None].to(beta)
    like = beta.new_zeros(count)
    whole = torch.zeros_like(like, dtype=torch.int64)
    leaves = slice(first, first + count)
    found = Domains(
        torch.full_like(whole, clause),
        _weights(root, clause, tree, leaves),
        filled(tree.step[node], NONE, np.int64),
        filled(tree.element[node], 0, np.int64),
        filled(tree.point[node], 0.0, np.float64),
        filled(np.where(signed < 0, 1, -1), 1, np.int64),
        beta,
        beta.maximum(torch.where(usual > 0, usual, 1.0)),  # of the size of the others
        _slopes(root, tree, leaves, like),
        torch.full_like(like, -torch.inf, dtype=torch.float64),
        whole,
        torch.from_numpy(depth).to(whole),
    )
    return _ranged(root, found) if tree.slopes else found


def _weights(root: Root, clause: int, tree: SplitTree, leaves: slice) -> torch.Tensor:
    used = root.clauses.used[clause].float()
    count = leaves.stop - leaves.start
    if not tree.weights.size:
        return (used / used.sum()).expand(count, -1).clone()
    found = used.new_zeros(count, len(used))
    found[:, : tree.weights.shape[1]] = torch.from_numpy(tree.weights[leaves].copy()).to(found)
    return found


def _slopes(root: Root, tree: SplitTree, leaves: slice, like: torch.Tensor) -> torch.Tensor:
    """Stored slopes ``(N, M)`` as shares of their ranges; NaN where there is none."""
    found = torch.full((len(like), root.layout.size), torch.nan).to(like)
    kept = {(s.step, s.number): s for s in tree.slopes}
    for place in root.layout.places:
        slope = kept.get((place.step, place.number))
        if slope is None or not len(slope.element):
            continue
        at = place.index.cpu().numpy()
        order = np.argsort(slope.element, kind="stable")
        rank = np.minimum(np.searchsorted(slope.element[order], at), len(order) - 1)
        column = order[rank]
        share = torch.from_numpy(slope.share[leaves][:, column]).to(like) / 255
        share[:, torch.from_numpy(slope.element[column] != at)] = torch.nan
        found[:, place.start : place.stop] = share
    return found


def _ranged(root: Root, domains: Domains) -> Domains:
    """Shares of slopes as slopes, in the ranges they were shares of."""
    with torch.no_grad():
        state, _ = opened(root, domains, rigorous=False)
        chooser = Chooser(state, root.layout, len(domains))
        return replace(domains, slopes=torch.lerp(chooser.low, chooser.high, domains.slopes))
