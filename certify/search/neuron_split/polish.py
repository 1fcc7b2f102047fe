"""Multipliers from a linear program, where gradients creep: sub-problems that are nearly linear.

With every relaxation fixed, each split is a half-space in the inputs, and the best multipliers are
the dual solution of minimising the row's plane over the box where all of them hold. The solver is
only asked for multipliers; what they are worth is proved like everything else.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from certify.bounds.crown import State
from certify.bounds.planes import input_box, planes
from certify.search.neuron_split.bounding import Known, opened
from certify.search.neuron_split.domains import Domains
from certify.search.neuron_split.root import Chooser, Root

_LARGEST_SUM = 1e4  # of all multipliers, in units of the row's largest coefficient


def polished(root: Root, domains: Domains, known: Known | None) -> Domains:
    """The same sub-problems with other multipliers; to be kept where they prove more."""
    with torch.no_grad():
        state, _ = opened(root, domains, known, rigorous=False)
        chooser = Chooser(state, root.layout, len(domains))
        slopes = chooser(chooser.inside(domains.slopes))
        weight = domains.weight / domains.weight.sum(1, keepdim=True)
        rows = root.clauses.rows(root.fast, domains.clause, weight.to(root.fast.dtype))
        target = planes(state, rows, slopes)
        low, high = (t.double().cpu().numpy() for t in input_box(state))
        cuts = [_half_spaces(root, state, domains, k) for k in range(domains.step.shape[1])]
    if not cuts:
        return domains
    A = torch.stack([c[0] for c in cuts], 1).double().cpu().numpy()
    b = torch.stack([c[1] for c in cuts], 1).double().cpu().numpy()
    goal = target.A[:, 0].double().cpu().numpy()
    beta = domains.beta.clone()
    for i in range(len(domains)):
        found = _multipliers(goal[i], A[i], b[i], low[i], high[i])
        if found is not None:
            beta[i] = torch.from_numpy(found).to(beta)
    return replace(domains, beta=beta)


def _half_spaces(root: Root, state: State, domains: Domains, k: int) -> tuple[Tensor, Tensor]:
    """``A . x + b >= 0`` wherever the k-th split holds; ``(N, n)`` and ``(N,)``."""
    program, count = root.fast, len(domains)
    like = torch.empty(0, dtype=program.dtype, device=program.device)
    size = sum(int(np.prod(program.shape(i))) for i in program.inputs)
    A, b = like.new_zeros(count, size), like.new_zeros(count)
    for index in domains.steps - set(program.inputs):
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


def _multipliers(
    goal: np.ndarray, A: np.ndarray, b: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray | None:
    """Duals of ``min goal . x + M t`` over the box where ``A x + b + t >= 0``; None on failure.

    The elastic t keeps the program feasible, so that there always are duals; they add up to at
    most M.
    """
    from scipy.optimize import linprog

    penalty = _LARGEST_SUM * max(float(np.abs(goal).max(initial=0.0)), 1e-6)
    if not (np.isfinite(A).all() and np.isfinite(b).all()):
        return None
    solved = linprog(
        np.append(goal, penalty),
        A_ub=np.hstack([-A, -np.ones((len(A), 1))]),
        b_ub=b,
        bounds=[*zip(low, high, strict=True), (0.0, None)],
        method="highs",
    )
    if solved.status != 0:
        return None
    found: np.ndarray = np.clip(-solved.ineqlin.marginals, 0.0, None).astype(np.float32)
    return found
