"""Bounds of sub-problems: intervals where splits hold, and the rows with their multipliers.

A split ``z >= s`` enters twice: it clips the interval of z, and a multiplier ``beta >= 0``
subtracts ``beta (z - s) >= 0`` from the bounded row (beta-CROWN, Wang et al. 2021, section 3.1),
which is a row entry at the step of z and a constant. ``z <= s`` likewise with the other sign.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from certify.bounds.crown import (
    Plan,
    Slopes,
    State,
    defined,
    input_boxes,
    row_bounds,
    tighten,
)
from certify.bounds.interval import intersect, interval_step
from certify.bounds.program import Program, to_tensor
from certify.core.outward import UNDERFLOW, dot_error
from certify.core.region import Box, Product, Region
from certify.core.semantics import Semantics
from certify.ops.record import Interval
from certify.search.neuron_split.domains import NONE, Domains
from certify.search.neuron_split.root import Chooser, Root, narrowed


class Opened(NamedTuple):
    """What is known of a batch of sub-problems.

    Attributes:
        state: intervals of every step.
        empty: ``(N,)``: no point of the region satisfies all splits. In rigorous semantics a proof.
    """

    state: State
    empty: Tensor


Known = list[Interval | None]


def tightened(root: Root, domains: Domains) -> Known:
    """Rigorous intervals with a backward pass for every ambiguous element of every sub-problem.

    Where lower ends are above upper ends, nothing satisfies all splits.
    """
    program = root.fast if root.fast.exact else root.exact
    count = len(domains)
    split = domains.steps
    region = _region(root, domains, split)
    if region.batch != count:
        region = region.rows([0] * count)
    known: Known = []
    for index, step in enumerate(program.steps):
        box = None if step is None else _wide(root.knows(program, index), count)
        known.append(_clipped(box, domains, index) if box is not None and index in split else box)
    plan = Plan(known=known)
    return tighten(program, region, plan, root.problem.semantics, root.limits).bounds


def opened(root: Root, domains: Domains, known: Known | None = None, *, rigorous: bool) -> Opened:
    """Intervals of every step where the splits of each sub-problem hold.

    Args:
        known: rigorous intervals of the sub-problems' own, in float32 or the program's precision.
    """
    program = root.exact if rigorous else root.fast
    semantics = root.problem.semantics if rigorous else Semantics.SEARCH
    count = len(domains)
    split = domains.steps
    region = _region(root, domains, split)
    state = State(program, region, semantics, root.limits, [None] * len(program.steps))
    empty = torch.zeros(count, dtype=torch.bool, device=program.device)
    boxes = iter(input_boxes(program, region))
    for index, step in enumerate(program.steps):
        whole = root.knows(program, index)
        if step is None:
            state.bounds[index] = _wide(next(boxes), count)
            continue
        if not split & program.ancestors[index]:
            state.bounds[index] = _wide(whole, count)
            if rigorous and index in root.errors:
                state.errors[index] = root.errors[index]
            continue
        found, error = interval_step(step, state.bounds, semantics)
        if error is not None:
            state.errors[index] = error
        found = intersect(defined(found), whole)
        if known is not None and known[index] is not None:
            found = intersect(found, cast(known[index], program))
        if index in split:
            found = _clipped(found, domains, index)
        crossed = (found.lower > found.upper).reshape(count, -1).any(1)
        empty = empty | crossed
        state.bounds[index] = Interval(found.lower, found.upper.maximum(found.lower))
    return Opened(state, empty)


def cast(box: Interval | None, program: Program) -> Interval:
    """Bounds in the program's precision, rounded outward."""
    if box is None:
        raise TypeError("no bounds to cast")
    ends = zip(box, (-torch.inf, torch.inf), strict=True)
    return Interval(*(narrowed(t, program.dtype, to) for t, to in ends))


def _wide(box: Interval, count: int) -> Interval:
    if len(box.lower) == count:
        return box
    return Interval(*(t.expand(count, *t.shape[1:]) for t in box))


def _clipped(box: Interval, domains: Domains, index: int) -> Interval:
    """A step's interval where its splits hold. Points are float32 numbers: nothing is rounded."""
    here = domains.step == index
    element = torch.where(here, domains.element, 0)  # elsewhere it belongs to another step
    shape = box.lower.shape
    ends = []
    for side, values in ((1, box.lower), (-1, box.upper)):
        open_end = torch.full_like(domains.point, -side * torch.inf)
        point = torch.where(here & (domains.side == side), domains.point, open_end)
        flat = values.reshape(len(domains), -1)
        how = "amax" if side > 0 else "amin"
        ends.append(flat.scatter_reduce(1, element, point.to(flat.dtype), how))
    return Interval(*(e.reshape(shape) for e in ends))


def cut(state: State, domains: Domains) -> None:
    """Clip a state's intervals at the splits alone, leaving those of later steps as they are."""
    for index in domains.steps:
        state.bounds[index] = _clipped(state.box(index), domains, index)


