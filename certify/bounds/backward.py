"""Backward linear bound propagation (CROWN, Zhang et al. 2018; on graphs, Xu et al. 2020).

Rows start as coefficients of some step's result and are pulled back, step by step, to the model's
inputs. Only lower bounds are computed: an upper bound is a lower bound of the negated row. Branches
accumulate before their common source is visited, so residual connections cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from certify.bounds.budget import Limits
from certify.bounds.columns import ColumnRows, Columns, elementwise
from certify.bounds.fused import box_rows, dot_rows, relax_rows
from certify.bounds.patches import PatchRows, pull_patches, relax_patches
from certify.bounds.program import Program, Step
from certify.bounds.rounding import (
    UNIT64,
    absorbed_error,
    gamma,
    magnitude,
    relaxed_error,
    round_down,
    summing_slack,
    unit_of,
)
from certify.bounds.rows import UnitRows, dense, per_example, pull_unit_rows
from certify.bounds.threads import threads_for
from certify.core.region import Region
from certify.core.semantics import Semantics
from certify.ops.families import Lines, per_row
from certify.ops.record import Interval, Relaxation

Rows = Any  # Tensor (B, R, *shape), UnitRows, PatchRows or ColumnRows
Relax = Callable[[Step], Relaxation]


@dataclass
class Sweep:
    """One backward pass: ``row . result >= sum_i coefficients_i . value_i + bias - error``.

    Attributes:
        coefficients: by step index, what is still to be pulled back.
        bias, error: ``(B, R)``; ``error`` is None in search semantics.
        mirrored: the rows also stand for their negations, which are appended at the first
            relaxation (up to there they are simply the negative).
        columns: where given, elements that are always zero are left out.
    """

    program: Program
    bounds: Sequence[Interval | None]
    errors: Mapping[int, Tensor]
    semantics: Semantics
    limits: Limits
    bias: Tensor
    error: Tensor | None
    coefficients: dict[int, Rows] = field(default_factory=dict)
    mirrored: bool = False
    columns: Columns | None = None

    def run(self, relax: Relax, stop: frozenset[int] = frozenset()) -> None:
        """Pull everything back to the model's inputs, or to steps in ``stop``."""
        if stop or torch.is_grad_enabled():  # whoever asked wants every coefficient
            self.columns = None
        with threads_for(self.bias.numel() * self.program.operations):
            self._run(relax, stop)

    def _run(self, relax: Relax, stop: frozenset[int]) -> None:
        while (step := self._next(stop)) is not None:
            self.limits.check()
            if not step.affine and self.mirrored:
                self._mirror()
            rows = self.coefficients.pop(step.index)
            if step.affine:
                self._affine(step, rows)
            else:
                self._relaxed(step, rows, relax(step))

    def _next(self, stop: frozenset[int]) -> Step | None:
        """The last step in order that still has to be pulled back."""
        ready = [i for i in self.coefficients if i not in stop and self.program.steps[i]]
        return self.program.steps[max(ready)] if ready else None

    def minimum(self, region: Region, inputs: Sequence[int]) -> Tensor:
        """Lower bounds ``(B, R)`` of the rows, with everything pulled back to ``inputs``."""
        if self.mirrored:
            self._mirror()
        found = [self.coefficients.get(i) for i in inputs]
        if len(found) == 1 and found[0] is not None:
            quick = box_rows(found[0], region)
            if quick is not None:
                return self._close(quick)
        parts = tuple(None if rows is None else dense(rows) for rows in found)
        if all(part is None for part in parts):
            return self._close(torch.zeros_like(self.bias))
        if self.semantics.rigorous:  # exact in float64 whatever the pass ran in; rounded down after
            parts = tuple(None if part is None else part.double() for part in parts)
        whole: Any = parts if len(parts) > 1 else parts[0]
        return self._close(region.minimum(whole, rigorous=self.semantics.rigorous))

    def box_minimum(self) -> Tensor:
        """Lower bounds ``(B, R)`` over the intervals of the steps where the pass stopped."""
        if self.mirrored:
            self._mirror()
        total = torch.zeros_like(self.bias)
        for index, rows in self.coefficients.items():
            A, box = dense(rows), self.bounds[index]
            if box is None:
                raise TypeError(f"step {index} has no bounds to concretise rows on")
            lower, upper = per_example(box.lower), per_example(box.upper)
            flat = per_row(A)
            found = _dot(flat.clamp(min=0), lower) + _dot(flat.clamp(max=0), upper)
            if self.semantics.rigorous:
                size = _dot(flat.abs(), torch.maximum(lower.abs(), upper.abs()))
                found = found - size * (2 * gamma(flat.shape[-1] + 4, self._unit))
            total = total + found
        return self._close(total)

    def _close(self, total: Tensor) -> Tensor:
        total = total.to(self.bias.dtype)
        result = total + self.bias
        if self.error is not None:
            result = round_down(
                result - self.error * summing_slack(self.program) - total.abs() * (2 * self._unit)
            )
        return torch.nan_to_num(result, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)

    def _charge(self, rows: Rows, offset: Tensor | None, error: Tensor | None) -> None:
        """Add ``A . offset``, and subtract ``|A| . error`` and what the first sum may have lost."""
        if self.error is None:
            error = None
        if offset is None and error is None:
            return
        rigorous = self.error is not None and offset is not None
        terms = 1 if offset is None else offset[0].numel() + 4
        wide = gamma(terms, UNIT64) + 4 * self._unit  # summed in float64, then rounded
        quick = dot_rows(rows, offset, _plus(error, offset, wide) if rigorous else error)
        signed: Tensor | None
        size: Tensor | None
        if quick is not None:
            signed, size = (t.to(self.bias.dtype) for t in quick)
        else:
            signed = None if offset is None else _row_dot(rows, offset)
            error = _plus(error, offset, gamma(terms, self._unit)) if rigorous else error
            size = None if error is None else _size_dot(rows, error)
        if offset is not None and signed is not None:
            self._add_bias(signed)
        if self.error is not None and size is not None:
            self.error = self.error + size

    def _affine(self, step: Step, rows: Rows) -> None:
        offset = None if step.offset is None else step.offset.unsqueeze(0)
        error = self.errors.get(step.index)
        if isinstance(rows, ColumnRows):
            self._charge(rows.values, rows.take(offset), rows.take(error))
        else:
            self._charge(rows, offset, error)
        parts = None if self.columns is None else self.columns.pull(step, rows)
        if parts is None and isinstance(rows, UnitRows | PatchRows):
            parts = pull_patches(step, rows)
            if parts is None and isinstance(rows, UnitRows):
                parts = pull_unit_rows(step, rows)
        if parts is None:
            parts = step.linear.transpose(step.site, dense(rows), *step.constants)
        self._spread(step, parts)

    def _relaxed(self, step: Step, rows: Rows, relaxation: Relaxation) -> None:
        rows = dense(rows) if isinstance(rows, UnitRows) else rows
        lines = relaxation if isinstance(relaxation, Lines) else None
        if isinstance(rows, ColumnRows):
            if lines is not None and self.columns is not None and elementwise(lines):
                self._relaxed_columns(step, rows, lines)
                return
            rows = rows.dense()
        found = relax_rows(rows, lines, self._cost(step, relaxation, True)) if lines else None
        size: Tensor | None
        if found is not None:
            part, bias, size = found
            parts: Sequence[Rows | None] = (part,)
            bias, size = bias.to(self.bias.dtype), size.to(self.bias.dtype)
        else:
            cost = self._cost(step, relaxation, False)
            size = None if cost is None else _size_dot(rows, cost)
            windows = relax_patches(rows, lines) if lines and isinstance(rows, PatchRows) else None
            if windows is not None:
                parts, bias = (windows[0],), windows[1]
            else:
                parts, bias = relaxation.backward(dense(rows))
        self._relaxed_bias(step, lines, bias, size)
        self._spread(step, parts)

    def _relaxed_columns(self, step: Step, rows: ColumnRows, lines: Lines) -> None:
        """As `_relaxed` for rows that leave out what is always zero before and after the step."""
        if self.columns is None:
            raise TypeError("rows leave out columns nobody knows of")
        few = self.columns.lines(step, lines, rows.index)
        cost = rows.take(self._cost(step, lines, False))
        found = relax_rows(rows.values, few, cost)
        size: Tensor | None
        if found is not None:
            values, bias, size = found
            bias, size = bias.to(self.bias.dtype), size.to(self.bias.dtype)
        else:
            size = None if cost is None else _size_dot(rows.values, cost)
            (first, *_), bias = few.backward(rows.values)
            values = torch.zeros_like(rows.values) if first is None else first
        self._relaxed_bias(step, lines, bias, size)
        part = ColumnRows(values, rows.index, step.site.shapes[0])
        self._spread(step, (part, *(None,) * (len(step.sources) - 1)))

    def _relaxed_bias(
        self, step: Step, lines: Lines | None, bias: Tensor, size: Tensor | None
    ) -> None:
        if self.error is not None:
            if lines is not None and lines.absorbs:
                lost = absorbed_error(step, bias, self.bounds)
                self.error = self.error + lost
            if size is not None:
                self.error = self.error + size
        self._add_bias(bias)

    def _cost(self, step: Step, relaxation: Relaxation, wide_sums: bool) -> Tensor | None:
        """Error per unit of |A| of a relaxation, ``(B, *shape)``; None for zero."""
        if self.error is None:
            return None
        stray = self.errors.get(step.index)
        if getattr(relaxation, "absorbs", False):
            return stray
        own = relaxed_error(step, relaxation, self.bounds, wide_sums)
        return (own if stray is None else own + stray).expand(-1, *step.site.shape)

    def _spread(self, step: Step, parts: Sequence[Rows | None]) -> None:
        for source, part in zip(step.sources, parts, strict=True):
            if source is not None and part is not None:
                self._accumulate(source, part)

    def _accumulate(self, source: int, part: Rows) -> None:
        old = self.coefficients.get(source)
        if old is None:
            self.coefficients[source] = part
            return
        total: Rows = None
        if isinstance(old, PatchRows) and isinstance(part, PatchRows):
            total = old.plus(part)
        if total is None:
            total = dense(old) + dense(part)
        self.coefficients[source] = total
        box = self.bounds[source]
        if self.error is not None and box is not None:
            self.error = self.error + _size_dot(total, magnitude(box)) * (2 * self._unit)

    def _add_bias(self, term: Tensor) -> None:
        self.bias = self.bias + term
        if self.error is not None:
            self.error = self.error + self.bias.abs() * (2 * self._unit)

    @property
    def _unit(self) -> float:
        return unit_of(self.program.dtype)

    def _mirror(self) -> None:
        self.mirrored = False
        for index, rows in self.coefficients.items():
            if isinstance(rows, PatchRows | ColumnRows):
                self.coefficients[index] = rows.mirrored()
                continue
            A = dense(rows)
            self.coefficients[index] = torch.cat((A, -A), 1)
        self.bias = torch.cat((self.bias, -self.bias), 1)
        if self.error is not None:
            self.error = torch.cat((self.error, self.error), 1)


