"""Bounds of every step, tightened where tighter bounds help, and bounds of rows.

The ladder of `tighten`: intervals first, from operands that are already tight; then a backward
pass for the elements of a nonlinear step's operand that are still ambiguous; then, if asked for,
slopes optimised for each element that remains so. The intersection is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from certify.bounds.backward import Sweep, start
from certify.bounds.budget import Limits, row_chunks
from certify.bounds.columns import Columns
from certify.bounds.heap import keep_freed_memory
from certify.bounds.interval import intersect, interval_step
from certify.bounds.program import Program, Step, to_tensor
from certify.bounds.rows import UnitRows, per_example
from certify.bounds.threads import threads_for
from certify.core.region import Product, Region
from certify.core.region_box import BoxShaped
from certify.core.semantics import Semantics
from certify.ops import directed
from certify.ops.record import Interval, Relaxation

if TYPE_CHECKING:
    from certify.bounds.alpha import Alpha

_RELAX_OPERATIONS = 64.0  # floating-point operations per element of a relaxation, about

Slopes = Mapping[int, tuple[Tensor, ...]]  # by step index; (B, R or 1, *shape) each


@dataclass(frozen=True, eq=False)
class UnitPass:
    """One backward pass that tightened intermediate bounds; enough to run it again.

    Attributes:
        index: flat positions of the bounded elements, ``(B, R)``.
        slopes: optimised slopes for the rows and then their negations ``(B, 2R, ...)``; None for
            the defaults.
        idle: ``(B, 1)``, true for examples whose rows only fill up the batch.
    """

    index: Tensor
    slopes: Slopes | None
    idle: Tensor | None = None


Recipe = Mapping[int, Sequence[UnitPass]]  # by step index


@dataclass(frozen=True)
class Plan:
    """How intermediate bounds are found.

    Attributes:
        refine: by backward passes for ambiguous elements, not by intervals alone.
        alpha: settings for optimising the slopes of those passes, or None.
        recipe: run exactly these passes instead.
        known: sound bounds from elsewhere, per step, to intersect with.
    """

    refine: bool = True
    alpha: Alpha | None = None
    recipe: Recipe | None = None
    known: Sequence[Interval | None] | None = None


@dataclass
class State:
    """What one call knows about one program on one region. Local to the call.

    Attributes:
        bounds: per step, the best interval known.
        errors: per step, rounding error per unit of |A| (rigorous semantics only).
        recipe: the backward passes that were run, so that another precision can repeat them.
        exact: per step, 0 = independent elements with exact ranges, 1 = exact ranges of single
            elements, 2 = neither; a backward pass cannot improve 0 and 1.
    """

    program: Program
    region: Region
    semantics: Semantics
    limits: Limits
    bounds: list[Interval | None]
    errors: dict[int, Tensor] = field(default_factory=dict)
    exact: list[int] = field(default_factory=list)
    relaxations: dict[int, Relaxation] = field(default_factory=dict)
    recipe: dict[int, list[UnitPass]] = field(default_factory=dict)

    @cached_property
    def columns(self) -> Columns:
        """Which elements are always zero; follows the bounds."""
        return Columns(self.bounds)

    def box(self, index: int) -> Interval:
        """The interval of a step that has been reached."""
        found = self.bounds[index]
        if found is None:
            raise TypeError(f"step {index} has no bounds yet")
        return found

    def relax(self, step: Step) -> Relaxation:
        """The default relaxation of a nonlinear step on its current bounds."""
        found = self.relaxations.get(step.index)
        if found is None:
            with threads_for(_RELAX_OPERATIONS * self.region.batch * math.prod(step.site.shape)):
                found = step.curve.relax(step.site, None, *step.operands(self.bounds))
            self.relaxations[step.index] = found
        return found

    def sweep(self, rows: Mapping[int, Any]) -> Sweep:
        """A backward pass from ``rows`` that knows this state's bounds."""
        sweep = start(self.program, self.bounds, self.errors, self.semantics, self.limits, rows)
        sweep.columns = self.columns
        return sweep

    def searching(self) -> State:
        """The same knowledge without rounding errors: for optimisers, not for proofs."""
        return replace(self, semantics=Semantics.SEARCH, errors={})


