"""A-priori rounding errors, so that a bound is a bound in real arithmetic and not just in floats.

Every rounding error of a backward pass goes into its scalar term, never into its coefficients: if
``A`` are the stored coefficients of a step's result and ``w`` bounds the error per unit of ``|A|``,
then ``|A| . w`` is subtracted once. ``w`` costs one matrix-vector product per layer and box. The
same vector carries the rounding of a *deployed* float32 network, summed in any order, with or
without fused multiply-add (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1:
``gamma_n = n u / (1 - n u)``).

Not covered, and refused by `certify.bounds.selftest`: Winograd or FFT convolution, TF32, flushing
of subnormal numbers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from certify.bounds.program import Program, Step
from certify.core.semantics import Semantics
from certify.ops.record import Interval, Relaxation

UNIT64, UNIT32 = 2.0**-53, 2.0**-24
_SMALLEST32 = 2.0**-126
# Far above the smallest normal number, so that underflow and flushing cannot matter.
_SLACK = {torch.float64: 2.0**-500, torch.float32: 2.0**-100}
LARGEST32 = float(torch.finfo(torch.float32).max)


def unit_of(dtype: torch.dtype) -> float:
    """Unit roundoff of a precision."""
    return UNIT64 if dtype == torch.float64 else UNIT32


def gamma(count: int, unit: float) -> float:
    """``gamma_n``: relative error of a sum of ``count`` rounded terms, rounded up."""
    product = count * unit
    return float("inf") if product >= 0.5 else product / (1 - product) * (1 + 2.0**-40)


def magnitude(interval: Interval) -> Tensor:
    """``max(|lower|, |upper|)``."""
    return torch.maximum(interval.lower.abs(), interval.upper.abs())


def affine_error(
    step: Step, bounds: Any, semantics: Semantics
) -> tuple[Tensor | None, Tensor | None]:
    """Error per unit of |A| of an affine step, and how far a deployed network may stray.

    Returns:
        ``(w, r)``, each ``(B, *shape)`` or None for zero: ``w`` bounds our own rounding (forward
        and transposed; the sum ``A . b`` over all elements is charged where it is formed), ``r``
        the rounding of a float32 implementation of the step.
    """
    rule: Any = step.rule
    forward, back = rule.summands(step.site)
    terms = max(forward, back) + 4 + rule.roundings
    offset = step.offset_size
    if rule.monotone and max(forward, back) == 0 and offset is None:
        return None, None
    sizes = [magnitude(b) if isinstance(b, Interval) else b for b in step.size_operands(bounds)]
    total = rule.absolute(step.site, *sizes)
    if offset is not None:
        total = total + offset
    unit = unit_of(step.like.dtype)
    own = 3 * gamma(terms, unit) * total + terms * _SLACK[step.like.dtype]
    if semantics is not Semantics.FLOAT32 or (forward == 0 and offset is None):
        return own, None
    roundings = forward + 2 + rule.roundings
    deployed = gamma(roundings, UNIT32) * (1 + 2.0**-20) * total + (forward + 1) * _SMALLEST32
    return own, torch.where(total > LARGEST32, torch.inf, deployed)


def step_error(step: Step, bounds: Any, semantics: Semantics) -> Tensor | None:
    """Both errors of an affine step together; None for none."""
    own, stray = affine_error(step, bounds, semantics)
    return own if stray is None else own + stray if own is not None else stray


def relaxed_error(step: Step, relaxation: Relaxation, bounds: Any, wide_sums: bool) -> Tensor:
    """Error per unit of |A| of a linear relaxation's backward rule, ``(B, *shape)``.

    ``wide_sums``: the intercepts are summed in float64, whatever the precision of the pass.
    """
    sizes = tuple(magnitude(b) if isinstance(b, Interval) else None for b in step.operands(bounds))
    terms = 16 + sum(step.site.shape) + sum(n for shape in step.site.shapes for n in shape)
    unit = unit_of(step.like.dtype)
    total = relaxation.weight(sizes)
    constant = relaxation.weight((None,) * len(sizes))  # summed over all elements
    summing = gamma(math.prod(step.site.shape) + terms, UNIT64 if wide_sums else unit)
    error = gamma(terms, unit) * total + (summing + 8 * unit) * constant
    return error + terms * _SLACK[step.like.dtype]


def absorbed_error(step: Step, bias: Tensor, bounds: Any) -> Tensor:
    """What the bias ``(B, R)`` of lines that absorb rounding may have lost: terms of one sign."""
    elements = math.prod(step.site.shape)
    reach = magnitude(bounds[step.variables[0]]).max().clamp(min=1.0)  # for underflowed products
    slack = elements * _SLACK[step.like.dtype] * reach
    return bias.abs() * gamma(elements + 8, unit_of(step.like.dtype)) + slack


def deployed_error(step: Step, result: Interval, semantics: Semantics) -> Tensor | None:
    """How far a float32 implementation of a nonlinear step may stray; None for not at all.

    An operator whose float32 accuracy no standard guarantees gets an infinite error, which can
    only end in ``unknown``; `unguaranteed` names them beforehand.
    """
    if semantics is not Semantics.FLOAT32 or step.op.float32_roundings == 0:
        return None
    size = magnitude(result)
    if step.op.float32_roundings is None:
        return torch.full_like(size, torch.inf)
    error = gamma(step.op.float32_roundings + 1, UNIT32) * size + _SMALLEST32
    return torch.where(size > LARGEST32, torch.inf, error)


def unguaranteed(program: Program) -> list[str]:
    """Operators in the program whose float32 accuracy cannot be bounded."""
    steps = [s for s in program.steps if s is not None and not s.affine]
    return sorted({s.op.name for s in steps if s.op.float32_roundings is None})


def round_down(value: Tensor) -> Tensor:
    """A number below ``value`` by a few units in the last place."""
    return value - (value.abs() * (4 * unit_of(value.dtype)) + _SLACK[value.dtype])


def summing_slack(program: Program) -> float:
    """Factor that makes up for rounding in a computed sum of error terms."""
    return 1 + 4 * gamma(program.largest + 64, unit_of(program.dtype))
