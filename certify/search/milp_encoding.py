"""A network of affine steps and two-piece units as rows over its inputs and undecided units.

Units whose operand has one sign over the whole region are merged into the affine maps, exactly as
the backward pass of the bounds does it (Tjeng, Xiao and Tedrake, 2019). Rounding of all merged maps
is part of the rows' errors, so the rows hold for the network itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from certify.bounds.budget import Limits
from certify.bounds.crown import Plan, State, tighten
from certify.bounds.program import Program, Step, prepare
from certify.bounds.rounding import summing_slack
from certify.bounds.rows import dense
from certify.core.outward import UNIT, dot_error
from certify.core.region import Product
from certify.core.region_box import BoxShaped
from certify.ops.record import Interval
from certify.search.problem import Problem
from certify.search.safe_lp import Affine, Curves, Floats, Ranges


@dataclass(frozen=True, eq=False)
class Encoding:
    """A problem as rows; see `certify.search.safe_lp`.

    Attributes:
        rows: first the specification's rows g (a counterexample has all g of a clause <= 0),
            then the operands of the undecided units in topological order.
        ranges: over the whole region.
        group: ``(K,)`` the clause of each row of the specification.
        strict: ``(K,)``.
    """

    rows: Affine
    curves: Curves
    ranges: Ranges
    group: np.ndarray
    strict: np.ndarray

    @property
    def inputs(self) -> int:
        """How many inputs there are."""
        return len(self.ranges.x_low)

    @property
    def units(self) -> int:
        """How many units are undecided."""
        return len(self.ranges.z_low)

    @cached_property
    def clauses(self) -> tuple[np.ndarray, ...]:
        """Row numbers of each clause."""
        return tuple(np.flatnonzero(self.group == k) for k in range(int(self.group[-1]) + 1))

    def values(self, x: Floats) -> tuple[Floats, Floats]:
        """Rows of the specification ``(K,)`` and operands ``(m,)`` at an input, in plain floats."""
        count, n = len(self.group), self.inputs
        v = np.concatenate([x, np.zeros(self.units)])
        z = np.zeros(self.units)
        for i in range(self.units):
            z[i] = self.rows.M[count + i] @ v + self.rows.offset[count + i]
            v[n + i] = z[i] * (self.curves.left[i] if z[i] < 0 else self.curves.right[i])
        return self.rows.M[:count] @ v + self.rows.offset[:count], z


@dataclass(frozen=True, eq=False)
class _Merged:
    """Decided units as the straight lines they are; the others are left out and written down."""

    slope: Tensor
    undecided: Tensor
    index: int
    seen: dict[int, Tensor]

    def backward(self, A: Tensor) -> tuple[tuple[Tensor | None, ...], Tensor]:
        """See `Relaxation.backward`; what is written down completes the inequality."""
        self.seen[self.index] = A * self.undecided.unsqueeze(1)
        return (A * self.slope.unsqueeze(1),), A.new_zeros(A.shape[:2])

    def weight(self, magnitudes: tuple[Tensor | None, ...]) -> Tensor:
        """See `Relaxation.weight`."""
        slope, size = self.slope.abs(), magnitudes[0]
        return slope * (0.0 if size is None else size)


def slopes(step: Step) -> tuple[float, float] | None:
    """Both slopes of a convex function of two straight halves through 0; None for others."""
    if step.curve.halves is None or len(step.sources) > 1:
        return None
    left, right = (float(s) for s in step.curve.halves(step.site, step.like))
    return (left, right) if left <= right else None


def curved(program: Program) -> list[Step]:
    """Steps that are not affine, of those the output depends on."""
    above = program.ancestors[program.output]
    return [s for s in program.steps if s is not None and not s.affine and s.index in above]


def is_encodable(problem: Problem) -> bool:
    """Whether the region is a box and every nonlinear step one of two straight halves."""
    region = problem.region
    parts = region.parts if isinstance(region, Product) else (region,)
    if not all(isinstance(part, BoxShaped) for part in parts):
        return False
    program = prepare(problem.graph, torch.float64, problem.device)
    return all(slopes(step) is not None for step in curved(program))


def bounded(problem: Problem, limits: Limits) -> State:
    """Rigorous intervals of every step in float64: known ones, or those of CROWN.

    Raises:
        OutOfTime: the deadline passed.
    """
    program = prepare(problem.graph, torch.float64, problem.device)
    known = problem.known
    plan = Plan(refine=known is None, known=None if known is None else _double(known))
    return tighten(program, problem.region, plan, problem.semantics, limits)


def _double(known: list[Interval | None]) -> list[Interval | None]:
    return [None if k is None else Interval(k.lower.double(), k.upper.double()) for k in known]


def undecided(state: State) -> int:
    """How many units have both signs over the region."""
    steps = curved(state.program)
    return sum(int(_open(state.box(s.variables[0])).sum()) for s in steps)


def _open(box: Interval) -> Tensor:
    return ~((box.lower >= 0) | (box.upper <= 0))


class _Encoder:
    """Builds an encoding; columns are all inputs and then the undecided units of every step."""

    def __init__(self, problem: Problem, state: State) -> None:
        self.problem, self.state, self.program = problem, state, state.program
        self.steps = curved(self.program)
        self.picked = {s.index: _open(state.box(s.variables[0])).flatten() for s in self.steps}

    def build(self) -> Encoding:
        rows = self.problem.rows
        target = {self.program.output: torch.from_numpy(rows.y.copy())}
        if rows.x is not None:
            sizes = [math.prod(self.program.shape(i)) for i in self.program.inputs]
            parts = torch.split(torch.from_numpy(rows.x.copy()), sizes, dim=-1)
            for i, part in zip(self.program.inputs, parts, strict=True):
                target[i] = target[i] + part if i in target else part
        found = [self._minus(self._pulled(target), rows.bound.reshape(-1))]
        for step in self.steps:
            picked = self.picked[step.index]
            if bool(picked.any()):
                unit = torch.eye(len(picked), dtype=torch.float64)[picked.cpu()]
                found.append(self._pulled({step.variables[0]: unit[None]}))
        whole = Affine(
            np.concatenate([f.M for f in found]),
            np.concatenate([f.offset for f in found]),
            np.concatenate([f.error for f in found]),
        )
        return Encoding(whole, self._curves(), self._ranges(), rows.group, rows.strict)

    def _pulled(self, rows: dict[int, Tensor]) -> Affine:
        """Rows ``(1, R, n)`` by step index, pulled back to the inputs and the undecided units.

        Decided units are lines and every other step is affine, so what the pass finds is an
        equation: it holds for the negated rows as well, with the same error.
        """
        device = self.program.device
        shaped = {
            i: r.to(device).reshape(*r.shape[:2], *self.program.shape(i)) for i, r in rows.items()
        }
        sweep = self.state.sweep(shaped)
        sweep.columns = None
        seen: dict[int, Tensor] = {}
        with torch.no_grad():
            sweep.run(lambda step: self._merged(step, seen))
        if sweep.error is None:
            raise TypeError("a search needs rigorous semantics")
        count, parts = sweep.bias.shape[1], []
        for i in self.program.inputs:
            part = sweep.coefficients.get(i)
            size = math.prod(self.program.shape(i))
            parts.append(
                sweep.bias.new_zeros(count, size)
                if part is None
                else dense(part)[0].reshape(count, -1)
            )
        for step in self.steps:
            picked = self.picked[step.index]
            if step.index in seen:
                parts.append(seen[step.index][0].reshape(count, -1)[:, picked])
            else:
                parts.append(sweep.bias.new_zeros(count, int(picked.sum())))
        error = sweep.error[0] * (summing_slack(self.program) * (1 + dot_error(1)))
        return Affine(_numpy(torch.cat(parts, 1)), _numpy(sweep.bias[0]), _numpy(error))

    def _merged(self, step: Step, seen: dict[int, Tensor]) -> _Merged:
        box = self.state.box(step.variables[0])
        left, right = _halves(step)
        both = _open(box)
        slope = torch.where(box.lower >= 0, right, left).to(box.lower.dtype)
        slope = torch.where(both, 0.0, slope)
        return _Merged(slope, both.to(slope.dtype), step.index, seen)

    @staticmethod
    def _minus(rows: Affine, bound: Floats) -> Affine:
        offset = rows.offset - bound
        return replace(rows, offset=offset, error=rows.error + 2 * UNIT * np.abs(offset))

    def _curves(self) -> Curves:
        parts: list[tuple[Floats, Floats, Floats]] = []
        for step in self.steps:
            count = int(self.picked[step.index].sum())
            left, right = _halves(step)
            stray = np.zeros(count)
            error = self.state.errors.get(step.index)
            if error is not None:
                whole = error.expand(1, *self.program.shape(step.index)).flatten()
                stray = _numpy(whole[self.picked[step.index]])
            parts.append((np.full(count, left), np.full(count, right), stray))
        return Curves(*(_joined([p[k] for p in parts]) for k in range(3)))

    def _ranges(self) -> Ranges:
        ends: list[list[Floats]] = [[], []]
        for step in self.steps:
            box = self.state.box(step.variables[0])
            for into, end in zip(ends, (box.lower, box.upper), strict=True):
                into.append(_numpy(end.flatten()[self.picked[step.index]]))
        boxes = [self.state.box(i) for i in self.program.inputs]
        return Ranges(
            _joined([_numpy(b.lower.flatten()) for b in boxes]),
            _joined([_numpy(b.upper.flatten()) for b in boxes]),
            _joined(ends[0]),
            _joined(ends[1]),
        )


def _halves(step: Step) -> tuple[float, float]:
    found = slopes(step)
    if found is None:
        raise TypeError(f"{step.node.name} is not of two straight halves")
    return found


def _joined(parts: list[Floats]) -> Floats:
    return np.concatenate(parts) if parts else np.zeros(0)


def _numpy(t: Tensor) -> Floats:
    return np.ascontiguousarray(t.detach().cpu().numpy())


def encode(problem: Problem, state: State) -> Encoding | None:
    """The problem as rows, or None where something is not finite.

    Args:
        problem: one that `is_encodable`.
        state: from `bounded`.
    """
    found = _Encoder(problem, state).build()
    arrays = (
        *vars(found.rows).values(),
        *vars(found.ranges).values(),
        found.curves.stray,
    )
    return found if all(np.isfinite(a).all() for a in arrays) else None
