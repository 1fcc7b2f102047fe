"""Forward linear bound propagation: every step bounded by two lines in the model's inputs.

One sweep bounds all steps at a cost that grows with the number of inputs instead of with depth, so
it wins where inputs are few and outputs many. Slopes are chosen before the objective is known, so
it is looser than a backward pass on deep networks (Zhang et al. 2018; Xu et al. 2020, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from certify.bounds.budget import Limits
from certify.bounds.crown import State, defined, input_boxes, pull_to_nonlinear
from certify.bounds.interval import intersect, interval_step
from certify.bounds.program import Program, Step
from certify.bounds.rounding import gamma, magnitude, round_down, unit_of
from certify.bounds.rows import dense, per_example
from certify.core.region import Product, Region
from certify.core.semantics import Semantics
from certify.ops.families import Lines, per_row
from certify.ops.record import Interval, Relaxation
from certify.ops.reduce_max import Coupled, gathered

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Planes:
    """``low x + low_c <= value <= up x + up_c``, with x the n inputs.

    Slopes are ``(B, n, *shape)``, offsets ``(B, *shape)``. ``size (B, *shape)`` bounds the terms of
    both over the region: what rounding is relative to.
    """

    low: Tensor
    low_c: Tensor
    up: Tensor
    up_c: Tensor
    size: Tensor


@dataclass
class ForwardState(State):
    """A `State` that also knows two planes per step, and the intervals that they reach."""

    planes: list[Planes | None] = field(default_factory=list)
    reached: dict[int, Interval] = field(default_factory=dict)

    def relax(self, step: Step) -> Relaxation:
        """As documented, but with slopes for what the operand's planes reach by themselves.

        The planes are what a slope multiplies. Where an interval from elsewhere is far tighter than
        they are, its slope is often the wrong one for them.
        """
        if step.index in self.relaxations or step.curve.slopes is None:
            return super().relax(step)
        bounds = [self.reached.get(i, b) for i, b in enumerate(self.bounds)]
        wished = step.curve.slopes(step.site, *step.operands(bounds))
        operands = step.operands(self.bounds)
        allowed = step.curve.slopes(step.site, *operands)
        chosen = tuple(
            torch.where(w.start.isnan(), a.start, w.start).maximum(a.low).minimum(a.high)
            for w, a in zip(wished, allowed, strict=True)
        )
        found = step.curve.relax(step.site, chosen, *operands)
        self.relaxations[step.index] = found
        return found

    def of(self, index: int) -> Planes:
        """The planes of a step that has been reached."""
        found = self.planes[index]
        if found is None:
            raise TypeError(f"step {index} has no planes yet")
        return found

    def charged(self, low: Pair, up: Pair, error: Tensor | None) -> Planes:
        """Planes with ``error`` taken off."""
        if not self.semantics.rigorous:
            return Planes(*low, *up, low[1])
        low_c, up_c = low[1], up[1]
        if error is not None:
            low_c, up_c = low_c - error, up_c + error
        size = low_c.abs() + up_c.abs()
        for slope in (low[0], up[0]):
            size = size + torch.einsum("bn...,bn->b...", slope.abs(), self.input_size())
        return Planes(
            low[0], low_c, up[0], up_c, size * (1 + gamma(low[0].shape[1] + 8, self.unit))
        )

    def input_size(self) -> Tensor:
        """Largest absolute inputs, ``(B, n)``."""
        boxes = [self.bounds[i] for i in self.program.inputs]
        return torch.cat([per_example(magnitude(b)) for b in boxes if b is not None], 1)

    @property
    def unit(self) -> float:
        """Unit roundoff of the program's precision."""
        return unit_of(self.program.dtype)


