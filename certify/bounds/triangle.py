"""The linear programme behind the relaxations of a small network ("triangle", Ehlers 2017).

The solver's value is never the bound: its multipliers of ``z = W y + b`` are those of the
Lagrangian decomposition, which is evaluated with them, rounding accounted for. A solver that is
wrong, or stops early, costs tightness and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from certify.bounds.crown import State, pull_to_nonlinear
from certify.bounds.dual import Form, crown_multipliers
from certify.bounds.program import Step
from certify.bounds.rounding import summing_slack
from certify.bounds.rows import dense
from certify.core.errors import LimitExceeded
from certify.ops.families import Lines

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

LARGEST = 6000  # operands and results of nonlinear steps together
_INFINITE = 1e9  # a bound beyond it is no bound for the solver


@dataclass(frozen=True, eq=False)
class _Part:
    """Where the operand and the result of a nonlinear step lie among the unknowns."""

    step: Step
    operand: int
    result: int

    @property
    def size(self) -> int:
        return math.prod(self.step.site.shape)


def triangle_multipliers(
    state: State, rows: Mapping[int, Tensor]
) -> dict[int, tuple[Tensor, ...]]:
    """Multipliers of the decomposition, per free step ``(B, R, *shape)``, from the programme.

    Raises:
        LimitExceeded: the network is too large.
    """
    state = state.searching()
    with torch.no_grad():
        found = {i: tuple(t.clone() for t in group)
                 for i, group in crown_multipliers(state, rows, Form()).items()}
        for example in range(state.region.batch):
            programme = _Programme(state, rows, example)
            for row in range(next(iter(rows.values())).shape[1]):
                for index, mu in programme.solve(row).items():
                    if index in found:
                        found[index][0][example, row] = mu.to(found[index][0].dtype)
    return found


class _Programme:
    """One example's constraints; an objective per row."""

    def __init__(self, state: State, rows: Mapping[int, Tensor], example: int) -> None:
        program, self._example = state.program, example
        above = frozenset().union(*(program.ancestors[i] for i in rows))
        steps = [s for i in sorted(above) if (s := program.steps[i]) is not None and not s.affine]
        at, self._starts = 0, dict[int, int]()
        for index in program.inputs:
            self._starts[index] = at
            at += math.prod(program.shape(index))
        self._parts, self._others = list[_Part](), list[int]()
        for step in steps:
            size = math.prod(step.site.shape)
            if not has_lines(state, step):  # nothing but its range is known to the solver
                self._starts[step.index] = at
                self._others.append(step.index)
                at += size
                continue
            part = _Part(step, at, at + size)
            self._starts[step.index] = part.result
            self._parts.append(part)
            at += 2 * size
        if at > LARGEST:
            raise LimitExceeded(f"a linear programme of {at} unknowns (at most {LARGEST}); use "
                                "alpha, dual or decomposition")
        self._size = at
        self._objective, _, _ = affine_rows(state, rows, example, self._starts, at)
        self._build(state)

    def _build(self, state: State) -> None:
        from scipy.sparse import coo_matrix, csr_matrix, vstack

        equal, right, lines, limits = [], [], [], []
        self._low, self._high = np.full(self._size, -np.inf), np.full(self._size, np.inf)
        for index in (*state.program.inputs, *self._others):
            self._limit(state, index, self._starts[index])
        for part in self._parts:
            (source,) = part.step.variables
            every = every_element(state, source)
            matrix, offset, _ = affine_rows(
                state, every, self._example, self._starts, self._size)
            matrix = -matrix
            matrix[np.arange(part.size), part.operand + np.arange(part.size)] += 1
            equal.append(csr_matrix(matrix))
            right.append(offset)
            self._limit(state, source, part.operand)
            self._limit(state, part.step.index, part.result)
            for a, c, sign in lines_of(state, part.step, self._example):
                at = np.arange(part.size)
                ones = np.ones(part.size)
                lines.append(coo_matrix(  # sign (a z - y) <= -sign c
                    (np.concatenate([sign * a, -sign * ones]),
                     (np.concatenate([at, at]),
                      np.concatenate([part.operand + at, part.result + at]))),
                    shape=(part.size, self._size)).tocsr())
                limits.append(-sign * c)
        self._equal: csr_matrix = vstack(equal) if equal else csr_matrix((0, self._size))
        self._right = np.concatenate(right) if right else np.zeros(0)
        self._lines_matrix: csr_matrix = vstack(lines) if lines else csr_matrix((0, self._size))
        self._limits = np.concatenate(limits) if limits else np.zeros(0)
        keep = np.isfinite(self._limits)
        self._lines_matrix, self._limits = self._lines_matrix[keep], self._limits[keep]

    def _limit(self, state: State, index: int, start: int) -> None:
        box = state.box(index)
        for side, into in ((box.lower, self._low), (box.upper, self._high)):
            flat = side[min(self._example, len(side) - 1)].reshape(-1).double().numpy()
            flat = np.where(np.abs(flat) > _INFINITE, np.copysign(np.inf, flat), flat)
            into[start:start + len(flat)] = flat

    def solve(self, row: int) -> dict[int, Tensor]:
        """Multipliers of one row by step index; nothing where the solver gives up."""
        from scipy.optimize import linprog

        found = linprog(
            self._objective[row], A_ub=self._lines_matrix, b_ub=self._limits, A_eq=self._equal,
            b_eq=self._right, bounds=np.stack([self._low, self._high], 1), method="highs")
        if found.status != 0:
            return {}
        prices, at, mu = np.asarray(found.eqlin.marginals), 0, {}
        for part in self._parts:
            mu[part.step.index] = torch.from_numpy(
                prices[at:at + part.size].copy()).reshape(part.step.site.shape)
            at += part.size
        return mu


