"""Forward linear bound propagation: every step bounded by two lines in the model's inputs.

One sweep bounds all steps at a cost that grows with the number of inputs instead of with depth, so
it wins where inputs are few and outputs many. Slopes are chosen before the objective is known, so
it is looser than a backward pass on deep networks (Zhang et al. 2018; Xu et al. 2020, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from certify.bounds.budget import Limits
from certify.bounds.crown import State, _defined, _input_boxes, pull_to_nonlinear
from certify.bounds.interval import intersect, interval_step
from certify.bounds.program import Program, Step
from certify.bounds.rounding import Semantics
from certify.bounds.rows import dense
from certify.core.region import Product, Region
from certify.ops.families import Lines
from certify.ops.record import Interval


@dataclass(frozen=True, eq=False)
class Planes:
    """``low x + low_c <= value <= up x + up_c``: slopes ``(B, n, *shape)``, n inputs; offsets ``(B, *shape)``."""

    low: Tensor
    low_c: Tensor
    up: Tensor
    up_c: Tensor


@dataclass
class ForwardState(State):
    """A `State` that also knows two planes per step."""

    planes: list[Planes | None] = field(default_factory=list)


def forward_state(program: Program, region: Region, limits: Limits) -> ForwardState:
    """Intervals and planes of every step (search semantics only)."""
    state = ForwardState(program, region, Semantics.SEARCH, limits, [None] * len(program.steps))
    state.planes = planes = [None] * len(program.steps)
    _seed(state, planes)
    wanted = {i for s in program.steps if s is not None and not s.affine for i in s.variables}
    for index, step in enumerate(program.steps):
        if step is None:
            continue
        found, _ = interval_step(step, state.bounds, Semantics.SEARCH)
        planes[index] = _affine(step, planes) if step.affine else _relaxed(step, state, planes)
        if index in wanted:
            found = intersect(found, _concrete(state, planes[index]))
        state.bounds[index] = _defined(found)
    return state


def forward_rows(state: State, rows: Mapping[int, Tensor]) -> Tensor:
    """Lower bounds ``(B, R)`` of rows, merged into the affine steps they come from."""
    assert isinstance(state, ForwardState)  # noqa: S101 (narrowing only)
    sweep = pull_to_nonlinear(state, rows)
    slope: Tensor | float = 0.0
    offset = sweep.bias
    for index, part in sweep.coefficients.items():
        planes = state.planes[index]
        assert planes is not None  # noqa: S101 (narrowing only)
        C = dense(part).flatten(2).expand(planes.low.shape[0], -1, -1)
        plus, minus = C.clamp(min=0), C.clamp(max=0)
        slope = slope + plus @ planes.low.flatten(2).mT + minus @ planes.up.flatten(2).mT
        ends = plus @ planes.low_c.flatten(1).unsqueeze(-1) + minus @ planes.up_c.flatten(1).unsqueeze(-1)
        offset = offset + ends.squeeze(-1)
    assert isinstance(slope, Tensor)  # noqa: S101 (narrowing only)
    return _minimum(state, slope) + offset


def _seed(state: State, planes: list[Planes | None]) -> None:
    program = state.program
    total = sum(math.prod(program.shape(i)) for i in program.inputs)
    offset = 0
    for index, box in zip(program.inputs, _input_boxes(program, state.region), strict=True):
        state.bounds[index] = box
        B, size = box.lower.shape[0], math.prod(program.shape(index))
        slope = box.lower.new_zeros(total, size)
        slope[offset : offset + size] = torch.eye(size, dtype=slope.dtype, device=slope.device)
        slope = slope.reshape(1, total, *program.shape(index)).expand(B, *(-1,) * (1 + len(program.shape(index))))
        zero = torch.zeros_like(box.lower)
        planes[index] = Planes(slope, zero, slope, zero)
        offset += size


def _affine(step: Step, planes: Sequence[Planes | None]) -> Planes:
    def through(low: str, up: str, extra: bool) -> tuple[Tensor, Tensor]:
        middle, radius = [], []
        for i, source in enumerate(step.sources):
            if source is None:
                bias = i in step.rule.biases
                middle.append(None if bias else step.constants[i])
                radius.append(None if bias else step.sizes[i])
                continue
            a, b = getattr(planes[source], low), getattr(planes[source], up)
            middle.append((a + b) / 2)
            radius.append((b - a) / 2)
        centre = step.rule.linear(step.site, *middle)
        spread = step.rule.absolute(step.site, *radius)
        if extra and step.offset is not None:
            centre = centre + step.offset
        return centre - spread, centre + spread

    low, up = through("low", "up", extra=False)
    low_c, up_c = through("low_c", "up_c", extra=True)
    return Planes(low, low_c, up, up_c)


def _relaxed(step: Step, state: State, planes: Sequence[Planes | None]) -> Planes:
    relaxation = state.relax(step)
    if isinstance(relaxation, Lines):
        return _through_lines(step, relaxation, planes)
    box, _ = interval_step(step, state.bounds, Semantics.SEARCH)
    first = planes[step.variables[0]]
    assert first is not None  # noqa: S101 (narrowing only)
    zero = box.lower.new_zeros(box.lower.shape[0], first.low.shape[1], *step.site.shape)
    return Planes(zero, box.lower, zero, box.upper)


def _through_lines(step: Step, lines: Lines, planes: Sequence[Planes | None]) -> Planes:
    def combine(slopes: tuple[Tensor | None, ...], constant: Tensor | None, low: bool) -> tuple[Tensor, Tensor]:
        A: Tensor | float = 0.0
        c: Tensor | float = 0.0 if constant is None else constant[:, 0]
        for slope, source in zip(slopes, step.sources, strict=True):
            if source is None or slope is None:
                continue
            p = planes[source]
            assert p is not None  # noqa: S101 (narrowing only)
            plus, minus = slope.clamp(min=0), slope.clamp(max=0)
            a, b = (p.low, p.up) if low else (p.up, p.low)
            a_c, b_c = (p.low_c, p.up_c) if low else (p.up_c, p.low_c)
            A = A + plus * a + minus * b
            c = c + plus[:, 0] * a_c + minus[:, 0] * b_c
        return A, c  # type: ignore[return-value]

    shape = step.site.shape
    first = planes[step.variables[0]]
    assert first is not None  # noqa: S101 (narrowing only)
    B, n = first.low.shape[:2]

    def full(A: Tensor | float, c: Tensor | float) -> tuple[Tensor, Tensor]:
        like = first.low
        return (torch.as_tensor(A, dtype=like.dtype).expand(B, n, *shape),
                torch.as_tensor(c, dtype=like.dtype).expand(B, *shape))

    return Planes(*full(*combine(lines.low, lines.low_c, True)), *full(*combine(lines.up, lines.up_c, False)))


def _concrete(state: State, planes: Planes | None) -> Interval:
    assert planes is not None  # noqa: S101 (narrowing only)
    shape = planes.low_c.shape
    low = _minimum(state, planes.low.flatten(2).mT).reshape(shape) + planes.low_c
    up = _minimum(state, -planes.up.flatten(2).mT).neg().reshape(shape) + planes.up_c
    return Interval(low, up)


def _minimum(state: State, slope: Tensor) -> Tensor:
    """Minimum over the region of ``slope (B, R, n) . x``."""
    program = state.program
    shapes = [program.shape(i) for i in program.inputs]
    parts = slope.split([math.prod(s) for s in shapes], dim=-1)
    shaped = tuple(p.reshape(*p.shape[:2], *s) for p, s in zip(parts, shapes, strict=True))
    return state.region.minimum(shaped if isinstance(state.region, Product) else shaped[0])
