"""How fast the rows of a specification can change over a box: intervals of derivatives.

Forward mode, one tangent per input dimension: an affine step passes an interval of tangents on, an
activation multiplies it by the range of its derivative over the bounds of its operand. Everything
is rounded outward, so the largest size is a Lipschitz constant over the box.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from certify.bounds.crown import State
from certify.bounds.interval import interval_step, widen
from certify.bounds.program import Step
from certify.bounds.rounding import magnitude
from certify.core.outward import UNDERFLOW, add_down, add_up, dot_error, midpoint_radius
from certify.core.semantics import Semantics
from certify.ops.record import Interval

_SPARE = 2.0**-40  # absolute, for derivatives of size at most 1 that a library function gave


def row_rates(
    state: State, rows: Mapping[int, Tensor], dims: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """Bounds of ``|d row / d input|`` over the region of ``state``, in the l1 sense.

    For points a, b of the box, ``|row(a) - row(b)| <= sum_i rate_i |a_i - b_i|``.

    Args:
        state: bounds over a box, batch 1, float64, real semantics.
        rows: coefficients ``(1, R, *shape)`` by step index.
        dims: ``(f,)`` positions in the joined, flattened inputs; the others do not move.

    Returns:
        ``(R, f)``, possibly infinite; None where an operator is not an affine one, a ReLU, leaky
        ReLU, sigmoid or tanh.
    """
    if state.semantics is not Semantics.REAL or state.program.dtype != torch.float64:
        raise ValueError("rates are proved in real semantics and float64 only")
    tangents = _inputs(state, dims)
    for step in state.program.steps:
        if step is None:
            continue
        found = _through(step, state, tangents)
        if found is None:
            return None
        tangents[step.index] = found
    coefficients = torch.cat([c.reshape(c.shape[1], -1) for c in rows.values()], 1)
    ends = [e for e in (tangents[i] for i in rows) if e is not None]
    lower, upper = (torch.cat([e[k].reshape(len(dims), -1) for e in ends], 1) for k in (0, 1))
    rates = magnitude(contracted(coefficients, Interval(lower, upper))).T
    return np.asarray(torch.nan_to_num(rates, nan=torch.inf, posinf=torch.inf).cpu().numpy())


def contracted(coefficients: Tensor, box: Interval) -> Interval:
    """Bounds of ``coefficients . v`` for v in boxes, rounded outward.

    Args:
        coefficients: ``(R, n)`` float64.
        box: ``(N, n)`` each side.

    Returns:
        ``(N, R)`` each side; infinite where nothing is known.
    """
    middle, radius = midpoint_radius(box.lower, box.upper)
    sizes, terms = coefficients.abs(), coefficients.shape[1]
    centre, reach = middle @ coefficients.T, radius @ sizes.T
    lost = dot_error(2 * terms) * ((middle.abs() + radius) @ sizes.T) + UNDERFLOW * (1 + terms)
    return widen(Interval(centre - reach, centre + reach), lost * (1 + 2.0**-50))


def _inputs(state: State, dims: NDArray[np.int64]) -> list[Interval | None]:
    """Unit tangents of every model input, ``(f, *shape)``; nothing yet for other steps."""
    program = state.program
    found: list[Interval | None] = [None] * len(program.steps)
    start = 0
    for index in program.inputs:
        shape = program.shape(index)
        size = int(np.prod(shape, dtype=np.int64))
        flat = torch.zeros(len(dims), size, dtype=program.dtype, device=program.device)
        here = np.flatnonzero((dims >= start) & (dims < start + size))
        flat[here, dims[here] - start] = 1.0
        tangent = flat.reshape(len(dims), *shape)
        found[index], start = Interval(tangent, tangent), start + size
    return found


def _through(step: Step, state: State, tangents: list[Interval | None]) -> Interval | None:
    if step.affine:
        return linear_part(step, tangents)
    derivative = _DERIVATIVES.get(step.op.name)
    if derivative is None:
        return None
    source = step.variables[0]
    slope, tangent = derivative(step, state.box(source)), tangents[source]
    if tangent is None:
        return None
    products = torch.stack([t * s for t in tangent for s in slope])
    least, most = products.amin(0), products.amax(0)
    size = torch.maximum(least.abs(), most.abs())
    return widen(Interval(least, most), size * 2.0**-51 + UNDERFLOW)


def linear_part(step: Step, tangents: list[Interval | None]) -> Interval:
    """An affine step without its offset, on intervals of tangents, rounded outward."""
    found, error = interval_step(step, tangents, Semantics.REAL)
    offset = step.offset
    if offset is None:
        return found
    moved = Interval(add_down(found.lower, -offset), add_up(found.upper, -offset))
    rest = torch.zeros_like(moved.lower) if error is None else error
    return widen(moved, 2 * rest + 2.0**-50 * magnitude(moved) + UNDERFLOW)


def _relu(step: Step, x: Interval) -> Interval:
    return _bent(0.0, x)


def _leaky_relu(step: Step, x: Interval) -> Interval:
    return _bent(float(step.node.attrs["alpha"]), x)


def _bent(alpha: float, x: Interval) -> Interval:
    """Slope ``alpha`` below 0 and 1 above; both where the sign is not proved."""
    right, left = x.lower > 0, x.upper < 0
    low = torch.full_like(x.lower, min(alpha, 1.0))
    high = torch.full_like(x.lower, max(alpha, 1.0))
    low, high = low.masked_fill(right, 1.0), high.masked_fill(right, 1.0)
    return Interval(low.masked_fill(left, alpha), high.masked_fill(left, alpha))


def _sigmoid(step: Step, x: Interval) -> Interval:
    return _bell(lambda z: torch.sigmoid(z) * torch.sigmoid(-z), 0.25, x)


def _tanh(step: Step, x: Interval) -> Interval:
    return _bell(lambda z: 1 - torch.tanh(z).square(), 1.0, x)


def _bell(derivative: Callable[[Tensor], Tensor], peak: float, x: Interval) -> Interval:
    """A derivative that is even and falls with the distance from 0."""
    near = torch.maximum(x.lower, -x.upper).clamp(min=0.0)
    far = torch.maximum(x.lower.abs(), x.upper.abs())
    low, high = derivative(far) - _SPARE, derivative(near) + _SPARE
    low, high = torch.nan_to_num(low, nan=0.0), torch.nan_to_num(high, nan=peak)
    return Interval(low.clamp(0.0, peak), high.clamp(0.0, peak))


_DERIVATIVES: dict[str, Callable[[Step, Interval], Interval]] = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
}
