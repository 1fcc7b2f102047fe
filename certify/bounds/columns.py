"""Rows without the columns of elements that are always zero: half of a ReLU layer, as a rule.

A neuron whose interval is [0, 0] adds nothing to a row, whatever its coefficient. Its column is not
computed, so a product of two such layers shrinks on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from certify.bounds.program import Step
from certify.bounds.rows import UnitRows, per_example
from certify.ops.families import Lines, per_row
from certify.ops.record import Interval

_LARGEST = 2**22  # elements of a weight of which parts are copied
_WORTH_IT = 0.9  # share of live elements up to which leaving out the others pays


@dataclass(frozen=True, eq=False)
class ColumnRows:
    """Coefficients ``(B, R, m)`` of some elements of a step's result; the others are left out.

    Attributes:
        index: flat positions of those elements, ``(m,)``.
        shape: shape of the step's result, one example.
    """

    values: Tensor
    index: Tensor
    shape: tuple[int, ...]

    def dense(self) -> Tensor:
        """The rows as ``(B, R, *shape)``, with zeros for what was left out."""
        B, R, _ = self.values.shape
        flat = self.values.new_zeros(B, R, math.prod(self.shape))
        return flat.index_copy_(2, self.index, self.values).reshape(B, R, *self.shape)

    def mirrored(self) -> ColumnRows:
        """These rows, then their negations."""
        return replace(self, values=torch.cat((self.values, -self.values), 1))

    def take(self, values: Tensor | None) -> Tensor | None:
        """These elements of ``values (B or 1, *shape)``, as ``(B or 1, m)``; None stays None."""
        return None if values is None else per_example(values).index_select(1, self.index)


@dataclass
class Columns:
    """Which elements are alive on one region, and what was cut out for them. Local to one state.

    Everything is kept beside the object it was made from, and made again when that is another.
    """

    bounds: Sequence[Interval | None]
    _alive: dict[int, tuple[Interval, Tensor | None]] = field(default_factory=dict)
    _weights: dict[int, tuple[Tensor | None, Tensor | None, Tensor]] = field(default_factory=dict)
    _lines: dict[int, tuple[Lines, Tensor, Lines]] = field(default_factory=dict)

    def alive(self, index: int) -> Tensor | None:
        """Positions of the elements of a step that are not always zero; None for all."""
        box = self.bounds[index]
        if box is None:
            return None
        known = self._alive.get(index)
        if known is None or known[0] is not box:
            live = per_example((box.lower != 0) | (box.upper != 0)).any(0)
            live[0] |= ~live.any()  # keep one column where none is alive
            found = live.nonzero()[:, 0]
            few = len(found) <= _WORTH_IT * len(live)
            known = self._alive[index] = (box, found if few else None)
        return known[1]

    def weight(self, step: Step, out: Tensor | None, into: Tensor | None) -> Tensor:
        """The rows ``out`` and columns ``into`` of a linear step's weight."""
        known = self._weights.get(step.index)
        if known is None or known[0] is not out or known[1] is not into:
            weight: Any = step.constants[1]
            if out is not None:
                weight = weight.index_select(0, out)
            if into is not None:
                weight = weight.index_select(1, into)
            known = self._weights[step.index] = (out, into, weight)
        return known[2]

    def lines(self, step: Step, lines: Lines, index: Tensor) -> Lines:
        """Elementwise lines of the elements ``index`` alone."""
        known = self._lines.get(step.index)
        if known is not None and known[0] is lines and known[1] is index:
            return known[2]
        size, site = (len(index),), step.site

        def cut(t: Tensor | None) -> Tensor | None:
            if t is None:
                return None
            full = t.expand(*t.shape[:2], *site.shape)
            return per_row(full).index_select(2, index)

        found = replace(
            lines,
            site=replace(site, shapes=(size, *site.shapes[1:]), shape=size),
            low=tuple(map(cut, lines.low)),
            low_c=cut(lines.low_c),
            up=tuple(map(cut, lines.up)),
            up_c=cut(lines.up_c),
        )
        if all(t is None or t.shape[1] == 1 for t in (*lines.low, *lines.up)):
            self._lines[step.index] = (lines, index, found)
        return found

    def pull(self, step: Step, rows: Any) -> tuple[Any, ...] | None:
        """Rows through a step that keeps or gains left-out columns; None for any other."""
        site, source = step.site, step.sources[0]
        rest = (None,) * (len(step.sources) - 1)
        if step.op.name == "reshape" and isinstance(rows, ColumnRows):
            return (replace(rows, shape=site.shapes[0]), *rest)
        if not _matrix(step) or source is None:
            return None
        into = self.alive(source)
        out = rows.index if isinstance(rows, ColumnRows) else None
        if (out is None and into is None) or not isinstance(rows, Tensor | UnitRows | ColumnRows):
            return None
        if isinstance(rows, UnitRows):
            whole: Any = step.constants[1]
            flat = whole.index_select(0, rows.index.flatten()).index_select(1, into)
            values = flat.reshape(*rows.index.shape, flat.shape[1])
        else:
            weight = self.weight(step, out, into)
            values = (rows.values if isinstance(rows, ColumnRows) else per_row(rows)) @ weight
        if into is None:
            return (values.reshape(*values.shape[:2], *site.shapes[0]), *rest)
        return (ColumnRows(values, into, site.shapes[0]), *rest)


def elementwise(lines: Lines) -> bool:
    """Whether each result element depends on the same element of the one operand that varies."""
    return len(lines.low) == 1 and lines.site.shapes[0] == lines.site.shape


def _matrix(step: Step) -> bool:
    """One constant weight, small enough to keep parts of, times the whole operand."""
    if step.op.name != "linear" or len(step.constants) < 2:
        return False
    weight = step.constants[1]
    small = weight is not None and weight.numel() <= _LARGEST
    return small and step.sources[0] is not None and math.prod(step.site.shape[:-1]) == 1