def _region(root: Root, domains: Domains, split: set[int]) -> Region:
    """The region, or where inputs are split each sub-problem's own box."""
    region, program = root.problem.region, root.fast
    if not any(i in split for i in program.inputs):
        return region
    lower, upper = region.ends()
    many = isinstance(region, Product)
    ends = zip(lower if many else (lower,), upper if many else (upper,), strict=True)
    parts = []
    for index, (low, high) in zip(program.inputs, ends, strict=True):
        whole = Interval(*(to_tensor(e).to(program.device, torch.float64) for e in (low, high)))
        box = _clipped(_wide(whole, len(domains)), domains, index)
        # An input split that leaves nothing is never made: see `branching`.
        box = Interval(box.lower, box.upper.maximum(box.lower))
        parts.append(Box(*box).batched(program.shape(index)))
    return parts[0] if len(parts) == 1 else Product(parts)


def split_rows(
    program: Program, domains: Domains, beta: Tensor, rows: Mapping[int, Tensor]
) -> dict[int, Tensor]:
    """``rows`` with the multipliers ``beta (N, D)`` of all splits; differentiable in ``beta``."""
    found = dict(rows)
    for index in domains.steps - set(program.inputs):  # a box is minimised over exactly
        shape = program.shape(index)
        here = domains.step == index
        entry = torch.where(here, -domains.side * beta, 0.0)
        element = torch.where(here, domains.element, 0)
        flat = beta.new_zeros(len(domains), math.prod(shape))
        part = flat.scatter_add(1, element, entry).reshape(-1, 1, *shape)
        found[index] = found[index] + part if index in found else part
    return found


def split_constants(program: Program, domains: Domains, beta: Tensor) -> Tensor:
    """The constants ``(N, D)`` that belong to `split_rows`."""
    used = domains.step != NONE
    for index in program.inputs:
        used = used & (domains.step != index)
    return torch.where(used, domains.side * beta * domains.point.to(beta.dtype), 0.0)


class Variables(NamedTuple):
    """What a bound of a sub-problem may choose freely.

    Attributes:
        slopes: ``(N, M)``; beta: ``(N, D)`` >= 0; weight: ``(N, r)`` >= 0, not all 0.
    """

    slopes: Tensor
    beta: Tensor
    weight: Tensor


def searched(
    root: Root, state: State, chooser: Chooser, domains: Domains, chosen: Variables
) -> Tensor:
    """Margins ``(N,)`` in plain floats, differentiable in what is chosen."""
    rows, slopes, rest = posed(root, state, chooser, domains, chosen)
    return chooser.hinges.bounds(rows, slopes)[:, 0] + rest


def posed(
    root: Root, state: State, chooser: Chooser, domains: Domains, chosen: Variables
) -> tuple[dict[int, Tensor], Slopes, Tensor]:
    """Rows by step, slopes, and the constants ``(N,)`` to add, in plain floats."""
    program, clauses = state.program, root.clauses
    weight = chosen.weight / chosen.weight.sum(1, keepdim=True)
    rows = clauses.rows(program, domains.clause, weight)
    rows = split_rows(program, domains, chosen.beta, rows)
    rest = split_constants(program, domains, chosen.beta).sum(1)
    return rows, chooser(chosen.slopes), rest - clauses.threshold(domains.clause, weight)


def proved(root: Root, domains: Domains, known: Known | None = None) -> Tensor:
    """Margins ``(N,)``, float64, with all rounding accounted for; infinite where nothing is left.

    Raises:
        OutOfTime: the deadline passed.
    """
    with torch.no_grad():
        state, empty = opened(root, domains, known, rigorous=True)
        program, clauses = state.program, root.clauses
        beta = domains.beta.double().clamp(min=0.0)
        weight = whole_weights(domains.weight)
        rows = clauses.rows(program, domains.clause, weight)
        rows = split_rows(program, domains, beta, rows)
        chooser = Chooser(state, root.layout, len(domains))
        slopes = chooser(chooser.inside(domains.slopes))
        value = row_bounds(state, rows, slopes)[:, 0]
        lost = clauses.lost(program, state.bounds, domains.clause, weight)
        terms = split_constants(program, domains, beta)
        rest = terms.sum(1) - clauses.threshold(domains.clause, weight)
        size = terms.abs().sum(1) + clauses.threshold_size(domains.clause, weight) + value.abs()
        count = terms.shape[1] + weight.shape[1] + 4
        plain = (terms == 0).all(1) & (lost == 0)  # a difference of two floats has the right sign
        error = torch.where(plain, 0.0, dot_error(count) * size + count * UNDERFLOW) + lost
        margin = (value + rest) - error
        margin = torch.where(margin.isnan(), -torch.inf, margin)
        return torch.where(empty, torch.inf, margin)


def whole_weights(weight: Tensor) -> Tensor:
    """Weights as the proof takes them: float64, not negative, a single one exactly 1."""
    wide = weight.double().clamp(min=0.0)
    single = (wide > 0).sum(1, keepdim=True) == 1
    return torch.where(single, (wide > 0).double(), wide / wide.sum(1, keepdim=True))
