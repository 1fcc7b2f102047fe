"""The semidefinite relaxation: any multipliers are sound, good ones beat the linear programme."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import certify
from certify.bounds.alpha import Alpha
from certify.bounds.budget import Limits
from certify.bounds.crown import State
from certify.bounds.methods import METHODS, analyse, bound, fit
from certify.bounds.program import prepare
from certify.bounds.semidefinite import semidefinite_bounds, semidefinite_multipliers
from certify.core.errors import LimitExceeded
from certify.core.graph import Graph
from certify.core.region import L2, Linf, Region
from certify.core.semantics import Semantics

ACTS: dict[str, Callable[[], torch.nn.Module]] = {
    "relu": torch.nn.ReLU, "leaky": lambda: torch.nn.LeakyReLU(-0.5), "tanh": torch.nn.Tanh,
}


def network(act: str, seed: int = 0) -> tuple[Graph, torch.nn.Sequential]:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(4, 9), ACTS[act](), torch.nn.Linear(9, 7),
                              ACTS[act](), torch.nn.Linear(7, 2)).double()
    return certify.from_torch(net, torch.zeros(1, 4).double()), net


def state_of(graph: Graph, region: Region,
             semantics: Semantics = Semantics.REAL) -> tuple[State, dict[int, torch.Tensor]]:
    program = prepare(graph, torch.float64)
    with torch.no_grad():
        state = analyse(program, fit(region, graph), METHODS["crown"], semantics, Limits(),
                        Alpha())
    rows = torch.cat([torch.eye(2), -torch.eye(2), torch.tensor([[1.0, -1.0]])]).double()
    return state, {program.output: rows.reshape(1, 5, 1, 2)}


def least(net: torch.nn.Sequential, region: Region, rows: torch.Tensor) -> torch.Tensor:
    points = region.batched((1, 4)).sample(40_000).double()[0]
    with torch.no_grad():
        return (net(points).reshape(-1, 2) @ rows.reshape(-1, 2).T).amin(0)


REGIONS = (Linf(np.full((1, 1, 4), 0.1), 0.5), L2(np.full((1, 1, 4), 0.1), 0.6))


@pytest.mark.parametrize("region", REGIONS, ids=["linf", "l2"])
@pytest.mark.parametrize("act", ACTS)
def test_any_multipliers_are_sound(act: str, region: Region) -> None:
    graph, net = network(act)
    state, rows = state_of(graph, region)
    found = semidefinite_multipliers(state, rows)
    reached = least(net, region, next(iter(rows.values())))
    best = semidefinite_bounds(state, rows, found)[0]
    assert bool((best <= reached).all()) and bool(best.isfinite().all())
    generator = torch.Generator().manual_seed(1)
    for size in (1e-6, 0.1, 10.0):
        wild = {i: tuple(w + size * torch.randn(w.shape, generator=generator, dtype=w.dtype)
                         for w in group) for i, group in found.items()}
        moved = semidefinite_bounds(state, rows, wild)[0]
        assert bool((moved <= reached).all())
    for worst in (np.nan, np.inf, -1e30, 1e30):
        spoilt = {i: tuple(torch.full_like(w, worst) for w in g) for i, g in found.items()}
        assert bool((semidefinite_bounds(state, rows, spoilt)[0] <= reached).all())
    short = {i: tuple(w[..., :1] for w in group[:1]) for i, group in found.items()}
    assert bool((semidefinite_bounds(state, rows, short)[0] <= reached).all())
    assert bool((semidefinite_bounds(state, rows, {})[0] <= reached).all())


@pytest.mark.parametrize("region", REGIONS, ids=["linf", "l2"])
@pytest.mark.parametrize("act", ["relu", "leaky"])
def test_it_is_tighter_than_the_linear_programme(act: str, region: Region) -> None:
    for seed in range(3):
        graph, net = network(act, seed)
        with torch.no_grad():
            lp, sdp = (bound(graph, region, m) for m in ("lp", "sdp"))
        assert bool((sdp.lower >= lp.lower - 1e-6).all())
        assert bool((sdp.upper <= lp.upper + 1e-6).all())
        assert float((sdp.upper - sdp.lower).mean()) < 0.8 * float((lp.upper - lp.lower).mean())
        eye = torch.eye(2).double()
        assert bool((sdp.lower.reshape(-1) <= least(net, region, eye)).all())
        assert bool((-sdp.upper.reshape(-1) <= least(net, region, -eye)).all())


def minus_absolute() -> Graph:
    """``-relu(x) - relu(-x)``, which is ``-|x|``."""
    net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.ReLU(),
                              torch.nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net[2].weight.copy_(torch.tensor([[-1.0, -1.0]]))
    return certify.from_torch(net, torch.zeros(1, 1).double())


def test_a_value_worked_out_by_hand() -> None:
    """``-|x|`` goes from -1 to 0 on [-1, 1]."""
    with torch.no_grad():
        found = bound(minus_absolute(), Linf(np.zeros((1, 1, 1)), 1.0), "sdp")
    assert float(found.lower) == pytest.approx(-1.0, abs=1e-6) and float(found.lower) <= -1.0
    assert float(found.upper) == pytest.approx(0.0, abs=1e-6)


def test_multipliers_of_inequalities_count_only_where_positive() -> None:
    """``y >= 0`` times -0.9 would leave a tenth of the objective ``-y``."""
    graph = minus_absolute()
    program = prepare(graph, torch.float64)
    region = fit(Linf(np.zeros((1, 1, 1)), 1.0), graph)
    with torch.no_grad():
        state = analyse(program, region, METHODS["crown"], Semantics.REAL, Limits(), Alpha())
        rows = {program.output: torch.ones(1, 1, 1, 1).double()}
        found = semidefinite_multipliers(state, rows)
        for index, group in found.items():
            for slot in range(len(group)):
                given = {i: tuple(torch.zeros_like(w) for w in g) for i, g in found.items()}
                given[index][slot].fill_(-0.9)
                assert float(semidefinite_bounds(state, rows, given)) <= -1.0, (index, slot)


@pytest.mark.parametrize("act", ["relu", "leaky"])
def test_float32_semantics_hold_for_a_float32_run(act: str) -> None:
    graph, net = network(act, 4)
    region = REGIONS[0]
    state, rows = state_of(graph, region, Semantics.FLOAT32)
    found = semidefinite_multipliers(state, rows)
    best = semidefinite_bounds(state, rows, found)[0]
    points = region.batched((1, 4)).sample(40_000)[0].float()
    with torch.no_grad():
        values = net.float()(points).reshape(-1, 2).double()
    reached = (values @ next(iter(rows.values())).reshape(5, 2).T).amin(0)
    assert bool((best <= reached).all())


def test_boxes_far_narrower_than_where_they_lie() -> None:
    """The middle of a box is rounded; nothing of the box may get lost."""
    net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(),
                              torch.nn.Linear(2, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
        net[2].bias.zero_()
    for width in (2.0**-52, 3 * 2.0**-52, 2.0**-40, 2.0**-20):
        with torch.no_grad():
            middle = 1.0 + width / 3
            net[0].bias.copy_(torch.tensor([-middle, middle]))  # both are unstable
        graph = certify.from_torch(net, torch.zeros(1, 1).double())
        region = certify.Box(np.array([[1.0]]), np.array([[1.0 + width]]))
        with torch.no_grad():
            found = bound(graph, region.batched((1, 1)), "sdp")
            ends = net(torch.tensor([[1.0], [1.0 + width]]).double()).flatten()
        assert float(found.lower) <= float(ends.min())
        assert float(found.upper) >= float(ends.max())


def test_large_networks_are_refused_and_say_what_to_use() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(60, 60), torch.nn.ReLU(), torch.nn.Linear(60, 2))
    graph = certify.from_torch(net, torch.zeros(1, 60))
    with pytest.raises(LimitExceeded, match="sdp-crown"):
        bound(graph, Linf(np.zeros((1, 1, 60)), 1.0), "sdp")


def test_verify_and_check_where_only_it_decides() -> None:
    graph, _ = network("relu", 1)
    region = REGIONS[0]
    with torch.no_grad():
        alpha, sdp = (bound(graph, region, m) for m in ("alpha", "sdp"))
    level = 0.5 * float(alpha.upper[0, 0, 0] + sdp.upper[0, 0, 0])
    spec = certify.Spec.linear(np.array([[-1.0, 0.0]]), -level)
    unknown = certify.verify(graph, region, spec, method="alpha", attack=False)
    assert unknown.verdict is certify.Verdict.UNKNOWN
    found = certify.verify(graph, region, spec, method="sdp", attack=False)
    assert found.verdict is certify.Verdict.HOLDS and certify.check(found, graph)
