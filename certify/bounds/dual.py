"""Lagrangian dual bounds: multipliers free to move, every value of them a bound.

For each nonlinear step ``y = h(z)`` the row's coefficient ``A`` on ``y`` is split:

    A y  =  (A - lambda) y  +  (lambda h(z) - mu z)  +  mu z
         >= min over y of (A - lambda) y  +  min over z of (lambda h(z) - mu z)  +  mu z,

and ``mu`` is what is pulled back further. That is the dual of Dvijotham et al. 2018 (equation 8)
written as one backward pass, on any graph; with ``lambda = A`` throughout it is the Lagrangian
decomposition of Bunel et al. 2020. CROWN is the point ``lambda = A, mu = slope A``, where both
start, so no value that is kept is below CROWN's. The inner minima are closed forms
(`RelaxedRule.inner`); their minimisers are the supergradient.

Where the operand is known to lie in a ball, the inner problem may use that: with ``k >= 0``,

    A y - mu z  >=  min over z of (A h(z) - mu z + k/2 |z - centre|^2)  -  k/2 radius^2,

still one closed form per neuron. That is SDP-CROWN (Chiu et al. 2025, theorem 4.1) with the
neurons' intervals kept as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from certify.bounds.ball import Ball
from certify.bounds.crown import Slopes, State, relax_with, row_bounds
from certify.bounds.program import Step
from certify.bounds.rounding import UNIT64, gamma, relaxed_error
from certify.ops.families import per_row
from certify.ops.inner import least_near
from certify.ops.record import Interval, Relaxation

_START = 0.02  # of a ball's multiplier, as a share of a good one


@dataclass(frozen=True)
class Dual:
    """Settings of the ascent.

    Attributes:
        iterations: supergradient steps.
        rate: step of the first iteration, in the units of `_units`.
        last: of the last iteration, likewise; geometric in between.
        soft: temperature of the gradients' soft minima at the start, see `certify.ops.inner.least`;
            it falls with the rate.
    """

    iterations: int = 320
    rate: float = 0.6
    last: float = 0.001
    soft: float = 0.2


@dataclass(frozen=True, eq=False)
class Form:
    """Which dual.

    Attributes:
        mismatch: lambda is free: the dual of Dvijotham et al.; else the decomposition of Bunel
            et al.
        balls: around the operands of steps, by step index; not together with ``mismatch``.
    """

    mismatch: bool = False
    balls: Mapping[int, Ball] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DualRelaxation:
    """A step's split with given multipliers; a `Relaxation`.

    Attributes:
        free: ``(B or 1, 1, *shape)`` where the multipliers act; elsewhere, where the step is linear
            on its interval, the default relaxation stands.
        weight_: lambda ``(B, R, *shape)``, or None for whatever coefficient arrives.
        slopes: mu per variable operand, ``(B, R, *shape)``.
        ball, pull: around the operand, and its multiplier k, ``(B, R, 1, ...)``, or neither.
    """

    absorbs: ClassVar[bool] = True  # `backward` accounts for its own rounding
    step: Step
    bounds: Sequence[Interval | None]
    default: Relaxation
    free: Tensor
    weight_: Tensor | None
    slopes: tuple[Tensor, ...]
    rigorous: bool
    soft: float = 0.0
    ball: Ball | None = None
    pull: Tensor | None = None

    def backward(self, A: Tensor) -> tuple[tuple[Tensor | None, ...], Tensor]:
        """See `Relaxation.backward`."""
        fixed = A.masked_fill(self.free, 0.0)
        parts, bias = self.default.backward(fixed)
        weight = A if self.weight_ is None else self.weight_
        slopes = tuple(m.to(A.dtype) for m in self.slopes)  # what is sent on is what is paid for
        mu = iter(torch.where(self.free, m, 0.0) for m in slopes)
        sent = tuple(None if part is None else part + next(mu) for part in parts)
        terms = self._terms(weight, slopes)
        if self.weight_ is not None:
            terms = terms + self._mismatch(A, self.weight_)
        terms = per_row(torch.where(self.free, terms, 0.0))
        if self.ball is not None and self.pull is not None:
            k, radius = per_row(self.pull.abs().double()), self.ball.radius.unsqueeze(1)
            terms = torch.cat((terms, -0.5 * (1 + 2.0**-49) * k * radius**2), -1)
        total = bias + terms.sum(-1).to(bias.dtype)
        return sent, total - self._lost(fixed, bias, terms) if self.rigorous else total

    def _terms(self, weight: Tensor, slopes: tuple[Tensor, ...]) -> Tensor:
        """The inner minima, per element."""
        step, rule = self.step, self.step.curve
        operands = step.operands(self.bounds)
        if self.ball is None or self.pull is None:
            if rule.inner is None:
                raise TypeError(f"{step.op.name} has no inner problem")
            return rule.inner(step.site, weight, slopes, *operands, soft=self.soft)
        if rule.halves is None:
            raise TypeError(f"{step.op.name} is not of two straight halves")
        (x,) = (b for b in operands if isinstance(b, Interval))
        constants = (b for b in operands if isinstance(b, Tensor))
        halves = rule.halves(step.site, weight, *constants)
        pull = self.pull.abs().double(), self.ball.centre
        return least_near(halves, weight, slopes[0], pull, x, self.soft)

    def _lost(self, fixed: Tensor, bias: Tensor, terms: Tensor) -> Tensor:
        """What rounding may have added to ``bias + sum of terms``, the default's share included."""
        cost = relaxed_error(self.step, self.default, self.bounds, False).unsqueeze(1)
        size = terms.abs().sum(-1) + bias.abs()
        summing = gamma(terms.shape[-1] + 16, UNIT64) * size
        return (per_row(fixed.abs() * cost).sum(-1) + summing) * (1 + 2.0**-30) + 2.0**-500

    def _mismatch(self, A: Tensor, weight: Tensor) -> Tensor:
        """``min over y of (A - lambda) y``."""
        box = self.bounds[self.step.index]
        if box is None:
            raise TypeError(f"{self.step.node.name} has no bounds")
        low, high = box.lower.double().unsqueeze(1), box.upper.double().unsqueeze(1)
        gap = A.double() - weight.double()
        found = torch.minimum(gap * low, gap * high)
        found = torch.where(gap == 0, 0.0, found)
        reach = torch.maximum(low.abs(), high.abs())
        lost = 2.0**-50 * (A.double().abs() + weight.double().abs()) * reach
        return found - torch.where((A == 0) & (weight == 0), 0.0, lost)

    def weight(self, magnitudes: tuple[Tensor | None, ...]) -> Tensor:
        """Of the default relaxation; never charged, see ``absorbs``."""
        return self.default.weight(magnitudes)