def _plus(error: Tensor | None, offset: Tensor | None, factor: float) -> Tensor | None:
    """``error + factor |offset|``, None for zero."""
    if offset is None:
        return error
    extra = offset.abs() * factor
    return extra if error is None else error + extra


def _row_dot(rows: Rows, x: Tensor) -> Tensor:
    """Any kind of rows times ``x (B or 1, *shape)``, ``(B, R)``."""
    if isinstance(rows, UnitRows):
        return rows.pick(x)
    if isinstance(rows, PatchRows):
        return rows.dot(x)
    return _dot(per_row(rows), per_example(x))


def _size_dot(rows: Rows, x: Tensor) -> Tensor:
    """As `_row_dot` with absolute coefficients."""
    return _row_dot(rows if isinstance(rows, UnitRows) else rows.abs(), x)


def _dot(A: Tensor, x: Tensor) -> Tensor:
    """``A (B,R,n) . x (B or 1, n)`` -> ``(B,R)``."""
    if x.shape[0] == 1:
        return torch.matmul(A, x[0])
    return torch.matmul(A, x.unsqueeze(-1)).squeeze(-1)


def start(
    program: Program,
    bounds: Sequence[Interval | None],
    errors: Mapping[int, Tensor],
    semantics: Semantics,
    limits: Limits,
    rows: Mapping[int, Rows],
) -> Sweep:
    """A new backward pass from ``rows``, coefficients by step index."""
    first = next(iter(rows.values()))
    bias = first.zeros() if isinstance(first, UnitRows) else first.new_zeros(first.shape[:2])
    error = torch.zeros_like(bias) if semantics.rigorous else None
    return Sweep(program, bounds, errors, semantics, limits, bias, error, dict(rows))