def forward_state(
    program: Program, region: Region, semantics: Semantics, limits: Limits
) -> ForwardState:
    """Intervals and planes of every step."""
    state = ForwardState(program, region, semantics, limits, [None] * len(program.steps))
    state.planes = [None] * len(program.steps)
    _seed(state)
    wanted = {i for s in program.steps if s is not None and not s.affine for i in s.variables}
    for index, step in enumerate(program.steps):
        if step is None:
            continue
        limits.check()
        found, error = interval_step(step, state.bounds, semantics)
        if error is not None:
            state.errors[index] = error
        state.planes[index] = _affine(step, state) if step.affine else _relaxed(step, state, found)
        if index in wanted:
            state.reached[index] = defined(_concrete(state, state.of(index)))
            found = intersect(found, state.reached[index])
        state.bounds[index] = defined(found)
    return state


def forward_rows(state: State, rows: Mapping[int, Tensor]) -> Tensor:
    """Lower bounds ``(B, R)`` of rows, merged into the affine steps they come from."""
    if not isinstance(state, ForwardState):
        raise TypeError("forward rows need a forward state")
    sweep = pull_to_nonlinear(state, rows)
    size = sum(math.prod(state.program.shape(i)) for i in state.program.inputs)
    slope = sweep.bias.new_zeros(*sweep.bias.shape, size)
    offset = sweep.bias
    error = torch.zeros_like(offset) if sweep.error is None else sweep.error
    for index, part in sweep.coefficients.items():
        planes = state.of(index)
        C = per_row(dense(part)).expand(planes.low.shape[0], -1, -1)
        plus, minus = C.clamp(min=0), C.clamp(max=0)
        slope = slope + plus @ per_row(planes.low).mT + minus @ per_row(planes.up).mT
        ends = plus @ per_example(planes.low_c).unsqueeze(-1)
        ends = ends + minus @ per_example(planes.up_c).unsqueeze(-1)
        offset = offset + ends.squeeze(-1)
        lost = C.abs() @ per_example(planes.size.abs()).unsqueeze(-1)
        error = error + lost.squeeze(-1) * (4 * gamma(C.shape[-1] + 8, state.unit))
    found = _minimum(state, slope) + offset
    if not state.semantics.rigorous:
        return found
    return round_down((found - error * 1.001).to(state.program.dtype))


def _seed(state: ForwardState) -> None:
    program = state.program
    boxes = input_boxes(program, state.region)
    for index, box in zip(program.inputs, boxes, strict=True):
        state.bounds[index] = box
    total = sum(math.prod(program.shape(i)) for i in program.inputs)
    offset = 0
    for index, box in zip(program.inputs, boxes, strict=True):
        shape = program.shape(index)
        B, size = box.lower.shape[0], math.prod(shape)
        slope = box.lower.new_zeros(total, size)
        slope[offset : offset + size] = torch.eye(size, dtype=slope.dtype, device=slope.device)
        slope = slope.reshape(1, total, *shape).expand(B, total, *shape)
        zero = torch.zeros_like(box.lower)
        state.planes[index] = Planes(slope, zero, slope, zero, 2 * magnitude(box))
        offset += size


def _affine(step: Step, state: ForwardState) -> Planes:
    rule = step.linear

    def operands(get: Any, constants: Any) -> list[Any]:
        return [
            get(state.of(s)) if s is not None else None if i in rule.biases else constants[i]
            for i, s in enumerate(step.sources)
        ]

    def through(low: str, up: str) -> Pair:
        middle = operands(lambda p: (getattr(p, low) + getattr(p, up)) / 2, step.constants)
        radius = operands(lambda p: (getattr(p, up) - getattr(p, low)) / 2, step.sizes)
        centre, spread = rule.linear(step.site, *middle), rule.absolute(step.site, *radius)
        return centre - spread, centre + spread

    (low, up), (low_c, up_c) = through("low", "up"), through("low_c", "up_c")
    error = None
    if state.semantics.rigorous:
        total = rule.absolute(step.site, *operands(lambda p: p.size, step.sizes))
        total = total if step.offset_size is None else total + step.offset_size
        terms = max(rule.summands(step.site)) + rule.roundings + 8
        error = 6 * gamma(terms, state.unit) * total + 2.0**-500
    if step.offset is not None:
        low_c, up_c = low_c + step.offset, up_c + step.offset
    return state.charged((low, low_c), (up, up_c), error)