def free_elements(step: Step, bounds: Sequence[Interval | None]) -> Tensor | None:
    """Where a step leaves its multipliers something to choose, ``(B, 1, *shape)``; None: nowhere.

    A step whose inner problem is unknown, or whose operands are broadcast, keeps its relaxation.
    """
    rule, site = step.curve, step.site
    varying = [s for s, v in zip(site.shapes, site.varies, strict=True) if v]
    if rule.inner is None or any(s != site.shape for s in varying):
        return None
    boxes = [b for b in step.operands(bounds) if isinstance(b, Interval)]
    if rule.ambiguous is not None and len(boxes) == 1:
        found = rule.ambiguous(site, boxes[0])
    else:
        found = torch.stack([b.upper > b.lower for b in boxes]).any(0)
    return found.unsqueeze(1) if bool(found.any()) else None


@dataclass
class _Recorder:
    """Wraps a relaxation and notes what came and what was sent on."""

    inner: Relaxation
    note: Callable[[Tensor, tuple[Tensor | None, ...]], None]
    absorbs: ClassVar[bool] = False

    def backward(self, A: Tensor) -> tuple[tuple[Tensor | None, ...], Tensor]:
        parts, bias = self.inner.backward(A)
        self.note(A, parts)
        return parts, bias

    def weight(self, magnitudes: tuple[Tensor | None, ...]) -> Tensor:
        return self.inner.weight(magnitudes)


