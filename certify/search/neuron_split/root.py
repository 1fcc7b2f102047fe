"""What all sub-problems share: programs, bounds over the whole region, where slopes are stored."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from certify.bounds.alpha import Alpha
from certify.bounds.budget import Limits
from certify.bounds.crown import Plan, Slopes, State, tighten
from certify.bounds.program import Program, prepare
from certify.core.outward import narrow
from certify.core.region import Product
from certify.core.region_box import BoxShaped
from certify.core.semantics import Semantics
from certify.ops.families import per_row
from certify.ops.record import Interval, Slope
from certify.search.neuron_split.clauses import Clauses
from certify.search.neuron_split.hinges import Hinges
from certify.search.problem import Problem

_UNIT_SHARE = 0.15  # of the time left that intermediate bounds with slopes of their own may take

_LEAST_STEPS = 2


@dataclass(frozen=True, eq=False)
class Place:
    """Where one slope tensor of a step lies among all stored slopes.

    Attributes:
        step: index of the step; number: of the tensor among the step's.
        index: ``(m,)`` flat elements that can be chosen.
        start: of the stored slopes.
    """

    step: int
    number: int
    index: Tensor
    start: int

    @property
    def stop(self) -> int:
        """End of the stored slopes."""
        return self.start + len(self.index)


@dataclass(frozen=True, eq=False)
class Layout:
    """How all optimisable slopes of a sub-problem are stored in one row.

    Attributes:
        places: in the order they are stored.
        size: slopes per sub-problem.
    """

    places: tuple[Place, ...]
    size: int

    @classmethod
    def of(cls, state: State) -> Layout:
        """Every slope that has a range over the whole region."""
        places, at = [], 0
        for index, number, slope in every_slope(state):
            free = (slope.high > slope.low).reshape(-1, math.prod(slope.high.shape[2:])).any(0)
            picked = free.nonzero()[:, 0]
            if len(picked):
                places.append(Place(index, number, picked, at))
                at += len(picked)
        return cls(tuple(places), at)


def every_slope(state: State) -> list[tuple[int, int, Slope]]:
    """Step, number and range of every slope tensor above the output, each ``(B, 1, *shape)``."""
    program, found = state.program, []
    for index in sorted(program.ancestors[program.output]):
        step = program.steps[index]
        if step is None or step.affine or step.curve.slopes is None:
            continue
        ranges = step.curve.slopes(step.site, *step.operands(state.bounds))
        for number, slope in enumerate(ranges):
            shape = np.broadcast_shapes(*(t.shape for t in slope))
            found.append((index, number, Slope(*(t.expand(shape) for t in slope))))
    return found


class Chooser:
    """Stored slopes of a batch of sub-problems as a sweep takes them.

    Attributes:
        start, low, high: ``(N, M)`` the default and the range of every stored slope.
        hinges: for bounds in plain floats.
    """

    def __init__(self, state: State, layout: Layout, count: int) -> None:
        places = {(p.step, p.number): p for p in layout.places}
        like = torch.empty(0, dtype=state.program.dtype, device=state.program.device)
        self.start, self.low, self.high = (like.new_zeros(count, layout.size) for _ in range(3))
        self.hinges = Hinges(state)
        self.parts: list[tuple[int, Tensor, Place | None]] = []
        for index, number, slope in every_slope(state):
            place = places.get((index, number))
            self.parts.append((index, slope.start, place))
            if place is not None:
                for whole, part in zip((self.start, self.low, self.high), slope, strict=True):
                    whole[:, place.start : place.stop] = per_row(part)[:, 0, place.index]

    def inside(self, stored: Tensor) -> Tensor:
        """Slopes moved into their ranges, and the default where there is none (NaN)."""
        stored = torch.where(stored.isnan(), self.start, stored.to(self.start.dtype))
        return stored.maximum(self.low).minimum(self.high)

    def __call__(self, stored: Tensor) -> Slopes:
        """``stored (N, M)`` among the slopes that are fixed; differentiable."""
        found: dict[int, list[Tensor]] = {}
        sizes = [len(p.index) for _, _, p in self.parts if p is not None]
        pieces = iter(torch.split(stored, sizes, 1) if sizes else ())  # in stored order
        for index, start, place in self.parts:
            whole = start
            if place is not None:
                flat = per_row(start)[:, 0].expand(len(stored), -1)
                flat = flat.index_copy(1, place.index, next(pieces))
                whole = flat.reshape(len(stored), 1, *start.shape[2:])
            found.setdefault(index, []).append(whole)
        return {i: tuple(group) for i, group in found.items()}


@dataclass(frozen=True, eq=False)
class Root:
    """The problem made ready.

    Attributes:
        limits: its deadline leaves a little to report.
        fast, exact: programs for searching and for proving.
        bounds: rigorous intervals per step over the whole region, by precision.
        errors: rounding errors per step of the proving program, over the whole region.
        box: the region is a box, so that inputs can be split.
    """

    problem: Problem
    limits: Limits
    clauses: Clauses
    fast: Program
    exact: Program
    bounds: Mapping[torch.dtype, list[Interval | None]]
    errors: Mapping[int, Tensor]
    layout: Layout
    box: bool
    operands: tuple[int, ...] = field(default=())

    def knows(self, program: Program, index: int) -> Interval:
        """The interval of a step over the whole region."""
        found = self.bounds[program.dtype][index]
        if found is None:
            raise TypeError(f"step {index} has no bounds")
        return found


def prepare_root(problem: Problem, limits: Limits) -> Root:
    """Bounds over the whole region: given ones, or CROWN's, with slopes per neuron if affordable.

    Raises:
        OutOfTime: the deadline passed.
    """
    graph, device = problem.graph, problem.device
    fast, exact = (prepare(graph, t, device) for t in (torch.float32, torch.float64))
    state = _root_state(problem, fast if fast.exact else exact, limits)
    known = {t: _outward(state.bounds, t) for t in (torch.float32, torch.float64)}
    plan = Plan(refine=False, known=known[torch.float64])
    final = tighten(exact, problem.region, plan, problem.semantics, limits)
    known = {t: _outward(final.bounds, t) for t in (torch.float32, torch.float64)}
    quick = State(fast, problem.region, Semantics.SEARCH, limits, known[torch.float32])
    parts = problem.region.parts if isinstance(problem.region, Product) else (problem.region,)
    box = all(isinstance(p, BoxShaped) for p in parts)
    above = fast.ancestors[fast.output]
    curved = [s for s in fast.steps if s is not None and not s.affine and s.index in above]
    operands = {i for s in curved for i in s.variables}
    return Root(
        problem,
        limits,
        Clauses.of(problem.rows, device),
        fast,
        exact,
        known,
        final.errors,
        Layout.of(quick),
        box,
        tuple(sorted(operands)),
    )


def _root_state(problem: Problem, program: Program, limits: Limits) -> State:
    if problem.known is not None:
        known = _outward(problem.known, program.dtype)
        plan = Plan(refine=False, known=known)
        return tighten(program, problem.region, plan, problem.semantics, limits)
    before = time.monotonic()
    state = tighten(program, problem.region, Plan(), problem.semantics, limits)
    seconds = time.monotonic() - before
    inner = Alpha().inner
    fits = _UNIT_SHARE * limits.remaining() / max(1e-3, 4 * seconds)
    if inner is None or fits < _LEAST_STEPS:
        return state
    alpha = Alpha(iterations=int(min(fits, inner.iterations)))
    plan = Plan(alpha=alpha, known=_outward(state.bounds, program.dtype))
    return tighten(program, problem.region, plan, problem.semantics, limits)


def _outward(bounds: list[Interval | None], dtype: torch.dtype) -> list[Interval | None]:
    """Bounds in another precision, rounded outward; everything defined."""

    return [
        None
        if b is None
        else Interval(narrowed(b.lower, dtype, -np.inf), narrowed(b.upper, dtype, np.inf))
        for b in bounds
    ]


def narrowed(value: Tensor, dtype: torch.dtype, direction: float) -> Tensor:
    """An end of an interval in another precision, rounded towards ``direction``."""
    if value.dtype.itemsize <= dtype.itemsize:
        return value.detach().to(dtype)
    found: Tensor = narrow(value.detach(), dtype, direction)
    return found
