"""Multipliers from a linear program, where gradients creep: sub-problems that are nearly linear.

With every relaxation fixed, each split is a half-space in the inputs, and the best multipliers are
the dual solution of minimising the row's plane over the box where all of them hold. All programs of
a batch are solved at once by a primal-dual method whose steps fit each row and column (Pock and
Chambolle, Diagonal preconditioning for first order primal-dual algorithms, 2011). What the
multipliers are worth is proved like everything else.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from certify.bounds.crown import State
from certify.bounds.planes import input_box, planes
from certify.search.neuron_split.bounding import Known, opened
from certify.search.neuron_split.domains import Domains
from certify.search.neuron_split.root import Chooser, Root

_STEPS, _LOOK = 160, 20  # iterations, and how many from one look at the bound to the next


class _Programs(NamedTuple):
    """Minimise ``goal . x`` over ``low <= x <= high`` with ``A x + b >= 0``, N times.

    Attributes:
        goal, low, high: ``(N, n)``; A: ``(N, D, n)``; b: ``(N, D)``.
    """

    goal: Tensor
    low: Tensor
    high: Tensor
    A: Tensor
    b: Tensor


def polished(root: Root, domains: Domains, known: Known | None) -> Domains:
    """The same sub-problems with other multipliers; to be kept where they prove more."""
    if not domains.step.shape[1]:
        return domains
    with torch.no_grad():
        state, _ = opened(root, domains, known, rigorous=False)
        chooser = Chooser(state, root.layout, len(domains))
        slopes = chooser(chooser.inside(domains.slopes))
        weight = domains.weight / domains.weight.sum(1, keepdim=True)
        rows = root.clauses.rows(root.fast, domains.clause, weight.to(root.fast.dtype))
        target = planes(state, rows, slopes)
        cuts = [_half_spaces(root, state, domains, k) for k in range(domains.step.shape[1])]
        A, b = (torch.stack(t, 1) for t in zip(*cuts, strict=True))
        low, high = (t.expand(len(domains), -1) for t in input_box(state))
        found = _multipliers(_Programs(target.A[:, 0], low, high, A, b), domains.beta.to(A))
        return replace(domains, beta=found.to(domains.beta))


def _half_spaces(root: Root, state: State, domains: Domains, k: int) -> tuple[Tensor, Tensor]:
    """``A . x + b >= 0`` wherever the k-th split holds; ``(N, n)`` and ``(N,)``."""
    program, count = root.fast, len(domains)
    like = torch.empty(0, dtype=program.dtype, device=program.device)
    size = sum(int(np.prod(program.shape(i))) for i in program.inputs)
    A, b = like.new_zeros(count, size), like.new_zeros(count)
    used = set(domains.step[:, k].tolist()) & domains.steps
    for index in used - set(program.inputs):
        here = domains.step[:, k] == index
        shape = program.shape(index)
        flat = like.new_zeros(count, int(np.prod(shape)))
        element = torch.where(here, domains.element[:, k], 0)[:, None]
        side = domains.side[:, k].to(flat)
        flat.scatter_(1, element, -side[:, None])  # a lower plane of -side z
        found = planes(state, {index: flat.reshape(count, 1, *shape)})
        point = side * domains.point[:, k].to(flat)
        A = torch.where(here[:, None], -found.A[:, 0], A)
        b = torch.where(here, -found.b[:, 0] - point, b)
    return A, b


def _multipliers(given: _Programs, start: Tensor) -> Tensor:
    """The best multipliers met, ``(N, D)``, never worse than ``start`` for these programs.

    Args:
        start: ``(N, D)`` >= 0.
    """
    radius = 0.5 * (given.high - given.low)
    middle = 0.5 * (given.high + given.low)
    # In units of the box and of the rows, x in [-1, 1] and every row of A sums up to 1.
    A = given.A * radius[:, None]
    size = A.abs().sum(2).clamp(min=1e-30)
    A, b = A / size[..., None], ((given.A @ middle[..., None])[..., 0] + given.b) / size
    goal = given.goal * radius
    scale = goal.abs().sum(1, keepdim=True).clamp(min=1e-30)
    goal, y = goal / scale, start.clamp(min=0.0) * size / scale
    if not bool(A.isfinite().all() and b.isfinite().all() and goal.isfinite().all()):
        return start
    best, worth = y, _dual(goal, A, b, y)
    tau = 1.0 / A.abs().sum(1).clamp(min=1e-9)
    x, total = torch.zeros_like(goal), torch.zeros_like(y)
    for step in range(1, _STEPS + 1):
        after = (x - tau * (goal - (y[:, None] @ A)[:, 0])).clamp(-1.0, 1.0)
        ahead = 2 * after - x
        y = (y - (A @ ahead[..., None])[..., 0] - b).clamp(min=0.0)
        x, total = after, total + y
        if step % _LOOK == 0:
            for candidate in (y, total / _LOOK):
                value = _dual(goal, A, b, candidate)
                better = value > worth
                best = torch.where(better[:, None], candidate, best)
                worth = torch.where(better, value, worth)
            total = torch.zeros_like(y)
    return best * scale / size


def _dual(goal: Tensor, A: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """What multipliers show: the least ``(goal - y A) . x - y . b`` with x in [-1, 1], ``(N,)``."""
    return -(goal - (y[:, None] @ A)[:, 0]).abs().sum(1) - (y * b).sum(1)
