"""Balls around intermediate results, and the dual that uses them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import certify
from certify.bounds.alpha import Alpha
from certify.bounds.ball import balls
from certify.bounds.budget import Limits
from certify.bounds.crown import State
from certify.bounds.evaluate import run
from certify.bounds.methods import METHODS, analyse, bound, fit
from certify.bounds.program import prepare
from certify.core.graph import Graph
from certify.core.region import L2, Box, Product, Region
from certify.core.semantics import Semantics
from certify.ops.inner import least_near
from certify.ops.record import Interval
from tests.nets import BODIES, grow


def state_of(graph: Graph, region: Region, dtype: torch.dtype = torch.float64,
             semantics: Semantics = Semantics.REAL) -> State:
    with torch.no_grad():
        return analyse(prepare(graph, dtype), fit(region, graph), METHODS["crown"], semantics,
                       Limits(), Alpha())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("body", BODIES)
def test_samples_lie_in_the_balls(body: str, dtype: torch.dtype) -> None:
    graph = grow(BODIES[body], seed=1)
    centre = np.array([[0.1, -0.3, 0.5, 0.0, -0.8], [0.6, 0.2, 0.1, 0.9, 0.4]])
    for eps in (1e-3, 0.4):
        region = L2(centre, eps).batched((5,))
        state = state_of(graph, region, dtype)
        points = region.sample(400).double()
        edge = points - torch.as_tensor(centre).unsqueeze(1)
        edge = torch.as_tensor(centre).unsqueeze(1) + eps * (1 - 1e-12) * edge / edge.norm(
            dim=-1, keepdim=True)
        values = run(prepare(graph, torch.float64), (edge.flatten(0, 1),))
        found = balls(state)
        assert found or not any(
            s is not None and not s.affine and s.curve.halves for s in state.program.steps)
        for index, ball in found.items():
            source = state.program.steps[index].variables[0]
            value = values[source].reshape(2, 400, -1)
            gap = (value - ball.centre.reshape(2, 1, -1)).norm(dim=-1)
            assert bool((gap <= ball.radius).all()), state.program.steps[index].node.name


def test_radii_are_the_products_of_norms_or_those_of_the_box() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(30, 60), torch.nn.ReLU(), torch.nn.Linear(60, 50),
                              torch.nn.LeakyReLU(-2.0), torch.nn.Linear(50, 2)).double()
    graph = certify.from_torch(net, torch.zeros(1, 30).double())
    state = state_of(graph, L2(np.zeros((1, 1, 30)), 0.25))
    first, second = balls(state).values()
    norms = [float(torch.linalg.matrix_norm(net[i].weight.detach(), 2)) for i in (0, 2)]
    assert float(first.radius) == pytest.approx(0.25 * norms[0], rel=1e-6)
    assert float(second.radius) == pytest.approx(0.25 * norms[0] * norms[1], rel=1e-6)
    torch.testing.assert_close(second.centre.flatten(),
                               net[:3](torch.zeros(1, 30).double()).flatten())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_radii_cover_the_rounding_of_their_centres(dtype: torch.dtype) -> None:
    """A ball of radius 0 holds one point, whose exact image in rationals lies in the next ball."""
    torch.manual_seed(2)
    net = torch.nn.Sequential(torch.nn.Linear(40, 20), torch.nn.ReLU(), torch.nn.Linear(20, 1))
    with torch.no_grad():
        net[0].weight.mul_(torch.logspace(-6, 6, 40))  # sums that round
    graph = certify.from_torch(net.double(), torch.zeros(1, 40).double())
    x = np.random.default_rng(0).normal(size=40).astype(np.float32).astype(float)
    (ball,) = balls(state_of(graph, L2(x.reshape(1, 1, 40), 0.0), dtype)).values()
    W, b = (p.detach().numpy() for p in (net[0].weight, net[0].bias))
    gap = Fraction(0)
    for row, offset, centre in zip(W, b, ball.centre.flatten().tolist(), strict=True):
        exact = Fraction(float(offset)) + sum(
            (Fraction(float(w)) * Fraction(v) for w, v in zip(row, x, strict=True)), Fraction(0))
        gap += (exact - Fraction(centre)) ** 2
    assert 0 < gap <= Fraction(float(ball.radius)) ** 2


def test_balls_need_an_l2_ball_and_real_arithmetic() -> None:
    graph = grow(BODIES["mlp"])
    assert balls(state_of(graph, Box(-np.ones(5), np.ones(5)))) == {}
    assert balls(state_of(graph, L2(np.zeros(5), 0.1), semantics=Semantics.FLOAT32)) == {}
    assert balls(state_of(graph, L2(np.zeros(5), 0.1)))


def test_inputs_of_other_shapes_are_covered_by_balls_around_their_boxes() -> None:
    b = certify.ops.builder.Builder()
    x, y = b.input("x", (3,)), b.input("y", (3,))
    graph = b.finish(b.add("relu", b.add("add", x, y)))
    region = Product([L2(np.zeros((1, 3)), 0.5), Box(-np.ones((1, 3)), np.ones((1, 3)))])
    (ball,) = balls(state_of(graph, region)).values()
    assert float(ball.radius) == pytest.approx(0.5 + math.sqrt(3), rel=1e-6)


@pytest.mark.parametrize("halves", [(0.0, 1.0), (0.25, 1.0), (-1.0, 1.0), (2.0, -1.0)])
def test_parabolas_lie_below_every_sample_and_touch(halves: tuple[float, float]) -> None:
    torch.manual_seed(3)
    box = Interval(-torch.rand(1, 6).double() - 0.01, torch.rand(1, 6).double() + 0.01)
    weight, slope = torch.randn(1, 50, 6).double(), torch.randn(1, 50, 6).double()
    centre = 2 * torch.randn(1, 1, 6).double()
    for size in (0.0, 1e-9, 0.3, 10.0, 1e9):
        k = size * torch.rand(1, 50, 1).double()
        pair = tuple(torch.tensor(s).double() for s in halves)
        found = least_near(pair, weight, slope, (k, centre), box)
        share = torch.linspace(0, 1, 5001).double().reshape(-1, 1, 1, 1)
        z = box.lower + (box.upper - box.lower) * share
        value = weight * torch.where(z < 0, pair[0] * z, pair[1] * z) - slope * z \
            + 0.5 * k * (z - centre) ** 2
        least = value.amin(0)
        assert bool((found <= least + 1e-13 * (1 + value.abs().amax(0))).all())
        assert bool((least - found <= 1e-3 * (1 + value.abs().amax(0))).all())


def test_one_layer_reaches_the_formula_of_the_paper() -> None:
    """``h = -1/2 (k (rho^2 - |x|^2) + |phi|^2 / k)``, Chiu et al. 2025, theorem 4.1, for the best
    slopes: neurons couple, and a wide layer gains most."""
    torch.manual_seed(1)
    n = 300
    net = torch.nn.Sequential(torch.nn.Linear(n, n, bias=False), torch.nn.ReLU(),
                              torch.nn.Linear(n, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(n))
        net[2].weight.copy_(-torch.ones(1, n))
    graph = certify.from_torch(net, torch.zeros(1, n).double())
    region = L2(np.zeros((1, 1, n)), 1.0)
    exact = -math.sqrt(n)  # -sum relu(x) is least at x = 1/sqrt(n), all alike
    found = {m: float(bound(graph, region, m).lower.detach())
             for m in ("crown", "alpha", "sdp-crown")}
    assert found["sdp-crown"] <= exact + 1e-9
    assert found["sdp-crown"] >= 1.001 * exact
    assert found["alpha"] < 5 * exact and found["crown"] < 5 * exact


@pytest.mark.parametrize("act", [torch.nn.ReLU, lambda: torch.nn.LeakyReLU(0.1)])
def test_wide_networks_get_tighter_bounds_and_check_agrees(act) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(20, 200), act(), torch.nn.Linear(200, 200), act(),
                              torch.nn.Linear(200, 3)).double()
    graph = certify.from_torch(net, torch.zeros(1, 20).double())
    region = L2(np.full((1, 1, 20), 0.1), 0.7)
    with torch.no_grad():
        alpha, coupled = (bound(graph, region, m) for m in ("alpha", "sdp-crown"))
    assert float((coupled.upper - coupled.lower).mean()) < 0.7 * float(
        (alpha.upper - alpha.lower).mean())
    points = region.batched((1, 20)).sample(3000).double()[0]
    values = net(points).reshape(-1, 3)
    assert bool((values >= coupled.lower.reshape(1, 3)).all())
    assert bool((values <= coupled.upper.reshape(1, 3)).all())
    level = 0.5 * float((coupled.upper[..., 0] + alpha.upper[..., 0]).min())
    spec = certify.Spec.linear(np.array([[-1.0, 0.0, 0.0]]), -level)
    found = certify.verify(graph, region, spec, method="sdp-crown", attack=False)
    assert found.verdict is certify.Verdict.HOLDS and certify.check(found, graph)
    assert certify.verify(graph, region, spec, method="crown",
                          attack=False).verdict is certify.Verdict.UNKNOWN
    climbed = certify.verify(graph, region, spec, attack=False)
    assert climbed.verdict is certify.Verdict.HOLDS
    assert climbed.provenance.method == "sdp-crown" and certify.check(climbed, graph)