def tighten(
    program: Program, region: Region, plan: Plan, semantics: Semantics, limits: Limits
) -> State:
    """Bounds of every step over ``region`` (batched, one part per model input)."""
    state = State(program, region, semantics, limits, [None] * len(program.steps))
    boxes = iter(input_boxes(program, region))
    plain = isinstance(region, BoxShaped) or (
        isinstance(region, Product) and all(isinstance(p, BoxShaped) for p in region.parts)
    )
    wanted = _nonlinear_operands(program)
    for index, step in enumerate(program.steps):
        if step is None:
            state.bounds[index] = next(boxes)
            state.exact.append(0 if plain else 2)
            continue
        with threads_for(4 * program.operations * region.batch):
            found, error = interval_step(step, state.bounds, semantics)
        known = None if plan.known is None else plan.known[index]
        if known is not None:
            found = intersect(found, _cast(known, program))
        state.bounds[index] = defined(found) if index in wanted else found
        if error is not None:
            state.errors[index] = error
        state.exact.append(_exactness(step, state.exact))
        loose = index in wanted and state.exact[index] == 2 and _first_layer(program, region, index)
        if loose and _from_parts(state, index):
            continue
        if plan.recipe is not None:
            for unit in plan.recipe.get(index, ()):
                _apply(state, index, unit)
        elif loose:
            _apply_all(state, index)
        elif index in wanted and state.exact[index] == 2 and plan.refine:
            _refine(state, index, plan.alpha)
    return state


def _first_layer(program: Program, region: Region, index: int) -> bool:
    """Whether a step is affine in inputs whose region is much less than its bounding box.

    The region's own minimum is then worth a pass even for intervals ("simplex" bounds of
    substitutions, Huang et al. 2019, and the like).
    """
    parts = region.parts if isinstance(region, Product) else (region,)
    steps = (program.steps[i] for i in program.ancestors[index])
    return any(p.loose_hull for p in parts) and all(s is None or s.affine for s in steps)


