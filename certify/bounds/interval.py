"""Interval bound propagation (IBP): Gowal et al. 2018, centre and radius through ``|W|``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from certify.bounds.program import Step
from certify.bounds.rounding import Semantics, affine_error, deployed_error
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
    own, stray = affine_error(step, bounds, semantics)
    found = _affine(step, bounds)
    error = own if stray is None else own + stray if own is not None else stray
    return (found if error is None else widen(found, error)), error


def _affine(step: Step, bounds: Sequence[Interval | None]) -> Interval:
    rule = step.linear
    operands = step.operands(bounds)
    lower = [v.lower if isinstance(v, Interval) else v for v in operands]
    upper = [v.upper if isinstance(v, Interval) else v for v in operands]
    forward, site = step.op.forward, step.site
    if rule.monotone:
        return Interval(forward(site, *lower), forward(site, *upper))
    middle = [torch.lerp(v.lower, v.upper, 0.5) if isinstance(v, Interval) else v for v in operands]
    radius = [
        (u - m) if isinstance(v, Interval) else s
        for v, u, m, s in zip(operands, upper, middle, step.sizes, strict=True)
    ]
    radius = [
        None if i in rule.biases and step.sources[i] is None else r for i, r in enumerate(radius)
    ]
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
