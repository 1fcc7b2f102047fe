"""TAPS: the first part of a network is bounded, the rest attacked from the boxes in between.

Mao et al. 2023. The attack has no gradient towards the box; a connector stands in for one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from certify.bounds.program import Program
from certify.core.errors import Unsupported
from certify.training.attack import Ascent, ascend
from certify.training.bounder import Analysis, margins_of

_SOFT = 0.5  # share of the box, from either end, where the connector passes gradients on


def split_point(program: Program, share: float) -> int:
    """A step that everything behind it depends on alone, after ``share`` of the nonlinear steps.

    Raises:
        Unsupported: branches pass by every step there.
    """
    cuts = [i for i, step in enumerate(program.steps) if step is not None and _is_cut(program, i)]
    bent = [i for i in cuts if _nonlinear(program, i)]
    if not bent:
        raise Unsupported("the network has no step that all later ones go through; TAPS cannot "
                          "split it")
    return bent[min(len(bent) - 1, round(share * (len(bent) - 1)))]


def _is_cut(program: Program, index: int) -> bool:
    """Whether no later step reads anything but ``index`` and what comes after it."""
    needed = program.ancestors[program.output]
    if index not in needed or index == program.output:
        return False
    return all(source >= index for step in program.steps[index + 1 :]
               if step is not None and step.index in needed for source in step.variables)


def _nonlinear(program: Program, index: int) -> bool:
    step = program.steps[index]
    return step is not None and not step.affine


def run_from(program: Program, index: int, value: Tensor) -> Tensor:
    """The output ``(N, classes)`` from a step's value ``(N, *shape)``."""
    values: list[Any] = [None] * len(program.steps)
    values[index] = value
    needed = program.ancestors[program.output]
    for step in program.steps[index + 1 :]:
        if step is not None and step.index in needed:
            y = step.op.forward(step.site, *step.operands(values))
            values[step.index] = y if y.dim() > len(step.site.shape) else y.expand(
                len(value), *step.site.shape)
    found: Tensor = values[program.output]
    return found.reshape(len(value), -1)


def attacked_margins(
    whole: Analysis, share: float, how: Ascent, generator: torch.Generator | None
) -> Tensor:
    """Margins ``(B, classes - 1)``, each at a point of the latent box attacked for it alone."""
    program, y = whole.state.program, whole.y
    at = split_point(program, share)
    box = whole.state.box(at)
    classes = 1 + whole.rows.shape[1]
    lower, upper = (_repeated(t, classes - 1) for t in (box.lower, box.upper))
    labels = y.repeat_interleave(classes - 1)
    which = torch.arange(classes - 1, device=y.device).repeat(len(y)).unsqueeze(1)

    def loss(x: Tensor) -> Tensor:
        return -margins_of(run_from(program, at, x), labels).gather(1, which)[:, 0]

    point = ascend(loss, lower, upper, how, generator)
    joined: Tensor = Connector.apply(lower, upper, point)  # type: ignore[no-untyped-call]
    return -loss(joined).view(len(y), classes - 1)


def _repeated(t: Tensor, times: int) -> Tensor:
    return t.repeat_interleave(times, 0)


class Connector(torch.autograd.Function):
    """``(lower, upper, point)`` -> point, with gradients for the ends where the point is near them.

    Rectified linear: full at an end, none from the middle on (Mao et al. 2023, section 4.2).
    """

    @staticmethod
    def forward(ctx: Any, lower: Tensor, upper: Tensor, point: Tensor) -> Tensor:
        """The point as it is."""
        ctx.save_for_backward(lower, upper, point)
        return point.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """To the lower and to the upper end."""
        lower, upper, point = ctx.saved_tensors
        reach = (_SOFT * (upper - lower)).clamp_min(1e-12)
        to_upper = ((point - (upper - reach)) / reach).clamp(0, 1)
        to_lower = (((lower + reach) - point) / reach).clamp(0, 1)
        return grads[0] * to_lower, grads[0] * to_upper, None


class _Expand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * ctx.factor, None


def expand_gradient(value: Tensor, factor: float) -> Tensor:
    """The value, its gradient ``factor`` times as large."""
    found: Tensor = _Expand.apply(value, factor)  # type: ignore[no-untyped-call]
    return found
