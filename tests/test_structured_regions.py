"""Unions, polytopes, ellipsoids and substitutions against exact arithmetic and brute force."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

import certify
from certify.bounds.evaluate import evaluate
from certify.core.errors import BadInput, LimitExceeded
from certify.core.region import (
    L2,
    REGIONS,
    Box,
    Ellipsoid,
    Polytope,
    Region,
    Substitutions,
    UnionOfBoxes,
)
from certify.core.region_substitutions import every_member

wild = st.builds(lambda m, e: m * 2.0**e, st.floats(-1, 1), st.integers(-40, 40))


def rows(values) -> torch.Tensor:
    return torch.tensor([[values]], dtype=torch.float64)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.tuples(wild, wild), min_size=3, max_size=3), min_size=1, max_size=4),
       st.lists(wild, min_size=3, max_size=3))
def test_the_rigorous_union_is_below_the_exact_minimum(members, a):
    low, high = (np.array([[end(p) for p in m] for m in members]) for end in (min, max))
    exact = min(sum(min(Fraction(c) * Fraction(e) for e in p) for c, p in zip(a, m, strict=True))
                for m in members)
    region = UnionOfBoxes(low, high).batched((3,))
    assert Fraction(float(region.minimum(rows(a), rigorous=True))) <= exact


def test_projection_goes_to_the_nearest_member():
    region = UnionOfBoxes([[0.0, 0.0], [10.0, 10.0]], [[1.0, 1.0], [11.0, 11.0]]).batched((2,))
    found = region.project(torch.tensor([[[4.0, 2.0], [9.0, 9.5]]], dtype=torch.float64))
    assert found.tolist() == [[[1.0, 1.0], [10.0, 10.0]]]
    assert region.contains(np.array([[[5.0, 5.0], [10.5, 10.0]]])).tolist() == [[False, True]]


@pytest.mark.parametrize("seed", range(8))
def test_polytope_against_linear_programming(seed):
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(2, 12)), int(rng.integers(1, 6))
    low, high, G = -rng.uniform(0, 2, n), rng.uniform(0, 2, n), rng.normal(size=(m, n))
    h = G @ rng.uniform(low, high) + rng.uniform(0.01, 0.5, m)
    region = Polytope(low, high, G, h).batched((n,))
    A = rng.normal(size=(9, n))
    exact = np.array([linprog(a, G, h, bounds=list(zip(low, high, strict=True))).fun for a in A])
    for rigorous, spare in ((False, 1e-12), (True, 0.0)):
        found = region.minimum(torch.from_numpy(A)[None], rigorous)[0].numpy()
        assert (found <= exact + spare + 1e-11).all()  # the solver's own accuracy
        assert np.allclose(found, exact, atol=1e-8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_the_rigorous_polytope_is_below_every_exact_member_value(seed):
    rng = np.random.default_rng(seed)
    point = rng.integers(-8, 9, 4) / 8.0
    G = rng.integers(-8, 9, (3, 4)) / 4.0
    h = np.array([float(sum(Fraction(g) * Fraction(v) for g, v in zip(r, point, strict=True)))
                  for r in G])  # exact: the point lies on every half-space's edge
    a = rng.normal(size=4) * 2.0 ** rng.integers(-20, 20, 4)
    region = Polytope(-np.ones(4), np.ones(4), G, h).batched((4,))
    exact = sum(Fraction(c) * Fraction(v) for c, v in zip(a, point, strict=True))
    assert Fraction(float(region.minimum(rows(a.tolist()), rigorous=True))) <= exact


def test_an_empty_polytope_is_refused_and_a_flat_one_is_not():
    with pytest.raises(BadInput, match="no point"):
        Polytope(0.0, 1.0, np.ones((1, 3)), [-0.5]).batched((3,))
    flat = Polytope(0.0, 1.0, np.stack([np.ones(3), -np.ones(3)]), [1.0, -1.0]).batched((3,))
    low = float(flat.minimum(rows([1.0, 2.0, 3.0]), rigorous=True))
    assert 0.99 < low <= 1.0


def test_an_ellipsoid_of_equal_axes_is_a_ball():
    a = torch.randn(1, 9, 5, dtype=torch.float64)
    ball = L2(np.linspace(-1, 1, 5), 0.3).batched((5,))
    same = Ellipsoid(np.linspace(-1, 1, 5), 0.3 * np.eye(5)).batched((5,))
    assert torch.allclose(ball.minimum(a), same.minimum(a))
    assert np.allclose(ball.ends(), same.ends())


def embedded(seed: int, budget: int, shape: tuple[int, ...] = (5, 3)) -> Substitutions:
    rng = np.random.default_rng(seed)
    return Substitutions(rng.normal(size=(5, 3)), rng.normal(size=(5, 2, 3)), budget).batched(shape)


@pytest.mark.parametrize("budget", [0, 1, 2, 5])
def test_substitutions_against_every_member(budget: int) -> None:
    for seed in range(5):
        region = embedded(seed, budget)
        members = np.stack(list(every_member(region)))
        if budget < 3:
            assert len(members) == [1, 1 + 10, 1 + 10 + 40][budget]
        assert region.contains(members[None]).all()
        a = torch.from_numpy(np.random.default_rng(9).normal(size=(1, 20, 5, 3)))
        exact = (a[0].numpy().reshape(20, 1, -1) * members.reshape(1, len(members), -1)).sum(-1)
        assert np.allclose(region.minimum(a)[0], exact.min(1), atol=1e-12)
        assert (region.minimum(a, rigorous=True)[0].numpy() <= exact.min(1)).all()
        low, high = region.ends()
        assert np.allclose(low[0], members.min(0)) and np.allclose(high[0], members.max(0))
    with pytest.raises(LimitExceeded):
        list(every_member(embedded(0, 5), limit=10))


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown", "alpha", "decomposition"])
def test_bounds_of_texts_hold_for_every_member_and_know_the_budget(method: str) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv1d(5, 6, 2), torch.nn.ReLU(), torch.nn.Flatten(),
                              torch.nn.Linear(12, 2)).double()
    graph = certify.from_torch(net, torch.zeros(1, 5, 3).double())
    widths = []
    for budget in (1, 2, 5):
        region = embedded(3, budget, (1, 5, 3))
        found = certify.bound(graph, region, method)
        values = evaluate(graph, torch.from_numpy(np.stack(list(every_member(region)))))
        assert bool((values >= found.lower).all()) and bool((values <= found.upper).all())
        widths.append(float((found.upper - found.lower).detach().mean()))
    assert widths[0] < widths[1] < widths[2]
    hull = certify.bound(graph, Box(*(e for e in region.ends())), method)
    assert widths[0] < float((hull.upper - hull.lower).detach().mean())


@pytest.mark.parametrize("region", [
    UnionOfBoxes(np.linspace(-1, 1, 12).reshape(3, 4), np.linspace(-1, 1, 12).reshape(3, 4) + 0.2),
    Polytope(-0.5, 0.5, np.cos(np.arange(8.0)).reshape(2, 4), [0.1, 0.2]),
    Ellipsoid(np.linspace(-1, 1, 4), np.cos(np.arange(16.0) ** 1.5).reshape(4, 4) / 4)],
    ids=lambda r: type(r).__name__)
def test_verify_proves_over_every_kind_and_its_certificate_is_checked(region) -> None:
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    graph = certify.from_torch(net, torch.zeros(1, 4))
    found = certify.bound(graph, region, "crown")
    below = certify.Spec.linear([[1.0, 0.0]], [float(found.lower[0, 0, 0].detach()) - 0.01])
    proof = certify.verify(graph, region, below, timeout=20)
    assert proof.verdict is certify.Verdict.HOLDS
    assert certify.check(proof, graph)


@pytest.mark.parametrize("region", [
    r for kind in REGIONS.values() for r in kind.examples() if r.parts_of_affine() is not None],
    ids=lambda r: type(r).__name__)
def test_images_of_parts_tell_the_range_of_affine_functions(region: Region) -> None:
    """As backward passes for every row do, at the price of forward passes."""
    A = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 30, *region.shape)))
    lower, upper = (torch.tensor(np.asarray(side)) for side in region.parts_of_affine())
    rows, low, high = (t.flatten(-len(region.shape)) for t in (A[0], lower, upper))
    plus, minus = rows.clamp(min=0), rows.clamp(max=0)
    least, most = low @ plus.mT + high @ minus.mT, high @ plus.mT + low @ minus.mT
    found = region.affine_range(least, most)
    torch.testing.assert_close(found[0], region.minimum(A), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1], -region.minimum(-A), rtol=1e-12, atol=1e-12)
    points = region.sample(200).double().flatten(2) @ rows.mT
    assert bool((points >= found[0].unsqueeze(1) - 1e-12).all())
    assert bool((points <= found[1].unsqueeze(1) + 1e-12).all())
