"""Where to split: estimates for every element at once, then both children of the best few bounded.

The estimate is how much the bound would rise where its plane is lowest if one element's relaxation
were replaced by that of a child (for ReLU close to BaBSR, Bunel et al. 2020; for other functions to
the heuristic of GenBaB, Shi et al. 2024). Bounding the best few children follows filtered smart
branching (De Palma et al. 2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from certify.bounds.crown import State
from certify.bounds.planes import input_box
from certify.bounds.program import Step
from certify.ops.families import Lines
from certify.ops.record import Interval
from certify.search.neuron_split.anatomy import Anatomy
from certify.search.neuron_split.root import Root

_TINY = 1e-9  # share of an interval's width that breaks ties
_FEW_INPUTS = 16  # up to here, inputs compete with the operands of coupled functions
_NOTHING = 1e-6  # share of a plane's spread below which splitting neurons promises nothing


class Offers(NamedTuple):
    """Splits that may be made, per sub-problem, ``(N, C)`` each.

    Attributes:
        step, element, point: what to split and where; step -1: nothing.
        left, right: multipliers for the children that keep their parent's plane or improve it.
        scale: what the multipliers may usefully grow to.
    """

    step: Tensor
    element: Tensor
    point: Tensor
    left: Tensor
    right: Tensor
    scale: Tensor

    def column(self, index: Tensor) -> Offers:
        """One offer of each sub-problem, ``(N, 1)``; ``index (N,)``."""
        return Offers(*(t.gather(1, index[:, None]) for t in self))


@dataclass(frozen=True, eq=False)
class _Estimate:
    """For every element of one operand, ``(N, n)`` each; see `Offers`."""

    step: int
    gain: Tensor
    gap: Tensor
    point: Tensor
    left: Tensor
    right: Tensor
    scale: Tensor


def offers(root: Root, anatomy: Anatomy, count: int) -> Offers:
    """The most promising splits: ``count`` by estimated gain and ``count`` by the gap closed."""
    found = [e for o in root.operands for e in _estimates(anatomy, o)]
    neurons = sum(e.gain.shape[1] for e in found)
    if root.box:
        worth = torch.stack([e.gain.maximum(e.gap).amax(1) for e in found]) if found else None
        found += list(_inputs(root, anatomy, None if worth is None else worth.amax(0)))
    step = torch.cat([torch.full_like(e.gain, e.step, dtype=torch.int64) for e in found], 1)
    element = torch.cat([_numbers(e.gain) for e in found], 1)
    gain, gap, point, left, right, scale = (
        torch.cat([getattr(e, name) for e in found], 1)
        for name in ("gain", "gap", "point", "left", "right", "scale")
    )
    size = min(count, gain.shape[1])
    picked = torch.cat([score.topk(size, 1).indices for score in (gain, gap)], 1)
    if neurons < gain.shape[1]:  # estimates of neurons and inputs cannot be compared
        inputs = neurons + gain[:, neurons:].argmax(1, keepdim=True)
        picked = torch.cat([picked, inputs], 1)
    step = torch.where(gain == -torch.inf, -1, step)
    offered = Offers(*(t.gather(1, picked) for t in (step, element, point, left, right, scale)))
    return offered._replace(step=torch.where(_again(picked), -1, offered.step))


def _again(picked: Tensor) -> Tensor:
    """Which picks ``(N, C)`` are also further to the left."""
    same = picked[:, :, None] == picked[:, None, :]
    return same.tril(-1).any(2)


def _numbers(like: Tensor) -> Tensor:
    return torch.arange(like.shape[1], device=like.device).expand(like.shape[0], -1)


def _flat(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1)


# -- neurons --------------------------------------------------------------------------------------


def _estimates(anatomy: Anatomy, operand: int) -> Iterator[_Estimate]:
    """What splitting elements of one step's result may bring."""
    state = anatomy.state
    box, program = state.box(operand), state.program
    if program.steps[operand] is None:
        return  # inputs are looked at on their own
    best: _Estimate | None = None
    for consumer in program.consumers[operand]:
        step = program.steps[consumer]
        if step is None or step.affine or consumer not in anatomy.at:
            continue
        for point in _points(step, anatomy.values[operand], box):
            found = _estimate(anatomy, step, operand, point)
            best = found if best is None else _better(best, found)
    if best is not None:
        yield best


def _points(step: Step, value: Tensor, box: Interval) -> Iterator[Tensor]:
    """Places to split: 0 where it is inside, else the middle; and where the plane is lowest.

    Where the first makes both halves exact, such as at the kink of a ReLU, there is no second.
    """
    low, high = box
    first = torch.where((low < 0) & (high > 0), 0.0, 0.5 * low + 0.5 * high)
    yield first
    rough = [_ambiguous(step, Interval(*ends)) for ends in ((low, first), (first, high))]
    rest = (rough[0] | rough[1]).reshape(low.shape)
    if bool(rest.any()):
        width = high - low
        second = value.maximum(low + 0.1 * width).minimum(high - 0.1 * width)
        yield torch.where(rest, second, torch.nan)


def _better(a: _Estimate, b: _Estimate) -> _Estimate:
    better = b.gain > a.gain
    names = ("gain", "gap", "point", "left", "right", "scale")
    both = {n: torch.where(better, getattr(b, n), getattr(a, n)) for n in names}
    return _Estimate(a.step, **both)


