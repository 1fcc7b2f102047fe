"""The network with a useful gradient everywhere, for searching only.

Sign, floor, comparisons and the like have the derivative 0 wherever they have one, so nothing
tells an attack where to go. Their values are kept, and a smooth curve lends its slope (the
straight-through idea of Bengio et al. 2013, arXiv:1308.3432, with a bell of heavy tails instead of
a box). Such operators are found by trying, not by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from certify.bounds.program import Program, Step


def flat_steps(program: Program) -> frozenset[int]:
    """Steps whose result changes with their operand while its gradient is zero."""
    return frozenset(
        step.index
        for step in program.steps
        if step is not None and not step.affine and _is_flat(step)
    )


def _is_flat(step: Step) -> bool:
    varying = [i for i, s in enumerate(step.sources) if s is not None]
    if len(varying) != 1 or step.site.shapes[varying[0]] != step.site.shape:
        return False
    count = max(1, step.like.new_empty(step.site.shape).numel())
    waves = torch.linspace(
        -3.0, 3.0, max(64, count), dtype=step.like.dtype, device=step.like.device
    )
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


def logits(program: Program) -> int:
    """The step whose order of elements is that of the outputs, before a softmax flattens it.

    The output's own step where there is no softmax over all of it at the end.
    """
    index = program.output
    while (step := program.steps[index]) is not None and step.op.name in ("reshape", "softmax"):
        size = math.prod(step.site.shape)
        if step.op.name == "softmax":
            whole = step.site.shape[step.site.attrs["axis"]] == size and step.sources[0] is not None
            plain = whole and step.site.attrs.get("mask") is None
            return step.variables[0] if plain else program.output
        index = step.variables[0]
    return program.output


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A network to search on.

    Attributes:
        flat: steps that are lent a gradient.
        logits: see `logits`.
    """

    program: Program
    flat: frozenset[int]
    logits: int

    def run(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Exact outputs at points ``(N, *shape)``, and the logits, ``(N, m)`` each."""
        values: list[Any] = [None] * len(self.program.steps)
        for index, x in zip(self.program.inputs, inputs, strict=True):
            values[index] = x
        count = inputs[0].shape[0]
        for step in self.program.steps:
            if step is None:
                continue
            y = step.op.forward(step.site, *step.operands(values))
            if step.index in self.flat and torch.is_grad_enabled():
                y = _lend(y, values[step.variables[0]])
            shape = step.site.shape
            values[step.index] = y if y.dim() > len(shape) else y.expand(count, *shape)
        found, before = values[self.program.output], values[self.logits]
        return found.reshape(count, -1), before.reshape(count, -1)


def surrogate(program: Program) -> Surrogate:
    """``program`` with what searching needs to know about it."""
    return Surrogate(program, flat_steps(program), logits(program))


def _lend(y: Tensor, z: Tensor) -> Tensor:
    """The value of ``y`` with the slope of an arc tangent in ``z`` of about the same extent."""
    y, still = y.detach().to(z.dtype), z.detach()
    scale = still.abs().mean() + 1e-6
    smooth = (y - y.mean()).abs().mean() * torch.atan(z / scale)
    return y + (smooth - smooth.detach())
