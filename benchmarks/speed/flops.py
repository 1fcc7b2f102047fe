"""How many floating-point operations a bound takes: by definition, and as run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from certify.bounds.alpha import Alpha
from certify.bounds.crown import State
from certify.bounds.methods import Method
from certify.bounds.program import Program
from certify.ops.record import AffineRule


def by_definition(state: State, method: Method, alpha: Alpha, rows: int) -> float:
    """Of the passes that were run, had each been a full matrix pass: 2 per multiply-add.

    An interval pass is two passes forward (centres, radii), a forward sweep two for every input
    element. A backward pass costs the affine steps it crosses once per row; intermediate bounds
    take two rows per element. An optimiser's iteration is a backward pass and its gradient, which
    is twice that; that it may stop early is not counted.
    """
    program = state.program
    columns = sum(math.prod(program.shape(i)) for i in program.inputs) if method.forward else 0
    total = 2.0 * (1 + columns) * _crossed(program, program.output)
    for index, units in state.recipe.items():
        elements = sum(unit.index.numel() for unit in units if unit.slopes is None)
        optimised = sum(unit.index.numel() for unit in units if unit.slopes is not None)
        passes = elements + optimised * (1 + 3 * alpha.unit_iterations)
        total += 2.0 * passes * _crossed(program, index)
    if "alpha" in method.passes:
        total += (1 + 3 * alpha.iterations) * rows * _crossed(program, program.output)
    elif "backward" in method.passes:
        total += rows * _crossed(program, program.output)
    return total


def as_run(call: Callable[[], Any]) -> float:
    """Of the matrix products and convolutions that torch really ran: windows instead of whole
    feature maps make it less than `by_definition`."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def _crossed(program: Program, index: int) -> float:
    """Operations of the affine steps above a step, itself included, for one vector."""
    total = 0
    for i in program.ancestors[index]:
        step = program.steps[i]
        if step is not None and isinstance(step.rule, AffineRule):
            total += 2 * math.prod(step.site.shape) * step.rule.summands(step.site)[0]
    return float(total)
