"""Optimised slopes (alpha-CROWN, Xu et al. 2021) for every nonlinearity that declares slopes.

Any slope inside its declared range is sound, so this optimises in whatever precision it is given
and the result is evaluated again, rigorously, by whoever makes a claim. Each row has slopes of its
own; the best value per row is kept, starting from the defaults, so the result is never below CROWN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from certify.bounds.crown import Slopes, State, row_bounds, unit_rows
from certify.bounds.rows import UnitRows
from certify.ops.families import per_row
from certify.ops.record import Slope

_INTERIOR = 1e-6  # a default slope this far inside its range, as a share of it, is a tangent's
_LEAST_STEP = 0.01
_NOISE = 1e-6  # gradients below this share of a row's largest count as zero
_PATIENCE = 4  # steps a row may take without ever gaining
_GENTLER = 0.3  # factor on the rate of a row whose patience is over
_SHARED = 0.05  # factor on steps of a maximum's slopes: all of a window move one result together
_MAXIMA = ("reduce_max", "reduce_min")
_COSTLY = 2.5e8  # floating-point operations of one pass over all rows
_COSTLY_ITERATIONS = 20


@dataclass(frozen=True)
class Alpha:
    """Settings of the optimiser.

    Attributes:
        iterations: gradient steps; dual methods take eight times as many.
        rate: step of the first iteration, as a share of each slope's range.
        decay: factor on the rate per iteration.
        settled: stop when three iterations together gained less than this share of everything
            gained so far.
        unit_iterations: most gradient steps for the intermediate bound of each neuron that
            stays ambiguous. Every neuron optimises its own bound, so at convergence the result
            dominates slopes optimised jointly for the final rows; 0 keeps CROWN's intermediate
            bounds.
    """

    iterations: int = 40
    rate: float = 0.5
    decay: float = 0.98
    settled: float = 0.0001
    unit_iterations: int = 40

    @property
    def inner(self) -> Alpha | None:
        """Settings for intermediate bounds; None when they keep the default slopes."""
        return replace(self, iterations=self.unit_iterations) if self.unit_iterations else None

    def at_cost(self, operations: float) -> Alpha:
        """Fewer steps where one takes long: the first ones gain most."""
        if operations <= _COSTLY:
            return self
        return replace(self, iterations=min(self.iterations, _COSTLY_ITERATIONS))


@dataclass
class _Variable:
    """One optimisable tensor with its Adam moments (Kingma and Ba 2015).

    Only elements with a range are kept, ``(B, R, m)`` of the flattened ``(B, R, *shape)``.
    """

    rest: Tensor
    index: Tensor
    slope: Slope
    value: Tensor
    best: Tensor
    first: Tensor
    second: Tensor
    curved: Tensor
    pace: float

    def whole(self, value: Tensor) -> Tensor:
        """``value (B, R, m)`` among the fixed elements, ``(B, R, *shape)``."""
        flat = per_row(self.rest).expand(*value.shape[:2], -1)
        return flat.index_copy(2, self.index, value).reshape(*value.shape[:2], *self.rest.shape[2:])

    def step(self, gradient: Tensor, rate: Tensor, count: int) -> None:
        if not gradient.numel():  # nothing here has a range
            return
        self.first.lerp_(gradient, 0.1)
        self.second.lerp_(gradient * gradient, 0.001)
        scale = (self.second / (1 - 0.999**count)).sqrt_()
        # Relative, or rounding noise in a gradient that is zero would become a full step.
        scale = scale + scale.amax(-1, keepdim=True) * _NOISE + 1e-30
        move = self.first / (1 - 0.9**count) / scale
        reach = self._reach(self.value.detach())
        value = torch.addcmul(self.value.detach(), move.mul_(rate), reach, value=self.pace)
        self.value = value.maximum(self.slope.low).minimum(self.slope.high).requires_grad_()

    def _reach(self, value: Tensor) -> Tensor:
        """What a step of 1 means: the whole range, or for tangents of a curve one unit of logit.

        A sigmoid's useful slopes span orders of magnitude; equal steps would skip all small ones.
        """
        low, high = self.slope.low, self.slope.high
        reach = high - low
        inner = 2.5 * (value - low) * (high - value) / reach.clamp(min=1e-30) + _LEAST_STEP * reach
        return torch.where(self.curved, inner, reach)


class _Pace:
    """How boldly each row steps: less so where its first steps gained nothing.

    Attributes:
        rate: step of each row, ``(B, R)``.
    """

    def __init__(self, settings: Alpha) -> None:
        self.rate = torch.empty(0)
        self._settings = settings
        self._start: Tensor | None = None
        self._waited: Tensor = torch.empty(0)

    def after(self, best: Tensor) -> Tensor:
        """Look at the best bounds so far; true for rows to start again from them, more gently."""
        if self._start is None:
            self._start = best
            self.rate = torch.full_like(best, self._settings.rate)
            self._waited = torch.zeros_like(best)
            return torch.zeros_like(best, dtype=torch.bool)
        self._waited = self._waited + 1
        late = (best <= self._start) & (self._waited >= _PATIENCE)
        self._waited = self._waited.masked_fill(late, 0.0)
        self.rate = torch.where(late, self.rate * _GENTLER, self.rate * self._settings.decay)
        return late


def optimise(
    state: State,
    rows: Mapping[int, Tensor | UnitRows],
    settings: Alpha,
    done: Callable[[Tensor], bool] | None = None,
    *,
    mirrored: bool = False,
) -> tuple[Tensor, Slopes]:
    """Lower bounds ``(B, R)`` of rows with slopes optimised per row, and those slopes.

    Args:
        rows: as in `row_bounds`.
        done: looks at the best bounds so far; True stops.
    """
    state = state.searching()
    count = max(r.index.shape[1] if isinstance(r, UnitRows) else r.shape[1] for r in rows.values())
    count *= 2 if mirrored else 1
    variables = _variables(state, rows, count)
    with torch.enable_grad():
        best: Tensor | None = None
        gained, pace = list[float](), _Pace(settings)
        for iteration in range(settings.iterations + 1):
            chosen = {i: tuple(v.whole(v.value) for v in group) for i, group in variables.items()}
            values = row_bounds(state, rows, chosen, mirrored=mirrored)
            best = _keep_best(values.detach(), best, variables)
            late = pace.after(best)
            gained.append(float(torch.nan_to_num(best, 0.0, 0.0, 0.0).sum()))
            if (
                iteration == settings.iterations
                or not (variables and values.requires_grad)
                or (done and done(best))
            ):
                break
            moved = gained[-1] - gained[-4] if len(gained) > 5 else math.inf
            if gained[-1] > gained[0] and moved <= settings.settled * (gained[-1] - gained[0]):
                break
            if bool(late.any()):  # too bold: back to the start, and from there more gently
                _restart(variables, late.unsqueeze(-1))
                if bool(late.all()):
                    continue
                values = torch.where(late, values.detach(), values)
            _ascend(values, variables, pace.rate.unsqueeze(-1), iteration + 1)
    if best is None:
        raise TypeError(f"{settings.iterations} iterations leave nothing to keep")
    return best, {i: tuple(v.whole(v.best) for v in group) for i, group in variables.items()}


def optimise_units(state: State, index: int, chosen: Tensor, settings: Alpha) -> Slopes:
    """Slopes for the lower and upper bounds of elements ``chosen (B, R)`` of a step's result."""
    rows = {index: unit_rows(state, index, chosen)}
    return optimise(state, rows, settings, mirrored=True)[1]


