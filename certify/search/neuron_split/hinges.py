"""Bounds in plain floats that are asked for again and again with other slopes.

What an ascent repeats is one backward pass per step. For ReLU only the lower slope changes between
passes, so the rest is kept, and one function with its own derivative replaces a dozen small ones.
Nothing here proves anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from certify.bounds.backward import Relax, Sweep
from certify.bounds.crown import Slopes, State, relax_with
from certify.bounds.program import Step
from certify.bounds.rows import dense
from certify.core.region_box import BoxShaped
from certify.ops.families import Lines
from certify.ops.record import Relaxation
from certify.ops.relu import ReluLines


class _Bend(torch.autograd.Function):
    """Rows ``A (N, 1, *shape)`` through ``low x <= relu(x) <= up x + c``: new rows and the bias."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, low: Tensor, up: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """New rows ``(N, 1, *shape)`` and the bias ``(N, 1)``."""
        slope = torch.where(A > 0, low, up)
        ctx.save_for_backward(A, slope, c)
        bias = (A.clamp(max=0) * c).flatten(1).sum(1, keepdim=True)
        return A * slope, bias

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        """Derivatives by A and low."""
        A, slope, c = ctx.saved_tensors
        by_rows, by_bias = given
        wide = by_bias.reshape(-1, *(1,) * (A.dim() - 1))
        by_a = by_low = None
        if ctx.needs_input_grad[0]:
            by_a = torch.addcmul(by_rows * slope, wide, torch.where(A > 0, 0.0, c))
        if ctx.needs_input_grad[1]:
            by_low = by_rows * A.clamp(min=0)
        return by_a, by_low, None, None


class _Corner(torch.autograd.Function):
    """The least ``A . x`` of rows ``(N, 1, *shape)`` over boxes; its derivative is the corner."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """``(N, 1)``."""
        corner = torch.where(A > 0, low, high)
        ctx.save_for_backward(corner)
        return (A * corner).flatten(1).sum(1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        """Derivative by A."""
        (corner,) = ctx.saved_tensors
        return given[0].reshape(-1, *(1,) * (corner.dim() - 1)) * corner, None, None


@dataclass(frozen=True)
class _Hinge:
    """A ReLU with slopes of its own and everything else from its default lines."""

    lines: ReluLines
    low: Tensor

    def backward(self, A: Tensor) -> tuple[tuple[Tensor | None, ...], Tensor]:
        """See `Relaxation.backward`."""
        (up,), c = self.lines.up, self.lines.up_c
        if up is None or c is None:
            raise TypeError("ReLU lines need an upper slope and intercept")
        rows, bias = _Bend.apply(A, self.low, up, c)  # type: ignore[no-untyped-call]
        return (rows,), bias

    def weight(self, magnitudes: tuple[Tensor | None, ...]) -> Tensor:
        """See `Relaxation.weight`."""
        return Lines.weight(self.lines, magnitudes)


class Hinges:
    """What all passes over one batch of sub-problems share.

    Attributes:
        state: of the sub-problems, in search semantics.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self._lines: dict[int, ReluLines | None] = {}

    def bounds(self, rows: Mapping[int, Tensor], slopes: Slopes) -> Tensor:
        """Lower bounds ``(N, 1)`` of one row ``(N, 1, *shape)`` each; see `row_bounds`."""
        sweep = self.state.sweep(rows)
        sweep.columns = None
        sweep.run(self._relaxing(slopes))
        return self._least(sweep)

    def _relaxing(self, slopes: Slopes) -> Relax:
        plain = relax_with(self.state, slopes)

        def relax(step: Step) -> Relaxation:
            lines = self._kept(step) if step.index in slopes else None
            if lines is not None:
                return _Hinge(lines, slopes[step.index][0])
            found: Relaxation = plain(step)
            return found

        return relax

    def _kept(self, step: Step) -> ReluLines | None:
        """The default lines of a ReLU; None for others, or where 0 times infinity may turn up."""
        if step.index not in self._lines:
            found = self.state.relax(step)
            good = isinstance(found, ReluLines) and found.up_c is not None
            good = good and bool(found.up_c.isfinite().all())  # type: ignore[attr-defined]
            self._lines[step.index] = found if good else None  # type: ignore[assignment]
        return self._lines[step.index]

    def _least(self, sweep: Sweep) -> Tensor:
        state, inputs = self.state, self.state.program.inputs
        found = sweep.coefficients.get(inputs[0]) if len(inputs) == 1 else None
        if found is None or not isinstance(state.region, BoxShaped):
            return sweep.minimum(state.region, inputs)
        low, high = (t.unsqueeze(1) for t in state.box(inputs[0]))
        value: Tensor = _Corner.apply(dense(found), low, high)  # type: ignore[no-untyped-call]
        inf = torch.inf
        return torch.nan_to_num(value + sweep.bias, nan=-inf, posinf=inf, neginf=-inf)
