"""Lagrangian dual bounds: inner problems against brute force, any multipliers, and the optimum."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

import certify
from certify.bounds.alpha import Alpha
from certify.bounds.budget import Limits
from certify.bounds.crown import State, row_bounds
from certify.bounds.dual import (
    Dual,
    Form,
    crown_multipliers,
    dual_bounds,
    free_elements,
    optimise_dual,
)
from certify.bounds.evaluate import evaluate
from certify.bounds.methods import METHODS, MULTIPLIERS, analyse, fit
from certify.bounds.program import prepare
from certify.bounds.triangle import triangle_multipliers
from certify.core.semantics import Semantics
from certify.ops import load
from certify.ops.record import Interval, Op, Site

WITH_INNER = sorted(name for name, op in load().ops.items()
                    if op.relaxed is not None and op.relaxed.inner is not None)


def site_of(op: Op, example) -> Site:
    shapes = tuple(np.shape(o) if isinstance(o, np.ndarray) else tuple(o or ())
                   for o in example.operands)
    varies = tuple(isinstance(o, tuple) for o in example.operands)
    return Site("here", example.attrs, shapes, varies, op.shape(example.attrs, *shapes))


@pytest.mark.parametrize("name", WITH_INNER)
def test_inner_problems_lie_below_every_sample_and_near_the_best(name: str) -> None:
    op = load().ops[name]
    torch.manual_seed(0)
    for example in op.examples:
        site = site_of(op, example)
        if isinstance(op.rule(site), type(op.affine)) or any(
                v and s != site.shape for s, v in zip(site.shapes, site.varies, strict=True)):
            continue
        operands, points = [], []
        for o, shape in zip(example.operands, site.shapes, strict=True):
            if not isinstance(o, tuple):
                fixed = None if o is None else torch.as_tensor(o).double()
                operands.append(fixed)
                points.append(fixed)
                continue
            a, b = (example.low + (example.high - example.low)
                    * torch.rand(1, *shape, dtype=torch.float64) for _ in range(2))
            box = Interval(torch.minimum(a, b), torch.maximum(a, b))
            operands.append(box)
            share = torch.linspace(0, 1, 4001, dtype=torch.float64).reshape(-1, *(1,) * len(shape))
            if sum(site.varies) > 1:
                share = torch.rand(60_000, *shape, dtype=torch.float64)
                share[:4] = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])[:, len(points) % 2] \
                    .reshape(4, *(1,) * len(shape)).double()
            points.append(box.lower + (box.upper - box.lower) * share)
        value = op.forward(site, *points)
        rows = 6
        weight = torch.randn(1, rows, *site.shape, dtype=torch.float64)
        weight[:, 0] = 0.0
        slopes = tuple(torch.randn(1, rows, *site.shape, dtype=torch.float64)
                       for v in site.varies if v)
        slopes[0][:, 1] = 0.0
        found = op.relaxed.inner(site, weight, slopes, *operands)[0]
        moving = [p for p, v in zip(points, site.varies, strict=True) if v]
        for r in range(rows):
            there = weight[0, r] * value
            for k, p in zip(slopes, moving, strict=True):
                there = there - k[0, r] * p
            least = there.amin(0)
            spare = 1e-12 * (1 + there.abs().amax(0))
            assert bool((found[r] <= least + spare).all()), (name, r)
            jumps = float((value[1:] - value[:-1]).abs().max()) > 0.1
            if sum(site.varies) == 1 and not jumps and weight[0, r].any():
                near = (least - found[r]) <= 2e-3 * (1 + there.abs().amax(0))
                assert bool(near.all()), (name, r)


def network(seed: int, act=torch.nn.ReLU) -> tuple[certify.core.graph.Graph, torch.nn.Module]:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Linear(5, 20), act(), torch.nn.Linear(20, 16), act(), torch.nn.Linear(16, 12),
        act(), torch.nn.Linear(12, 3)).double()
    return certify.from_torch(net, torch.zeros(1, 5).double()), net


def state_of(graph, radius: float = 0.6) -> tuple[State, dict[int, torch.Tensor]]:
    region = fit(certify.Linf(np.zeros((1, 1, 5)), radius), graph)
    program = prepare(graph, torch.float64)
    with torch.no_grad():
        state = analyse(program, region, METHODS["crown"], Semantics.REAL, Limits(), Alpha())
    eye = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    return state, {program.output: eye.reshape(1, 6, 1, 3)}


def triangle_optimum(net: torch.nn.Sequential, state: State, c: np.ndarray,
                     radius: float) -> float:
    """The linear programme over triangles, written out for a sequential ReLU network."""
    layers = [m for m in net if isinstance(m, torch.nn.Linear)]
    sizes = [layers[0].in_features, *(m.out_features for m in layers[:-1])]
    at = np.cumsum([0, *sizes])
    rows, right, bounds = [], [], [(-radius, radius)] * sizes[0]
    boxes = [state.box(s.index) for s in state.program.steps
             if s is not None and s.op.name == "linear"]
    for k, layer in enumerate(layers[:-1]):
        W, b = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        for i in range(sizes[k + 1]):
            low, high = (float(side.flatten()[i]) for side in boxes[k])
            z, y = np.zeros(at[-1]), np.zeros(at[-1])
            z[at[k]:at[k + 1]], y[at[k + 1] + i] = W[i], 1
            if low >= 0:
                rows += [z - y, y - z]
                right += [-b[i], b[i]]
                bounds.append((None, None))
            elif high <= 0:
                bounds.append((0, 0))
            else:
                slope = high / (high - low)
                rows += [z - y, y - slope * z]
                right += [-b[i], slope * (b[i] - low)]
                bounds.append((0, None))
    last = layers[-1]
    cost = np.zeros(at[-1])
    cost[at[-2]:] = c @ last.weight.detach().numpy()
    solved = linprog(cost, A_ub=np.array(rows), b_ub=np.array(right), bounds=bounds)
    return float(solved.fun + c @ last.bias.detach().numpy())


@pytest.mark.parametrize("seed", range(2))
def test_the_programme_and_both_ascents_reach_the_triangle_optimum(seed: int) -> None:
    graph, net = network(seed)
    state, rows = state_of(graph)
    with torch.no_grad():
        crown = row_bounds(state, rows)[0].numpy()
    wanted = np.array([triangle_optimum(net, state, c, 0.6)
                       for c in rows[state.program.output][0, :, 0].numpy()])
    assert (crown <= wanted + 1e-9).all()
    size = np.abs(wanted).mean()
    for found, share in (
        (dual_bounds(state, rows, triangle_multipliers(state, rows)), 1e-6),
        (optimise_dual(state, rows, Dual(), Form())[0], 0.005),
        (optimise_dual(state, rows, Dual(), Form(True))[0], 0.01),
    ):
        best = found[0].detach().numpy()
        assert (best <= wanted + 1e-9).all()  # exactly the same relaxation: never above it
        assert (best >= crown - 1e-9).all()
        assert (wanted - best <= share * size + 1e-7).all()


@pytest.mark.parametrize("mismatch", [True, False])
@pytest.mark.parametrize("act", [torch.nn.ReLU, torch.nn.Tanh, torch.nn.GELU])
def test_it_starts_at_crown_rises_and_any_multipliers_are_sound(act, mismatch: bool) -> None:
    graph, _ = network(3, act)
    state, rows = state_of(graph)
    start = crown_multipliers(state, rows, Form(mismatch))
    with torch.no_grad():
        crown = row_bounds(state, rows)
        assert bool((dual_bounds(state, rows, start) >= crown - 1e-9).all())
    values: list[torch.Tensor] = []

    def watched(best: torch.Tensor) -> bool:
        values.append(best)
        return False

    best, multipliers = optimise_dual(state, rows, Dual(iterations=120), Form(mismatch), watched)
    with torch.no_grad():  # what was found can be evaluated again, rounding included
        again = torch.fmax(crown, dual_bounds(state, rows, multipliers))
    assert bool((again >= best - 1e-9).all())
    assert all(bool((b >= a).all()) for a, b in itertools.pairwise(values))
    assert bool((values[0] >= crown - 1e-9).all())
    assert bool((values[-1] > values[0]).any())
    x = torch.rand(20_000, 1, 5, dtype=torch.float64) * 1.2 - 0.6
    samples = evaluate(graph, x).reshape(-1, 3).detach()
    least = torch.cat([samples.amin(0), (-samples).amin(0)])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for size in (1e-3, 0.1, 3.0):
            wild = {i: tuple(t + size * t.abs().mean() * torch.randn(
                t.shape, generator=generator, dtype=t.dtype) for t in g)
                for i, g in start.items()}
            assert bool((dual_bounds(state, rows, wild)[0] <= least + 1e-12).all())
        assert bool((values[-1][0] <= least + 1e-12).all())


@pytest.mark.parametrize("method", sorted(MULTIPLIERS))
def test_verify_and_check_with_a_dual_method(method: str) -> None:
    graph, _ = network(1)
    label = int(evaluate(graph, torch.zeros(1, 1, 5).double()).argmax())
    found = certify.verify(graph, certify.Linf(np.zeros((1, 5)), 0.05),
                           certify.Spec.classify(label, 3), method=method, attack=False)
    assert found.verdict is certify.Verdict.HOLDS
    assert found.provenance.method == method
    assert certify.check(found, graph)


def test_what_is_paid_is_no_less_than_exact_arithmetic_asks() -> None:
    """A split evaluated in rationals: the stored multipliers, the stored bounds, one ReLU layer."""
    rng = np.random.default_rng(0)
    for scale in (1.0, 2.0**30, 2.0**-30):
        torch.manual_seed(int(rng.integers(1 << 30)))
        net = torch.nn.Sequential(torch.nn.Linear(3, 40), torch.nn.ReLU(),
                                  torch.nn.Linear(40, 1)).double()
        with torch.no_grad():
            net[2].weight *= scale
            net[2].weight[0, 1::2] = -net[2].weight[0, ::2]  # sums that cancel
        graph = certify.from_torch(net, torch.zeros(1, 3).double())
        program = prepare(graph, torch.float64)
        region = fit(certify.Linf(np.zeros((1, 1, 3)), 0.7), graph)
        with torch.no_grad():
            state = analyse(program, region, METHODS["crown"], Semantics.REAL, Limits(), Alpha())
            rows = {program.output: torch.ones(1, 1, 1, 1).double()}
            start = crown_multipliers(state, rows, Form(True))
            moved = {i: tuple(t + 0.3 * t.abs().mean() * torch.randn_like(t) for t in g)
                     for i, g in start.items()}
            found = Fraction(float(dual_bounds(state, rows, moved)))
        (index, (weight, mu)), = moved.items()
        step = program.steps[index]
        box, free = state.box(step.variables[0]), free_elements(step, state.bounds).flatten()
        y = state.box(index)
        W, b, c = (p.detach().numpy() for p in (net[0].weight, net[0].bias, net[2].weight[0]))
        total = Fraction(float(net[2].bias.detach()))
        sent = []
        for j in range(40):
            low, high = (Fraction(float(e.flatten()[j])) for e in box)
            a, lam, m = (Fraction(float(v)) for v in (c[j], weight.flatten()[j], mu.flatten()[j]))
            if not free[j]:
                sent.append(a if low >= 0 else Fraction(0))
                continue
            ends = [low, high, *([Fraction(0)] if low < 0 < high else [])]
            total += min(lam * max(z, 0) - m * z for z in ends)
            gap = a - lam
            total += min(gap * Fraction(float(e.flatten()[j])) for e in y)
            sent.append(m)
        total += sum(s * Fraction(float(v)) for s, v in zip(sent, b, strict=True))
        for i in range(3):
            column = sum(s * Fraction(float(W[j, i])) for j, s in enumerate(sent))
            total -= abs(column) * Fraction(0.7)
        assert found <= total
        assert float(total - found) < 1e-9 * (1 + abs(float(total)) + float(np.abs(c).sum()))