def _variables(state: State, rows: Iterable[int], count: int) -> dict[int, list[_Variable]]:
    """The slopes of every step above ``rows`` (step indices) that leave something to choose."""
    program, found = state.program, {}
    above = frozenset().union(*(program.ancestors[i] for i in rows))
    with torch.no_grad():
        for index in sorted(above):
            step = program.steps[index]
            if step is None or step.affine:
                continue
            if step.curve.slopes is None:
                continue
            slopes = step.curve.slopes(step.site, *step.operands(state.bounds))
            if any(bool((s.high > s.low).any()) for s in slopes):
                pace = _SHARED if step.op.name in _MAXIMA else 1.0
                found[index] = [_variable(s, count, pace) for s in slopes]
    return found


def _variable(slope: Slope, count: int, pace: float) -> _Variable:
    shape = np.broadcast_shapes(*(t.shape for t in slope))
    start, low, high = (t.expand(shape) for t in slope)
    free = (high > low).reshape(-1, math.prod(high.shape[2:])).any(0).nonzero()[:, 0]
    small = Slope(*(per_row(t)[..., free] for t in (start, low, high)))
    value = small.start.expand(-1, count, -1).contiguous()
    margin = _INTERIOR * (small.high - small.low)
    curved = (small.start - small.low > margin) & (small.high - small.start > margin)
    zeros = torch.zeros_like
    return _Variable(
        start,
        free,
        small,
        value.clone().requires_grad_(),
        value,
        zeros(value),
        zeros(value),
        curved,
        pace,
    )


def _keep_best(
    values: Tensor, best: Tensor | None, variables: dict[int, list[_Variable]]
) -> Tensor:
    if best is None:
        return values
    better = values > best
    if bool(better.any()):
        for variable in (v for group in variables.values() for v in group):
            variable.best = torch.where(
                better.unsqueeze(-1), variable.value.detach(), variable.best
            )
    return torch.where(better, values, best)


def _restart(variables: dict[int, list[_Variable]], rows: Tensor) -> None:
    """Back to the best slopes so far, without momentum, where ``rows (B, R, 1)`` is true."""
    for variable in (v for group in variables.values() for v in group):
        value = torch.where(rows, variable.best, variable.value.detach())
        variable.value = value.requires_grad_()
        variable.first.masked_fill_(rows, 0.0)


def _ascend(
    values: Tensor, variables: dict[int, list[_Variable]], rate: Tensor, count: int
) -> None:
    every = [v for group in variables.values() for v in group]
    finite = torch.where(values.isfinite(), values, torch.zeros_like(values))
    gradients = torch.autograd.grad(finite.sum(), [v.value for v in every], allow_unused=True)
    for variable, gradient in zip(every, gradients, strict=True):
        if gradient is not None:
            variable.step(torch.nan_to_num(gradient, 0.0, 0.0, 0.0), rate, count)
