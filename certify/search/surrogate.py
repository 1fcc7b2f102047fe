"""The network with a useful gradient everywhere, for searching only.

Sign, floor, comparisons and the like have the derivative 0 wherever they have one, so nothing tells
an attack where to go. Their values are kept, and a smooth curve lends its slope (the straight-through
idea of Bengio et al. 2013, arXiv:1308.3432, with a bell of heavy tails instead of a box). Such
operators are found by trying, not by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from certify.bounds.program import Program, Step


def flat_steps(program: Program) -> frozenset[int]:
    """Steps whose result changes with their operand while its gradient is zero."""
    return frozenset(
        step.index for step in program.steps if step is not None and not step.affine and _is_flat(step)
    )


def _is_flat(step: Step) -> bool:
    varying = [i for i, s in enumerate(step.sources) if s is not None]
    if len(varying) != 1 or step.site.shapes[varying[0]] != step.site.shape:
        return False
    count = max(1, step.like.new_empty(step.site.shape).numel())
    waves = torch.linspace(-3.0, 3.0, max(64, count), dtype=step.like.dtype, device=step.like.device)
    repeats = waves.numel() // count
    z = waves[: repeats * count].reshape(repeats, *step.site.shape).requires_grad_(True)
    operands = list(step.constants)
    operands[varying[0]] = z
    with torch.enable_grad():
        y = step.op.forward(step.site, *operands)
        moves = bool((y != y.flatten()[0]).any())
        if not y.requires_grad:
            return moves
        (gradient,) = torch.autograd.grad(y.sum(), z, allow_unused=True)
    return moves and (gradient is None or not bool(gradient.any()))


def outputs(program: Program, flat: frozenset[int], inputs: tuple[Tensor, ...]) -> Tensor:
    """The network's exact output at points ``(N, *shape)``, as ``(N, m)``, with lent gradients."""
    values: list[Any] = [None] * len(program.steps)
    for index, x in zip(program.inputs, inputs, strict=True):
        values[index] = x
    count = inputs[0].shape[0]
    for step in program.steps:
        if step is None:
            continue
        operands = step.operands(values)
        y = step.op.forward(step.site, *operands)
        if step.index in flat and torch.is_grad_enabled():
            y = _lend(y, next(o for o, s in zip(operands, step.sources, strict=True) if s is not None))
        values[step.index] = y if y.dim() > len(step.site.shape) else y.expand(count, *step.site.shape)
    found: Tensor = values[program.output]
    return found.reshape(count, -1)


def _lend(y: Tensor, z: Tensor) -> Tensor:
    """The value of ``y`` with the slope of an arc tangent in ``z`` of about the same extent."""
    y, still = y.detach().to(z.dtype), z.detach()
    scale = still.abs().mean() + 1e-6
    smooth = (y - y.mean()).abs().mean() * torch.atan(z / scale)
    return y + (smooth - smooth.detach())