def _arrivals(state: State, rows: Mapping[int, Tensor], slopes: Slopes | None
              ) -> dict[int, tuple[Tensor, ...]]:
    """Of each free step in a backward pass, what arrives and what it sends on, ``(A, *mu)``."""
    found: dict[int, tuple[Tensor, ...]] = {}
    sweep = state.searching().sweep(rows)
    sweep.columns = None
    base = relax_with(state, slopes)

    def relax(step: Step) -> Relaxation:
        relaxation: Relaxation = base(step)
        if free_elements(step, state.bounds) is None:
            return relaxation

        def note(A: Tensor, parts: tuple[Tensor | None, ...]) -> None:
            found[step.index] = (A, *(p for p in parts if p is not None))

        return _Recorder(relaxation, note)

    with torch.no_grad():
        sweep.run(relax)
    return found


def crown_multipliers(state: State, rows: Mapping[int, Tensor], form: Form,
                      slopes: Slopes | None = None) -> dict[int, tuple[Tensor, ...]]:
    """The multipliers at which the dual is CROWN: per free step lambda (if ``mismatch``), mu, and
    where there is a ball its k, which is 0.

    Args:
        slopes: of the relaxations, default CROWN's.
    """
    return _multipliers(_arrivals(state, rows, slopes), form)


def _multipliers(arrivals: Mapping[int, tuple[Tensor, ...]], form: Form
                 ) -> dict[int, tuple[Tensor, ...]]:
    found = {}
    for index, (A, *mu) in arrivals.items():
        if index in form.balls:
            found[index] = (*mu, A.new_zeros(*A.shape[:2], *(1,) * (A.dim() - 2)))
        else:
            found[index] = (A, *mu) if form.mismatch else tuple(mu)
    return found


def dual_bounds(state: State, rows: Mapping[int, Tensor], multipliers: Slopes,
                balls: Mapping[int, Ball] | None = None, soft: float = 0.0) -> Tensor:
    """Lower bounds ``(B, R)`` of rows with given multipliers, see `crown_multipliers`."""
    sweep, balls = state.sweep(rows), balls or {}
    sweep.columns = None

    def relax(step: Step) -> Relaxation:
        default = state.relax(step)
        given, free = multipliers.get(step.index), free_elements(step, state.bounds)
        if given is None or free is None:
            return default
        weight, slopes, pull = _parts(step, given, step.index in balls)
        return DualRelaxation(step, state.bounds, default, free, weight, slopes,
                              state.semantics.rigorous, soft, balls.get(step.index), pull)

    sweep.run(relax)
    return sweep.minimum(state.region, state.program.inputs)


def _parts(step: Step, given: tuple[Tensor, ...], has_ball: bool
           ) -> tuple[Tensor | None, tuple[Tensor, ...], Tensor | None]:
    """lambda, the mu, and k of a step's multipliers."""
    operands = sum(step.site.varies)
    pull = given[-1] if has_ball and len(given) > operands else None
    rest = given if pull is None else given[:-1]
    if len(rest) not in (operands, operands + 1):
        raise TypeError(f"{len(given)} multipliers for {step.node.name}")
    return rest[0] if len(rest) > operands else None, rest[-operands:], pull


@dataclass
class _Ascent:
    """Adam (Kingma and Ba 2015) over all multipliers, per row, in units of the row's coefficients.

    Attributes:
        value: current multipliers; best: those of the best value of each row so far.
    """

    value: dict[int, tuple[Tensor, ...]]
    best: dict[int, tuple[Tensor, ...]]
    unit: dict[int, tuple[Tensor, ...]]
    first: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    second: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def step(self, total: Tensor, rate: float, count: int) -> None:
        """One step up."""
        places = [(i, n) for i, group in self.value.items() for n in range(len(group))]
        tensors = [self.value[i][n] for i, n in places]
        gradients: Any = torch.autograd.grad(total, tensors, allow_unused=True)
        moved: dict[int, list[Tensor]] = {i: list(g) for i, g in self.value.items()}
        for (i, n), tensor, gradient in zip(places, tensors, gradients, strict=True):
            if gradient is None:
                continue
            g = torch.nan_to_num(gradient, 0.0, 0.0, 0.0)
            m = self.first.setdefault((i, n), torch.zeros_like(g)).lerp_(g, 0.1)
            v = self.second.setdefault((i, n), torch.zeros_like(g)).lerp_(g * g, 0.01)
            move = m / (1 - 0.9**count) / ((v / (1 - 0.99**count)).sqrt() + 1e-12)
            moved[i][n] = (tensor + rate * self.unit[i][n] * move).detach().requires_grad_()
        self.value = {i: tuple(group) for i, group in moved.items()}

    def keep(self, better: Tensor) -> None:
        """Note the multipliers of rows ``(B, R)`` whose value is the best so far."""
        for i, group in self.value.items():
            shape = (*better.shape, *(1,) * (group[0].dim() - 2))
            mask = better.reshape(shape)
            self.best[i] = tuple(torch.where(mask, new.detach(), old)
                                 for new, old in zip(group, self.best[i], strict=True))