def _from_parts(state: State, index: int) -> bool:
    """Bound a step that is affine in the input by the values of few boxes, if the region is made
    of such (and nothing but exact arithmetic is wanted: what a deployed network rounds does not
    add up)."""
    region, program = state.region, state.program
    one = None if state.semantics is Semantics.FLOAT32 else region.rows([0]).parts_of_affine()
    if one is None:
        return False
    size = one[0].shape[1] * max(math.prod(program.shape(i)) for i in program.ancestors[index])
    at_once = max(1, state.limits.memory // (64 * size))
    found = []
    for first in range(0, region.batch, at_once):
        part = region.rows(range(first, min(first + at_once, region.batch)))
        found.append(part.affine_range(*_images(state, index, part.parts_of_affine())))
    low, high = (torch.cat(side) for side in zip(*found, strict=True))
    if state.semantics.rigorous:
        low, high = directed.round_down(low, program.dtype), directed.round_up(high, program.dtype)
    shape = (region.batch, *program.shape(index))
    ends = (end.to(program.dtype).reshape(shape) for end in (low, high))
    state.bounds[index] = intersect(state.box(index), Interval(*ends))
    return True


def _images(state: State, index: int, boxes: Any) -> tuple[Tensor, Tensor]:
    """Intervals of a step over boxes ``(B, M, *shape)`` of the only model input, ``(B, M, n)``
    each, float64."""
    program = state.program
    bounds: list[Interval | None] = [None] * len(program.steps)
    (source,) = program.inputs
    B, M = boxes[0].shape[:2]
    lower, upper = (to_tensor(side).to(program.device).flatten(0, 1) for side in boxes)
    bounds[source] = Interval(_to(program, lower, -torch.inf), _to(program, upper, torch.inf))
    for i in sorted(program.ancestors[index] - {source}):
        step = program.steps[i]
        if step is not None:
            bounds[i] = interval_step(step, bounds, state.semantics)[0]
    found = bounds[index]
    if found is None:
        raise TypeError(f"step {index} has no bounds")
    low, high = (side.expand(B * M, *side.shape[1:]).reshape(B, M, -1).double() for side in found)
    return low, high


def row_bounds(
    state: State,
    rows: Mapping[int, Tensor | UnitRows],
    slopes: Slopes | None = None,
    *,
    mirrored: bool = False,
) -> Tensor:
    """Lower bounds ``(B, R)`` of rows over the region (and of their negations, if mirrored: 2R).

    Args:
        rows: coefficients ``(B or 1, R, *shape)``, or unit rows, by step index; their sum is
            bounded.
        slopes: slopes to use instead of the defaults, per nonlinear step.
    """
    sweep = state.sweep(rows)
    sweep.mirrored = mirrored
    sweep.run(relax_with(state, slopes))
    return sweep.minimum(state.region, state.program.inputs)


def interval_row_bounds(
    state: State, rows: Mapping[int, Tensor], *, mirrored: bool = False
) -> Tensor:
    """Lower bounds of rows from intervals, merged into the affine steps they come from.

    The rows are pulled back through affine steps only and concretised there: margins between
    outputs are bounded, not outputs ("last-layer elision").
    """
    sweep = pull_to_nonlinear(state, rows, mirrored=mirrored)
    program = state.program
    if all(program.steps[i] is None for i in sweep.coefficients):
        return sweep.minimum(state.region, program.inputs)
    return sweep.box_minimum()


def pull_to_nonlinear(state: State, rows: Mapping[int, Any], *, mirrored: bool = False) -> Sweep:
    """Rows pulled back through affine steps only."""
    sweep = state.sweep(rows)
    sweep.mirrored = mirrored
    steps = state.program.steps
    sweep.run(state.relax, frozenset(i for i, s in enumerate(steps) if s is None or not s.affine))
    return sweep


def relax_with(state: State, slopes: Slopes | None) -> Any:
    """How a sweep relaxes nonlinear steps: with these slopes, and the defaults for other steps."""
    if slopes is None:
        return state.relax

    def relax(step: Step) -> Relaxation:
        chosen = slopes.get(step.index)
        if chosen is None:
            return state.relax(step)
        operands = step.operands(state.bounds)
        if state.semantics.rigorous:  # slopes may come from another precision, or from a file
            ranges = step.curve.slopes
            allowed = ranges(step.site, *operands) if ranges else ()
            chosen = tuple(
                c.maximum(s.low).minimum(s.high) for c, s in zip(chosen, allowed, strict=True)
            )
        return step.curve.relax(step.site, chosen, *operands)

    return relax


def input_boxes(program: Program, region: Region) -> list[Interval]:
    """The smallest box around each input's part of the region, rounded outward."""
    lower, upper = region.bounding_box()
    many = isinstance(region, Product)
    found = []
    for low, high in zip(lower if many else (lower,), upper if many else (upper,), strict=True):
        found.append(Interval(_to(program, low, -torch.inf), _to(program, high, torch.inf)))
    return found


def _to(program: Program, array: Any, outward: float) -> Tensor:
    """An end of the input box in the program's precision, rounded outward."""
    exact = to_tensor(array).to(device=program.device)
    near = exact.to(program.dtype)
    if exact.dtype != torch.float64 or program.dtype == torch.float64 or exact.requires_grad:
        return near
    inside = near.double() > exact if outward < 0 else near.double() < exact
    return torch.where(inside, torch.nextafter(near, torch.full_like(near, outward)), near)


def _cast(known: Interval, program: Program) -> Interval:
    if known.lower.dtype.itemsize > program.dtype.itemsize:
        raise TypeError("known bounds would be rounded to nearest; keep them in their precision")
    return Interval(known.lower.to(program.dtype), known.upper.to(program.dtype))


def defined(found: Interval) -> Interval:
    """``found`` with infinity in place of NaN."""
    inf = torch.inf
    return Interval(
        torch.nan_to_num(found.lower, nan=-inf, posinf=inf, neginf=-inf),
        torch.nan_to_num(found.upper, nan=inf, posinf=inf, neginf=-inf),
    )


def _nonlinear_operands(program: Program) -> set[int]:
    return {i for s in program.steps if s is not None and not s.affine for i in s.variables}


def _exactness(step: Step, exact: list[int]) -> int:
    worst = max(exact[i] for i in step.variables)
    single = sum(step.site.varies) == 1
    if worst == 2 or not single:
        return 2
    if not step.affine:
        return worst if step.curve.elementwise else 2
    if step.diagonal:
        return worst
    copies = (
        step.linear.summands(step.site)[0] <= 1
    )  # each element is one operand element, perhaps again
    return 1 if copies or worst == 0 else 2


def _ambiguous(state: State, index: int) -> Tensor:
    """Which elements of a step's result would profit from tighter bounds, ``(B, n)``."""
    box = state.box(index)
    mask: Tensor | None = None
    for consumer in state.program.consumers[index]:
        step = state.program.steps[consumer]
        if step is None or step.affine:
            continue
        rule = step.curve
        found = rule.ambiguous(step.site, box) if rule.ambiguous else box.upper > box.lower
        mask = found if mask is None else mask | found
    if mask is None:
        raise TypeError(f"step {index} is read by no nonlinear step")
    return per_example(mask)


def _refine(state: State, index: int, alpha: Alpha | None) -> None:
    """Tighten a step's ambiguous elements: CROWN first, optimised slopes for what remains."""
    for settings in (None, alpha) if alpha else (None,):
        mask = _ambiguous(state, index)
        width = int(mask.sum(1).max())
        if width == 0:
            return
        keep_freed_memory()
        picked = mask.nonzero()[:, 1].unsqueeze(0) if mask.shape[0] == 1 else _padded(mask, width)
        if settings:
            settings = settings.at_cost(2.0 * picked.numel() * state.program.operations)
        for part in row_chunks(state.program, index, mask.shape[0], width, state.limits.memory):
            chosen = picked[:, part]
            slopes = None
            if settings:
                from certify.bounds.alpha import optimise_units

                slopes = optimise_units(state, index, chosen, settings)
            # Examples with nothing to tighten must not depend on which others share their batch.
            idle = None if mask.shape[0] == 1 else ~mask.any(1, keepdim=True)
            _apply(state, index, UnitPass(chosen, slopes, idle))


def _apply_all(state: State, index: int) -> None:
    """Bound every element of a step by a backward pass: its range counts even where its sign is
    known."""
    box, size = state.box(index), math.prod(state.program.shape(index))
    every = torch.arange(size, device=box.lower.device).unsqueeze(0).expand(len(box.lower), -1)
    for part in row_chunks(state.program, index, len(box.lower), size, state.limits.memory):
        _apply(state, index, UnitPass(every[:, part], None))


def unit_rows(state: State, index: int, chosen: Tensor) -> UnitRows:
    """Rows that select elements ``chosen (B, R)`` of a step's result."""
    box = state.box(index)
    return UnitRows(chosen, state.program.shape(index), box.lower)


def _apply(state: State, index: int, unit: UnitPass) -> None:
    """Run one pass and intersect what it finds with what is known."""
    box = state.box(index)
    rows = unit_rows(state, index, unit.index)
    found = row_bounds(state, {index: rows}, unit.slopes, mirrored=True)
    if unit.idle is not None:
        found = found.masked_fill(unit.idle, -torch.inf)
    low, high = found.chunk(2, 1)
    lower, upper = per_example(box.lower), per_example(box.upper)
    lower = lower.scatter(1, unit.index, torch.fmax(low, rows.pick(lower)))
    upper = upper.scatter(1, unit.index, torch.fmin(-high, rows.pick(upper)))
    shape = (lower.shape[0], *state.program.shape(index))
    state.bounds[index] = Interval(lower.reshape(shape), upper.reshape(shape))
    state.recipe.setdefault(index, []).append(unit)


def _padded(mask: Tensor, width: int) -> Tensor:
    """Positions of the true elements per example, ``(B, width)``; the rest repeat the first."""
    order = torch.sort(mask.to(torch.uint8), dim=1, descending=True, stable=True).indices[:, :width]
    filled = torch.arange(width, device=mask.device) < mask.sum(1, keepdim=True)
    return torch.where(filled, order, order[:, :1])
