"""Rows bounded by planes in the model's inputs, for cutting boxes and choosing where to split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from certify.bounds.crown import Slopes, State, relax_with
from certify.bounds.rounding import round_down, summing_slack
from certify.bounds.rows import UnitRows, dense, per_example


class Planes(NamedTuple):
    """``row . result >= A . x + b`` for every x of the region, and the minimum of that.

    Attributes:
        A: ``(B, R, n)`` over all model inputs, flattened and joined in order.
        b: ``(B, R)``; in rigorous semantics all rounding has been subtracted.
        minimum: ``(B, R)`` lower bounds over the region; -inf where there is none.
    """

    A: Tensor
    b: Tensor
    minimum: Tensor


def planes(
    state: State, rows: Mapping[int, Tensor | UnitRows], slopes: Slopes | None = None
) -> Planes:
    """Planes below rows; arguments as in `row_bounds`."""
    sweep = state.sweep(rows)
    sweep.run(relax_with(state, slopes))
    program = state.program
    minimum = sweep.minimum(state.region, program.inputs)
    parts = []
    for index in program.inputs:
        found = sweep.coefficients.get(index)
        size = program.shape(index)
        like = sweep.bias.new_zeros(*sweep.bias.shape, *size) if found is None else dense(found)
        parts.append(like.flatten(2) if like.dim() > 2 else like.unsqueeze(-1))
    b = sweep.bias
    if sweep.error is not None:
        b = round_down(b - sweep.error * summing_slack(program))
    return Planes(torch.cat(parts, -1), torch.nan_to_num(b, nan=-torch.inf), minimum)


def input_box(state: State) -> tuple[Tensor, Tensor]:
    """Ends ``(B, n)`` of the box around all model inputs, flattened and joined in order."""
    boxes = [state.box(i) for i in state.program.inputs]
    return (
        torch.cat([per_example(b.lower) for b in boxes], 1),
        torch.cat([per_example(b.upper) for b in boxes], 1),
    )