def optimise_dual(state: State, rows: Mapping[int, Tensor], settings: Dual, form: Form,
                  done: Callable[[Tensor], bool] | None = None, slopes: Slopes | None = None,
                  ) -> tuple[Tensor, dict[int, tuple[Tensor, ...]]]:
    """Lower bounds ``(B, R)`` of rows by dual ascent, and the multipliers that reach them.

    Anytime: the best value of each row so far is kept, starting from CROWN's.

    Args:
        done: looks at the best bounds so far; True stops.
        slopes: of CROWN's relaxations at the start.
    """
    state = state.searching()
    arrivals = _arrivals(state, rows, slopes)
    best = row_bounds(state, rows, slopes).detach()
    start = _multipliers(arrivals, form)
    if not start:
        return best, start
    units = {i: _units(state, i, group, form) for i, group in arrivals.items()}
    ascent = _Ascent({i: _free(g, units[i], i in form.balls) for i, g in start.items()},
                     dict(start), units)
    steps = settings.iterations
    with torch.enable_grad():
        for iteration in range(steps + 1):
            share = iteration / max(1, steps - 1)
            rate = settings.rate * (settings.last / settings.rate) ** share
            soft = settings.soft * rate / settings.rate
            found = dual_bounds(state, rows, ascent.value, form.balls, soft)
            better = found.detach() > best
            best = torch.where(better, found.detach(), best)
            ascent.keep(better)
            if iteration == steps or (done is not None and done(best)):
                break
            finite = torch.where(found.isfinite(), found, torch.zeros_like(found))
            ascent.step(finite.sum(), rate, iteration + 1)
    return best, ascent.best


def _free(group: tuple[Tensor, ...], unit: tuple[Tensor, ...], has_ball: bool
          ) -> tuple[Tensor, ...]:
    """Multipliers ready to move; a ball's does not start at 0, where ``|k|`` has no slope."""
    moved = (*group[:-1], _START * unit[-1]) if has_ball else group
    return tuple(t.detach().clone().requires_grad_() for t in moved)


def _units(state: State, index: int, arrived: tuple[Tensor, ...], form: Form
           ) -> tuple[Tensor, ...]:
    """What a step of 1 means for each multiplier: the mean range of the products ``mu z`` of a
    row, over the range of the element itself, so that rescaled neurons move alike.

    For k, the size of a good one: half the norm of the coefficients over the radius (the optimum
    of theorem 4.1 of Chiu et al. 2025 where all neurons are alike).
    """
    step = state.program.steps[index]
    if step is None:
        raise TypeError("an input has no multipliers")
    A, *group = arrived if not form.mismatch else (arrived[0], *arrived)
    boxes = [b for b in step.operands(state.bounds) if isinstance(b, Interval)]
    if form.mismatch:  # lambda belongs to the result
        boxes = [state.box(index), *boxes]
    widths = [(b.upper - b.lower).nan_to_num(0.0, 0.0, 0.0).unsqueeze(1) for b in boxes]
    reach = torch.stack([per_row(t.abs() * w) for t, w in zip(group, widths, strict=True)]).amax(0)
    ones = (1,) * (A.dim() - 2)
    mean = (reach.sum(-1) / (reach > 0).sum(-1).clamp(min=1)).reshape(*A.shape[:2], *ones)
    units = [torch.where(w > 0, mean / w.clamp(min=1e-30), 0.0) for w in widths]
    if (ball := form.balls.get(index)) is not None:
        free = free_elements(step, state.bounds)
        kept = A if free is None else torch.where(free, A, 0.0)
        k = 0.5 * per_row(kept).square().sum(-1).sqrt() / ball.radius.clamp(min=1e-30).to(A.dtype)
        units.append(k.reshape(*k.shape, *ones))
    return tuple(units)
