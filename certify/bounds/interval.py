"""Interval bound propagation (IBP): Gowal et al. 2018, centre and radius through ``|W|``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from certify.bounds.program import Step
from certify.bounds.rounding import deployed_error, step_error
from certify.core.semantics import Semantics
from certify.ops.record import Interval


def interval_step(
    step: Step, bounds: Sequence[Interval | None], semantics: Semantics
) -> tuple[Interval, Tensor | None]:
    """Bounds of a step's result from bounds of its operands.

    Returns:
        The interval, each side ``(B, *shape)``, and the step's error per unit of |A| for backward
        passes (None in search semantics or where nothing is rounded).
    """
    if not step.affine:
        found = step.curve.interval(step.site, *step.operands(bounds))
        stray = deployed_error(step, found, semantics)
        return (found if stray is None else widen(found, stray)), stray
    if not semantics.rigorous:
        return _affine(step, bounds), None
    error = step_error(step, bounds, semantics)
    found = _affine(step, bounds)
    return (found if error is None else widen(found, error)), error


def _affine(step: Step, bounds: Sequence[Interval | None]) -> Interval:
    rule, forward, site = step.linear, step.op.forward, step.site
    if rule.monotone:
        operands = step.operands(bounds)
        lower = [v.lower if isinstance(v, Interval) else v for v in operands]
        upper = [v.upper if isinstance(v, Interval) else v for v in operands]
        return Interval(forward(site, *lower), forward(site, *upper))
    middle: list[Any] = list(step.constants)
    radius: list[Any] = list(step.sizes)
    for i in rule.biases:
        radius[i] = None
    for i, source in enumerate(step.sources):
        found = None if source is None else bounds[source]
        if found is not None:
            middle[i] = torch.lerp(found.lower, found.upper, 0.5)
            radius[i] = found.upper - middle[i]
    centre = forward(site, *middle)
    spread = rule.absolute(site, *radius)
    return Interval(centre - spread, centre + spread)


def widen(interval: Interval, error: Tensor) -> Interval:
    """``interval`` enlarged by ``error >= 0`` on both sides; NaN becomes infinite."""
    lower = torch.nan_to_num(
        interval.lower - error, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf
    )
    upper = torch.nan_to_num(
        interval.upper + error, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf
    )
    return Interval(lower, upper)


def intersect(a: Interval, b: Interval) -> Interval:
    """What both know; NaN knows nothing."""
    return Interval(torch.fmax(a.lower, b.lower), torch.fmin(a.upper, b.upper))