def every_element(state: State, index: int) -> dict[int, Tensor]:
    """Rows that select each element of a step's result."""
    shape = state.program.shape(index)
    unit = torch.eye(math.prod(shape), dtype=state.program.dtype, device=state.program.device)
    return {index: unit.reshape(1, -1, *shape).expand(state.region.batch, -1, *shape)}


def affine_rows(state: State, rows: Mapping[int, Tensor], example: int,
                starts: Mapping[int, int], size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows as functions of inputs and nonlinear results: coefficients ``(R, size)``, constants
    ``(R,)``, and what rounding may have taken from them, ``(R,)``, 0 in search semantics."""
    sweep = pull_to_nonlinear(state, rows)
    count = sweep.bias.shape[1]
    found = np.zeros((count, size))
    for index, part in sweep.coefficients.items():
        whole = dense(part)
        flat = whole[min(example, len(whole) - 1)].reshape(count, -1).double().cpu().numpy()
        found[:, starts[index]:starts[index] + flat.shape[1]] += flat
    at = min(example, len(sweep.bias) - 1)
    error = np.zeros(count)
    if sweep.error is not None:
        error = (sweep.error[at].double() * summing_slack(state.program)).cpu().numpy()
    return found, sweep.bias[at].double().cpu().numpy(), error


def has_lines(state: State, step: Step) -> bool:
    """Whether a step is a function of one element with lines around it."""
    if not step.curve.elementwise or len(step.variables) > 1:
        return False
    return isinstance(state.relax(step), Lines)


def per_element(step: Step, values: Tensor | None, example: int) -> np.ndarray:
    """One example's numbers ``(n,)`` of a relaxation's ``(B or 1, 1, *shape)``; 0 for None."""
    if values is None:
        return np.zeros(math.prod(step.site.shape))
    one = values[min(example, len(values) - 1), 0]
    return one.expand(step.site.shape).reshape(-1).double().cpu().numpy()


def lines_of(state: State, step: Step, example: int) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Lines below (sign +1) and above (-1) a function of one element: slopes and intercepts."""
    operands = step.operands(state.bounds)
    ranges = step.curve.slopes(step.site, *operands) if step.curve.slopes else ()
    choices: list[tuple[Tensor, ...] | None] = [None]
    choices += [tuple(s.low for s in ranges), tuple(s.high for s in ranges)] if ranges else []
    found = []
    for slopes in choices:
        relaxed = step.curve.relax(step.site, slopes, *operands)
        if not isinstance(relaxed, Lines):
            continue
        for a, c, sign in ((relaxed.low[0], relaxed.low_c, 1.0),
                           (relaxed.up[0], relaxed.up_c, -1.0)):
            found.append((per_element(step, a, example), per_element(step, c, example), sign))
    return found
