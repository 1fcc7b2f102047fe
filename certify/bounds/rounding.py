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

from enum import Enum
from typing import Any

import torch
from torch import Tensor

from certify.bounds.program import Program, Step
from certify.ops.record import Interval, Relaxation

UNIT64, UNIT32 = 2.0**-53, 2.0**-24
_UNDERFLOW64 = 2.0**-500  # far above the smallest normal number: flushing cannot matter
_UNDERFLOW32 = 2.0**-126
LARGEST32 = float(torch.finfo(torch.float32).max)


class Semantics(Enum):
    """Whose arithmetic a bound speaks of."""

    SEARCH = "search"  # plain floats: good for searching, proves nothing
    REAL = "real"  # real arithmetic on the stored weights
    FLOAT32 = "float32"  # any float32 evaluation in any order; also implies REAL

    @property
    def rigorous(self) -> bool:
        return self is not Semantics.SEARCH


def gamma(count: int, unit: float) -> float:
    """``gamma_n``: relative error of a sum of ``count`` rounded terms, rounded up."""
    product = count * unit
    return float("inf") if product >= 0.5 else product / (1 - product) * (1 + 2.0**-40)


def magnitude(interval: Interval) -> Tensor:
    """``max(|lower|, |upper|)``."""
    return torch.maximum(interval.lower.abs(), interval.upper.abs())


def affine_error(step: Step, bounds: Any, semantics: Semantics) -> tuple[Tensor | None, Tensor | None]:
    """Error per unit of |A| of an affine step, and how far a deployed network may stray.

    Returns:
        ``(w, r)``, each ``(B, *shape)`` or None for zero: ``w`` bounds our own float64 rounding
        (forward and transposed), ``r`` the rounding of a float32 implementation of the step.
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
    own = 3 * gamma(terms, UNIT64) * total + terms * _UNDERFLOW64
    if offset is not None:
        own = own + gamma(offset.numel() + 2, UNIT64) * offset
    if semantics is not Semantics.FLOAT32 or (forward == 0 and offset is None):
        return own, None
    roundings = forward + 2 + rule.roundings
    deployed = gamma(roundings, UNIT32) * (1 + 2.0**-20) * total + (forward + 1) * _UNDERFLOW32
    return own, torch.where(total > LARGEST32, torch.inf, deployed)


def relaxed_error(step: Step, relaxation: Relaxation, bounds: Any) -> Tensor:
    """Error per unit of |A| of a linear relaxation's backward rule, ``(B, *shape)``."""
    sizes = tuple(magnitude(b) if isinstance(b, Interval) else None for b in step.operands(bounds))
    count = 16
    for extent in (*step.site.shape, *(n for s in step.site.shapes for n in s)):
        count += extent  # a generous count of the terms any backward rule adds up
    total = relaxation.weight(sizes)
    elements = max(1, total[0].numel()) if isinstance(total, Tensor) and total.dim() else 1
    return gamma(count + elements, UNIT64) * total + count * _UNDERFLOW64


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
    error = gamma(step.op.float32_roundings + 1, UNIT32) * size + _UNDERFLOW32
    return torch.where(size > LARGEST32, torch.inf, error)


def unguaranteed(program: Program) -> list[str]:
    """Operators in the program whose float32 accuracy cannot be bounded."""
    steps = [s for s in program.steps if s is not None and not s.affine]
    return sorted({s.op.name for s in steps if s.op.float32_roundings is None})


def round_down(value: Tensor) -> Tensor:
    """A float64 number below ``value`` by a few units in the last place."""
    return value - (value.abs() * (4 * UNIT64) + _UNDERFLOW64)