def _relaxed(step: Step, state: ForwardState, box: Interval) -> Planes:
    relaxation = state.relax(step)
    if isinstance(relaxation, Lines):
        return _through_lines(step, relaxation, state)
    if isinstance(relaxation, Coupled):
        return _through_coupled(step, relaxation, state)
    first = state.of(step.variables[0])
    zero = box.lower.new_zeros(box.lower.shape[0], first.low.shape[1], *step.site.shape)
    return state.charged((zero, box.lower), (zero, box.upper), None)


def _through_lines(step: Step, lines: Lines, state: ForwardState) -> Planes:
    first = state.of(step.variables[0])
    B, n, shape = *first.low.shape[:2], step.site.shape
    zero = first.low.new_zeros(())

    def combine(slopes: tuple[Tensor | None, ...], constant: Tensor | None, low: bool) -> Pair:
        A, c = zero, zero if constant is None else constant[:, 0]
        for slope, source in zip(slopes, step.sources, strict=True):
            if source is None or slope is None:
                continue
            p = state.of(source)
            plus, minus = slope.clamp(min=0), slope.clamp(max=0)
            below, above = (p.low, p.low_c), (p.up, p.up_c)
            (a, a_c), (b, b_c) = (below, above) if low else (above, below)
            A = A + plus * a + minus * b
            c = c + plus[:, 0] * a_c + minus[:, 0] * b_c
        return A.expand(B, n, *shape), c.expand(B, *shape)

    error = None
    if state.semantics.rigorous:
        sizes = tuple(None if s is None else state.of(s).size for s in step.sources)
        error = gamma(16, state.unit) * lines.weight(sizes) + 2.0**-500
    low, up = combine(lines.low, lines.low_c, True), combine(lines.up, lines.up_c, False)
    return state.charged(low, up, error)


def _through_coupled(step: Step, lines: Coupled, state: ForwardState) -> Planes:
    """The planes of a maximum over axes; its coefficients are never negative."""
    planes = state.of(step.variables[0])
    B, n, shape = *planes.low.shape[:2], step.site.shape

    def combine(slope: Tensor, constant: Tensor, source: Pair) -> Pair:
        A, c = (gathered(step.site, t) for t in source)
        offset = constant[:, 0] + (slope[:, 0] * c).sum(-1)
        return (slope * A).sum(-1).reshape(B, n, *shape), offset.reshape(B, *shape)

    error = None
    if state.semantics.rigorous:
        terms = 2 * lines.low.shape[-1] + 16
        error = gamma(terms, state.unit) * lines.weight((planes.size,)) + 2.0**-500
    low = combine(lines.low, lines.low_c, (planes.low, planes.low_c))
    return state.charged(low, combine(lines.up, lines.up_c, (planes.up, planes.up_c)), error)


def _concrete(state: ForwardState, planes: Planes) -> Interval:
    shape = planes.low_c.shape
    low = _minimum(state, per_row(planes.low).mT).reshape(shape) + planes.low_c
    up = _minimum(state, -per_row(planes.up).mT).reshape(shape) - planes.up_c
    if state.semantics.rigorous:
        low, up = (round_down(side.to(state.program.dtype)) for side in (low, up))
    return Interval(low, -up)


def _minimum(state: State, slope: Tensor) -> Tensor:
    """Minimum over the region of ``slope (B, R, n) . x``; float64 in rigorous semantics."""
    program = state.program
    slope = slope.double() if state.semantics.rigorous else slope
    shapes = [program.shape(i) for i in program.inputs]
    parts = torch.split(slope, [math.prod(s) for s in shapes], dim=-1)
    shaped = tuple(p.reshape(*p.shape[:2], *s) for p, s in zip(parts, shapes, strict=True))
    whole: Any = shaped if isinstance(state.region, Product) else shaped[0]
    return state.region.minimum(whole, rigorous=state.semantics.rigorous)