def _estimate(anatomy: Anatomy, step: Step, operand: int, point: Tensor) -> _Estimate:
    state = anatomy.state
    box = state.box(operand)
    low, high = _flat(box.lower), _flat(box.upper)
    s = _flat(point)
    possible = _ambiguous(step, box) & (low < s) & (s < high) & s.isfinite()
    pair = (Interval(box.lower, point), Interval(point, box.upper))
    if step.curve.elementwise and step.site.shape == state.program.shape(operand):
        gains, gap, betas, scale = _by_lines(anatomy, step, operand, pair, point)
    else:
        gains, gap, betas, scale = _by_width(anatomy, step, operand, pair)
    ties = _TINY * (high - low).clamp(max=1e6)
    gain = torch.where(possible, gains[0] + gains[1] + ties, -torch.inf)
    gap = torch.where(possible, gap + ties, -torch.inf)
    return _Estimate(operand, gain, gap, s, *betas, scale)


_Found = tuple[tuple[Tensor, Tensor], Tensor, tuple[Tensor, Tensor], Tensor]


def _by_lines(
    anatomy: Anatomy, step: Step, operand: int, pair: tuple[Interval, Interval], point: Tensor
) -> _Found:
    """Gains of both children where the plane is lowest, and at the splitting point."""
    state, a = anatomy.state, _flat(anatomy.at[step.index])
    now = _coefficients(step, state, state.box(operand), anatomy.slopes.get(step.index), a)
    value, s = _flat(anatomy.values[operand]), _flat(point)
    gains, gaps, betas = [], [], []
    for sign, box in zip((-1, 1), pair, strict=True):
        new = _coefficients(step, state, box, None, a)
        low, high = _flat(box.lower), _flat(box.upper)
        nearest = value.maximum(low).minimum(high)
        k, c = new[0] - now[0], new[1] - now[1]
        gains.append((k * nearest + c).clamp(min=0.0).nan_to_num(0.0))
        gaps.append((k * s + c).clamp(min=0.0).nan_to_num(0.0))
        betas.append((sign * k).clamp(min=0.0).nan_to_num(0.0))
    size = a.abs()
    scale = size + 0.1 * size.mean(1, keepdim=True)
    return (gains[0], gains[1]), gaps[0].minimum(gaps[1]), (betas[0], betas[1]), scale


def _coefficients(
    step: Step, state: State, box: Interval, slopes: tuple[Tensor, ...] | None, a: Tensor
) -> tuple[Tensor, Tensor]:
    """Slope and intercept ``(N, n)`` that coefficients ``a`` of the result turn into."""
    values = list(state.bounds)
    values[step.variables[0]] = box
    lines = step.curve.relax(step.site, slopes, *step.operands(values))
    if not isinstance(lines, Lines):
        raise TypeError(f"{step.node.name} is elementwise, but its relaxation is no pair of lines")
    place = next(i for i, source in enumerate(step.sources) if source is not None)
    zero = torch.zeros((), dtype=a.dtype, device=a.device)

    def part(t: Tensor | None) -> Tensor:
        return zero if t is None else _flat(t.expand(len(a), 1, *step.site.shape)[:, 0])

    low, high = part(lines.low[place]), part(lines.up[place])
    low_c, high_c = part(lines.low_c), part(lines.up_c)
    return torch.where(a > 0, low, high) * a, torch.where(a > 0, low_c, high_c) * a


def _by_width(
    anatomy: Anatomy, step: Step, operand: int, pair: tuple[Interval, Interval]
) -> _Found:
    """For operators without lines: the width cut off, times the largest coefficient."""
    a = _flat(anatomy.at[step.index]).abs().amax(1, keepdim=True)
    left, right = (_flat(b.upper - b.lower) for b in pair)
    none = torch.zeros_like(left)
    return (a * right, a * left), a * left.minimum(right), (none, none), a + none


def _ambiguous(step: Step, box: Interval) -> Tensor:
    rule = step.curve
    found = rule.ambiguous(step.site, box) if rule.ambiguous else box.upper > box.lower
    return _flat(found)


# -- inputs ---------------------------------------------------------------------------------------


def _inputs(root: Root, anatomy: Anatomy, worth: Tensor | None) -> Iterator[_Estimate]:
    """Halving a model input: the last resort, and what nonlinear functions of inputs need.

    Args:
        worth: ``(N,)`` the best that splitting a neuron promises; None where there are none.
    """
    state, start = anatomy.state, 0
    lower, upper = input_box(state)
    spread = (anatomy.plane.abs() * (upper - lower)).sum(1)
    needed = torch.ones_like(spread).bool() if worth is None else worth <= _NOTHING * spread
    steps = [state.program.steps[i] for i in anatomy.at]
    coupled = any(s is not None and not s.curve.elementwise for s in steps)
    few = coupled and int((upper > lower).sum(1).max()) <= _FEW_INPUTS
    for index in state.program.inputs:
        low, high = (_flat(t) for t in state.box(index))
        middle = 0.5 * low + 0.5 * high
        possible = (low < middle) & (middle < high)
        size = anatomy.plane[:, start : start + low.shape[1]].abs()
        start += low.shape[1]
        direct = few or any(
            s is not None and not s.affine
            for s in (state.program.steps[i] for i in state.program.consumers[index])
        )
        rank = (size + 1e-3 * size.mean(1, keepdim=True)) * (high - low)
        if not direct:
            possible = possible & needed[:, None]
        gain = torch.where(possible, rank * (1.0 if direct else _TINY), -torch.inf)
        none = torch.zeros_like(low)
        yield _Estimate(index, gain, gain, middle, none, none, none)
