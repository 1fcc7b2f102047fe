"""L2 balls around intermediate results, for inputs in L2 balls.

Intervals forget that not all neurons can be far out at once. A ball remembers: with ``|W|`` the
largest singular value, ``|W d| <= |W| |d|``, and an activation of two straight halves stretches by
no more than its steeper slope. `certify.bounds.dual` adds the constraint ``|z - centre| <= radius``
to its inner problems, as SDP-CROWN does (Chiu et al. 2025), where it is worth up to the square root
of the width of a layer.

Radii are proofs: norms by `certify.bounds.definite`, centres by interval arithmetic on points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from certify.bounds.backward import start
from certify.bounds.budget import row_chunks
from certify.bounds.crown import State
from certify.bounds.definite import spectral_norm
from certify.bounds.interval import interval_step
from certify.bounds.program import Program, Step, to_tensor
from certify.bounds.rows import dense
from certify.core.region import L2, Product, Region
from certify.core.semantics import Semantics
from certify.ops.record import Interval, Relaxation

_UP = 1 + 2.0**-30  # far more than the rounding of a norm
_LARGEST = 2**27  # elements of a layer's matrix; beyond, its ball is that of its box

_NORMS: WeakKeyDictionary[Program, dict[int, dict[int, float]]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Ball:
    """``|z - centre|_2 <= radius`` for the operand of a step.

    Attributes:
        centre: ``(B, 1, *shape)``, float64.
        radius: ``(B, 1)``, float64.
    """

    centre: Tensor
    radius: Tensor


def balls(state: State) -> dict[int, Ball]:
    """Balls that hold the operands of activations of two straight halves, by step index.

    None unless a model input lies in an L2 ball, and none for float32 semantics.
    """
    if state.semantics is Semantics.FLOAT32 or not in_l2_ball(state.region):
        return {}
    with torch.no_grad():
        return _Walk(state).run()


def in_l2_ball(region: Region) -> bool:
    """Whether a model input lies in an L2 ball."""
    return any(isinstance(part, L2) for part in _parts(region))


def _parts(region: Region) -> tuple[Region, ...]:
    return tuple(region.parts) if isinstance(region, Product) else (region,)


class _Walk:
    """Centres and radii, step by step."""

    def __init__(self, state: State) -> None:
        self._state, self._parts = state, iter(_parts(state.region))
        self._points: list[Interval | None] = [None] * len(state.program.steps)
        self._radius: dict[int, Tensor] = {}  # of inputs and of results of nonlinear steps
        self._found: dict[int, Ball] = {}

    def run(self) -> dict[int, Ball]:
        state = self._state
        for index, step in enumerate(state.program.steps):
            if step is None:
                self._input(index, next(self._parts))
            elif step.affine:
                self._points[index] = interval_step(step, self._points, state.semantics)[0]
            else:
                self._bend(step)
        return self._found

    def _input(self, index: int, part: Region) -> None:
        box = self._state.box(index)
        if not isinstance(part, L2):
            self._around_box(index, box)
            return
        like = box.lower
        exact = to_tensor(part.center).to(like.device).double()
        centre = exact.to(like.dtype)
        eps = to_tensor(part.eps).to(like.device).double().reshape(-1)
        self._points[index] = Interval(centre, centre)
        self._radius[index] = _UP * (eps + _norm(centre.double() - exact))

    def _around_box(self, index: int, box: Interval) -> None:
        centre = torch.lerp(box.lower, box.upper, 0.5)
        self._points[index] = Interval(centre, centre)
        self._radius[index] = _reach(box, centre)

    def _bend(self, step: Step) -> None:
        state, box = self._state, self._state.box(step.index)
        ball = self._operand(step) if step.curve.halves and sum(step.site.varies) == 1 else None
        if ball is None or not step.curve.halves:
            self._around_box(step.index, box)
            return
        self._found[step.index] = ball
        at = ball.centre.squeeze(1).to(state.program.dtype)
        point = Interval(at, at)
        operands = [c if s is None else point for s, c in
                    zip(step.sources, step.constants, strict=True)]
        result = step.curve.interval(step.site, *operands)
        constants = [c for s, c in zip(step.sources, step.constants, strict=True) if s is None]
        left, right = step.curve.halves(step.site, at, *constants)
        steepest = float(torch.maximum(left.abs(), right.abs()).max())
        centre = torch.lerp(result.lower, result.upper, 0.5)
        radius = _UP * (steepest * ball.radius[:, 0] + _reach(result, centre))
        self._points[step.index] = Interval(centre, centre)
        self._radius[step.index] = torch.fmin(radius, _reach(box, centre))

    def _operand(self, step: Step) -> Ball | None:
        """The ball around what a step reads."""
        (index,), state = step.variables, self._state
        point, box = self._points[index], state.box(index)
        if point is None:
            raise TypeError(f"step {index} has not been reached")
        centre = torch.lerp(point.lower, point.upper, 0.5)
        total = _reach(point, centre)
        if index in self._radius:
            total = total + self._radius[index]
        else:
            for source, norm in norms(state, index).items():
                total = total + norm * self._radius[source]
        radius = torch.fmin(total * _UP, _reach(box, centre))
        if not bool(radius.isfinite().all() & centre.isfinite().all()):
            return None
        return Ball(centre.double().unsqueeze(1), radius.unsqueeze(1))


def _norm(difference: Tensor) -> Tensor:
    """``(B,)``"""
    return difference.double().flatten(1).square().sum(1).sqrt()


def _reach(box: Interval, centre: Tensor) -> Tensor:
    """How far a point of a box can be from a centre, rounded up, ``(B,)``."""
    low, high = (side.double() - centre.double() for side in box)
    return _UP * _norm(torch.maximum(low.abs(), high.abs())) + 2.0**-500


def norms(state: State, index: int) -> Mapping[int, float]:
    """By source, the norm of a step's result as a function of the nonlinear results and inputs
    that it is affine in."""
    known = _NORMS.setdefault(state.program, {})
    if index not in known:
        known[index] = _norms(state, index)
    return known[index]


def _norms(state: State, index: int) -> dict[int, float]:
    program = state.program
    sources = _sources(program, index)
    size = math.prod(program.shape(index))
    if size * sum(math.prod(program.shape(s)) for s in sources) > _LARGEST:
        return dict.fromkeys(sources, math.inf)
    semantics = Semantics.REAL
    bounds: list[Interval | None] = [None] * len(program.steps)
    errors: dict[int, Tensor] = {}
    like = state.box(index).lower
    for i in sorted({*program.ancestors[index], index}):
        step = program.steps[i]
        if i in sources:  # rounding then costs no more than the error of a row, entry by entry
            one = like.new_ones((1, *program.shape(i)))
            bounds[i] = Interval(-one, one)
        elif step is not None and step.affine and all(bounds[s] for s in step.variables):
            bounds[i], error = interval_step(step, bounds, semantics)
            if error is not None:
                errors[i] = error
    blocks: dict[int, list[Tensor]] = {s: [] for s in sources}
    lost = 0.0
    eye = torch.eye(size, dtype=program.dtype, device=program.device)
    for part in row_chunks(program, index, 1, size, state.limits.memory):
        rows = {index: eye[part].reshape(1, -1, *program.shape(index))}
        sweep = start(program, bounds, errors, semantics, state.limits, rows)
        sweep.run(_nothing, frozenset(sources))
        for s in sources:
            found = sweep.coefficients.get(s)
            count = sweep.bias.shape[1]
            flat = eye.new_zeros(count, math.prod(program.shape(s))) if found is None else \
                dense(found).reshape(count, -1)
            blocks[s].append(flat)
        if sweep.error is not None:
            lost += float(sweep.error.double().square().sum())
    room = 2 * math.sqrt(lost) * _UP  # a row's error bounds that of its terms, and of their sum
    return {s: (spectral_norm(torch.cat(b).double().cpu().numpy()) + room) * _UP
            for s, b in blocks.items()}


def _sources(program: Program, index: int) -> list[int]:
    """Inputs and nonlinear steps that a step is affine in, through affine steps only."""
    found, todo = set[int](), [index]
    while todo:
        step = program.steps[i := todo.pop()]
        if step is None or (not step.affine and i != index):
            found.add(i)
        else:
            todo += step.variables
    return sorted(found)


def _nothing(step: Step) -> Relaxation:
    raise TypeError(f"{step.node.name} is not affine")
