"""Every region in the registry: bounds against samples, minimisers, exact values and solvers."""

from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from certify.core.errors import BadInput
from certify.core.outward import add_down, add_up
from certify.core.region import L0, L1, L2, REGIONS, Box, Linf, Lp, Product, as_inputs

SINGLE = [(name, i, region) for name, kind in REGIONS.items() if kind is not Product
          for i, region in enumerate(kind.examples())]
ids = [f"{name}-{i}" for name, i, _ in SINGLE]
single = pytest.mark.parametrize("region", [r for _, _, r in SINGLE], ids=ids)


def coefficients(region, rows=7, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    made = torch.randn(region.batch, rows, *region.shape, dtype=dtype)
    made[:, -1] = 0.0
    made[:, -2].reshape(region.batch, -1)[:, 1:] = 0.0
    return made


def values(a, x):
    """(B, R, ...) and (B, N, ...) to (B, R, N)."""
    return a.reshape(*a.shape[:2], -1) @ x.reshape(*x.shape[:2], -1).mT


def scale(region, a):
    lower, upper = (torch.as_tensor(np.array(e)) for e in region.ends())
    size = torch.maximum(lower.abs(), upper.abs()).reshape(region.batch, 1, -1)
    return (a.reshape(*a.shape[:2], -1).abs() * size).sum(-1) + 1e-100


def test_registry_holds_what_is_exported():
    assert {"Box", "Linf", "L2", "L1", "Lp", "L0", "Product"} <= set(REGIONS)
    assert all(kind.examples() for kind in REGIONS.values())


@single
def test_minimum_is_below_every_sample_and_reached(region):
    a = coefficients(region)
    low = region.minimum(a)
    points = region.sample(1500, torch.Generator().manual_seed(1))
    assert points.shape == (region.batch, 1500, *region.shape)
    spare = 1e-13 * scale(region, a)
    assert (values(a, points).amin(-1) >= low - spare).all()
    best = region.minimiser(a)
    reached = (a * best).reshape(*a.shape[:2], -1).sum(-1)
    assert ((reached - low).abs() <= 1e-9 * scale(region, a)).all()
    assert region.contains(best, 1e-9).all()


@single
def test_samples_and_projections_are_members(region):
    torch.manual_seed(2)
    points = region.sample(300)
    assert region.contains(points, 1e-12).all()
    far = points + 3 * torch.randn_like(points)
    back = region.project(far)
    assert region.contains(back, 1e-12).all()
    assert torch.allclose(region.project(back), back, atol=1e-9)
    lower, upper = (torch.as_tensor(np.array(e)).unsqueeze(1) for e in region.bounding_box())
    assert ((points >= lower) & (points <= upper)).all()
    assert len({tuple(p.flatten().tolist()) for p in points[0]}) > 1 or bool((lower == upper).all())


@single
def test_rigorous_minimum_is_below_and_close(region):
    a = coefficients(region)
    plain, rigorous = region.minimum(a), region.minimum(a, rigorous=True)
    spare = scale(region, a)
    assert (rigorous <= plain + 1e-15 * spare).all()
    assert (plain - rigorous <= 1e-9 * spare).all()
    with pytest.raises(BadInput, match="float64"):
        region.minimum(a.float(), rigorous=True)


@single
def test_float32_agrees_with_float64(region):
    a = coefficients(region)
    gap = (region.minimum(a.float()).double() - region.minimum(a)).abs()
    assert (gap <= 1e-4 * scale(region, a)).all()


@single
def test_gradient_is_the_minimiser(region):
    a = coefficients(region)[:, :-2].clone().requires_grad_()
    region.minimum(a).sum().backward()
    best = region.minimiser(a.detach())
    assert torch.allclose(a.grad, best, atol=1e-6 * float(best.abs().max() + 1))


@single
def test_cutting_a_batch_changes_nothing(region):
    a = coefficients(region)
    low = region.minimum(a)
    for i in range(region.batch):
        alone = region[i].minimum(a[i : i + 1])
        assert ((alone - low[i : i + 1]).abs() <= 1e-14 * scale(region, a)[i : i + 1]).all()
    twice = region.rows([0] * 3)
    assert twice.batch == 3
    assert torch.allclose(twice.minimum(a[:1].expand(3, *a.shape[1:])), low[:1].expand(3, -1))
    shared = region.minimum(a[:1])  # one set of rows for the whole batch
    assert torch.allclose(shared, region.minimum(a[:1].repeat(region.batch, *(1,) * (a.ndim - 1))))


@single
def test_survives_pickle_and_inference_mode(region):
    a = coefficients(region)
    with torch.inference_mode():
        inside = region.minimum(a)
    copy = pickle.loads(pickle.dumps(region))
    b = a.clone().requires_grad_()
    assert torch.equal(region.minimum(b).detach(), inside)
    assert torch.equal(copy.minimum(a), inside)
    region.minimum(b).sum().backward()


@pytest.mark.parametrize("region", Product.examples())
def test_product_sums_its_parts(region):
    torch.manual_seed(0)
    a = [torch.randn(p.batch, 4, *p.shape, dtype=torch.float64) for p in region.parts]
    total = region.minimum(a)
    assert torch.allclose(total, sum(p.minimum(v) for p, v in zip(region.parts, a, strict=True)))
    assert torch.allclose(region.minimum([a[0], None]), region.parts[0].minimum(a[0]))
    assert (region.minimum(a, rigorous=True) <= total).all()
    points = region.sample(200)
    assert region.contains(points).all()
    found = sum(values(v, x) for v, x in zip(a, points, strict=True))
    assert (found.amin(-1) >= total - 1e-12).all()
    best = region.minimiser(a)
    assert torch.allclose(sum((v * x).flatten(2).sum(-1) for v, x in zip(a, best, strict=True)),
                          total)
    assert region.rows([0]).batch == 1
    assert all(len(side) == 2 for side in region.bounding_box())


# -- exact arithmetic ---------------------------------------------------------------------------

wild = st.builds(lambda m, e: m * 2.0**e, st.floats(-1, 1), st.integers(-40, 40))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(wild, wild, wild), min_size=1, max_size=8))
def test_rigorous_box_is_below_the_exact_minimum(rows):
    ends = [sorted(r[:2]) for r in rows]
    a = [r[2] for r in rows]
    box = Box([e[0] for e in ends], [e[1] for e in ends]).batched((len(rows),))
    exact = sum(min(Fraction(c) * Fraction(e) for e in pair)
                for c, pair in zip(a, ends, strict=True))
    found = float(box.minimum(torch.tensor([[a]], dtype=torch.float64), rigorous=True))
    assert Fraction(found) <= exact


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(wild, wild), min_size=1, max_size=8), wild.map(abs))
def test_rigorous_linf_and_l1_are_below_the_exact_minimum(rows, eps):
    center, a = [r[0] for r in rows], [r[1] for r in rows]
    middle = sum(Fraction(c) * Fraction(v) for c, v in zip(center, a, strict=True))
    sizes = [abs(Fraction(v)) for v in a]
    coefficient = torch.tensor([[a]], dtype=torch.float64)
    for kind, norm in ((Linf, sum(sizes)), (L1, max(sizes))):
        region = kind(center, eps).batched((len(rows),))
        found = float(region.minimum(coefficient, rigorous=True))
        assert Fraction(found) <= middle - Fraction(eps) * norm
    ball = L2(center, eps).batched((len(rows),))
    gap = middle - Fraction(float(ball.minimum(coefficient, rigorous=True)))
    assert gap >= 0
    assert gap**2 >= Fraction(eps) ** 2 * sum(s * s for s in sizes)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(wild, wild, wild), min_size=2, max_size=7), st.integers(0, 7))
def test_rigorous_l0_is_below_the_exact_minimum(rows, k):
    centers, high = [r[0] for r in rows], [abs(r[1]) + abs(r[0]) for r in rows]
    a = [r[2] for r in rows]
    region = L0(centers, k, ([-h for h in high], high)).batched((len(rows),))
    gains = sorted(-abs(Fraction(c)) * Fraction(h) - Fraction(c) * Fraction(x)
                   for c, h, x in zip(a, high, centers, strict=True))
    exact = sum(Fraction(c) * Fraction(x) for c, x in zip(a, centers, strict=True)) + sum(gains[:k])
    found = float(region.minimum(torch.tensor([[a]], dtype=torch.float64), rigorous=True))
    assert Fraction(found) <= exact


@settings(max_examples=200, deadline=None)
@given(wild, wild)
def test_directed_sums_enclose_and_are_tight(a, b):
    for x, y in ((np.array([a]), np.array([b])),
                 (torch.tensor([a]).double(), torch.tensor([b]).double())):
        low, high = float(add_down(x, y)[0]), float(add_up(x, y)[0])
        exact = Fraction(float(x[0])) + Fraction(float(y[0]))
        assert Fraction(low) <= exact <= Fraction(high)
        assert high <= np.nextafter(low, np.inf)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_box_contains_the_exact_ball(dtype):
    torch.manual_seed(0)
    center = torch.rand(4, 5, dtype=dtype)
    lower, upper = Linf(center, 8 / 255).batched((5,)).bounding_box()
    assert lower.dtype == upper.dtype == dtype
    for c, low, high in zip(*(t.flatten().tolist() for t in (center, lower, upper)), strict=True):
        assert Fraction(low) <= Fraction(c) - Fraction(8 / 255)
        assert Fraction(high) >= Fraction(c) + Fraction(8 / 255)


def test_linf_membership_is_exact():
    center, eps = 0.1, 0.2
    region = Linf([center], eps).batched((1,))
    edge = float(Fraction(center) + Fraction(eps))  # nearest float64, may be in or out
    for x in (np.nextafter(edge, 0), edge, np.nextafter(edge, 1)):
        inside = abs(Fraction(float(x)) - Fraction(center)) <= Fraction(eps)
        assert bool(region.contains(np.array([[[x]]]))[0, 0]) == inside


def test_projection_to_float32_stays_inside_the_exact_set():
    torch.manual_seed(3)
    region = Linf(torch.rand(1, 50, dtype=torch.float64), 0.01, (0, 1)).batched((50,))
    points = region.project(torch.randn(1, 20, 50))
    assert points.dtype == torch.float32
    assert region.contains(points).all()


# -- independent solvers ------------------------------------------------------------------------

@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(6))
def test_l1_with_range_against_linear_programming(seed):
    rng = np.random.default_rng(seed)
    n, eps = 6, 0.7
    center, a = rng.uniform(-0.1, 1.1, n), rng.normal(size=n)
    found = float(L1(center, eps, (0, 1)).batched((n,)).minimum(torch.tensor(a)[None, None]))
    eye = np.eye(n)
    split = np.block([[eye, -eye], [-eye, -eye], [np.zeros((1, n)), np.ones((1, n))]])
    limit = np.concatenate([center, -center, [eps]])
    solved = linprog(np.concatenate([a, np.zeros(n)]), split, limit,
                     bounds=[(0, 1)] * n + [(0, None)] * n)
    assert abs(found - solved.fun) < 1e-9


@pytest.mark.oracle
@pytest.mark.parametrize("p", [1.5, 2.0, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_balls_with_range_against_a_nonlinear_solver(seed, p):
    rng = np.random.default_rng(seed)
    n, eps = 5, 0.6
    center, a = rng.uniform(-0.05, 1.05, n), rng.normal(size=n)
    region = Lp(center, eps, p, (0, 1)).batched((n,))
    found = float(region.minimum(torch.tensor(a)[None, None]))
    inside = {"type": "ineq", "fun": lambda x: eps**p - (abs(x - center) ** p).sum()}
    start = np.clip(center, 0, 1)
    solved = minimize(lambda x: a @ x, start, jac=lambda x: a, bounds=[(0, 1)] * n,
                      constraints=[inside], options={"ftol": 1e-14, "maxiter": 500})
    assert abs(found - solved.fun) < 1e-6
    assert found <= a @ region.minimiser(torch.tensor(a)[None, None])[0, 0].numpy() + 1e-12


def test_l2_matches_lp_with_exponent_two():
    a = coefficients(L2.examples()[1])
    ball = L2.examples()[1]
    same = Lp(ball.center, np.array([0.3, 0.9]), 2.0, (0, 1)).batched(ball.shape)
    assert torch.allclose(ball.minimum(a), same.minimum(a), atol=1e-13)


def test_range_only_tightens():
    torch.manual_seed(0)
    a = torch.randn(1, 50, 12, dtype=torch.float64)
    x = np.linspace(0, 1, 12)
    for kind in (Linf, L2, L1):
        free, cut = (kind(x, 0.5, clip).batched((12,)).minimum(a) for clip in (None, (0, 1)))
        assert (cut >= free - 1e-12).all()
        assert (cut > free + 1e-3).any()


# -- training -----------------------------------------------------------------------------------

def test_gradient_reaches_the_region():
    for make in (lambda c, e: Linf(c, e, (0, 1)), L2, L1, lambda c, e: L2(c, e, (0, 1))):
        center = torch.full((2, 5), 0.5, requires_grad=True)
        eps = torch.tensor(0.1, requires_grad=True)
        for _ in range(2):  # a second backward pass must not meet a freed graph
            region = make(center, eps).batched((5,))
            region.minimum(torch.ones(2, 3, 5)).sum().backward()
        assert torch.allclose(center.grad, torch.full_like(center, 6.0), atol=1e-4)
        assert float(eps.grad) < 0


def test_cached_tensors_follow_dtype():
    box = Box(torch.zeros(1, 3), torch.ones(1, 3)).batched((3,))
    for dtype in (torch.float32, torch.float64, torch.float32):
        assert box.minimum(-torch.ones(1, 1, 3, dtype=dtype)).dtype == dtype


def test_overflow_never_proves_anything():
    box = Box([-1e300], [1e300]).batched((1,))
    huge = torch.tensor([[[1e300]], [[float("nan")]], [[float("inf")]]], dtype=torch.float64)
    assert (box.minimum(huge, rigorous=True) == -float("inf")).all()
    ball = L2([1e300], 1.0, (-1e301, 1e301)).batched((1,))
    assert (ball.minimum(huge, rigorous=True) == -float("inf")).all()


# -- shapes and bad input -----------------------------------------------------------------------

@pytest.mark.parametrize(("given", "batch"), [
    ((1, 3, 4), 1), ((3, 4), 1), ((5, 1, 3, 4), 5), ((5, 3, 4), 5), ((), 1)])
def test_accepted_shapes(given, batch):
    box = Box(np.zeros(given), np.ones(given)).batched((1, 3, 4))
    assert box.batch == batch
    assert box.lower.shape == (batch, 1, 3, 4)


def test_wrong_shape_names_both():
    with pytest.raises(BadInput, match=r"\(7,\).*\(1, 3, 4\)"):
        Box(np.zeros(7), np.ones(7)).batched((1, 3, 4))
    with pytest.raises(BadInput, match="batched"):
        Box(0.0, 1.0).minimum(torch.zeros(1, 1, 1))
    with pytest.raises(BadInput, match=r"\(1, 2, 3\)"):
        Box(0.0, 1.0).batched((4,)).minimum(torch.zeros(1, 2, 3))


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Box([0.0, 2.0], [1.0, 1.0]), r"lower is above upper at index \(1,\)"),
    (lambda: Box([0.0, float("nan")], [1.0, 1.0]), r"index \(1,\)"),
    (lambda: Box([0.0], [float("inf")]), r"index \(0,\)"),
    (lambda: Box([0.0, 1.0], [1.0]), "shape"),
    (lambda: Linf([0.0], -0.1), "negative"),
    (lambda: Linf([0.0], float("nan")), "not finite"),
    (lambda: Linf([float("nan")], 0.1), "not finite"),
    (lambda: Linf([0.0], 0.1, (1, 0)), "range is empty"),
    (lambda: Linf([0.0], 0.1, 1.0), "pair"),
    (lambda: Linf([0.5, 3.0], 0.1, (0, 1)).batched((2,)), r"does not meet.*\(0, 1\)"),
    (lambda: L2([3.0, 3.0], 2.5, (0, 1)).batched((2,)), "does not meet"),
    (lambda: L2(np.zeros((1, 2)), [0.1, 0.2]).batched((2,)), "eps"),
    (lambda: Linf(np.zeros((5, 5)), np.ones(5)).batched((5,)), "per example or per element"),
    (lambda: Lp([0.0], 0.1, 0.5), "p must be"),
    (lambda: Lp([0.0], 0.1, float("inf")), "Linf"),
    (lambda: L0([0.0], 1, None), "range"),
    (lambda: L0([0.0], 1.5, (0, 1)), "whole"),
    (lambda: L0([2.0, 2.0], 1, (0, 1)).batched((2,)), "more elements"),
    (lambda: L0([2.0, 2.0], 1, (0, float("inf"))), "not finite"),
    (lambda: Box("a", "b"), "numbers"),
    (lambda: Product([]), "at least one"),
    (lambda: Product([Box(0.0, 1.0)]).batched([(1,), (1,)]), "2 inputs"),
    (lambda: Product([Box(np.zeros((2, 1)), np.ones((2, 1))), Box(np.zeros((3, 1)), 1.0)])
     .batched([(1,), (1,)]), "do not match"),
])
def test_bad_input_is_named(make, words):
    with pytest.raises(BadInput, match=words):
        make()


def test_flat_box_is_split_in_order():
    box = Box(np.arange(10.0), np.arange(10.0) + 1)
    first, second = as_inputs(box, [(1, 2, 3), (4,)])
    assert first.lower.tolist() == [[[[0, 1, 2], [3, 4, 5]]]]
    assert second.upper.tolist() == [[7, 8, 9, 10]]
    (only,) = as_inputs(box, [(1, 1, 2, 5)])
    assert only.lower.shape == (1, 1, 1, 2, 5)
    (ball,) = as_inputs(Linf(np.zeros(6), np.arange(6.0), (-1, np.ones(6))), [(1, 2, 3)])
    assert ball.bounding_box()[1].tolist() == [[[[0, 1, 1], [1, 1, 1]]]]
    with pytest.raises(BadInput, match="Product"):
        as_inputs(L2(np.zeros(10), 1.0), [(6,), (4,)])


def test_per_channel_radius_and_range():
    region = Linf(np.zeros((2, 3, 2, 2)), np.arange(3.0).reshape(3, 1, 1), (-1.5, np.array(1.0)))
    lower, upper = region.batched((3, 2, 2)).bounding_box()
    assert lower[1, :, 0, 0].tolist() == [0, -1, -1.5]
    assert upper[0, :, 1, 1].tolist() == [0, 1, 1]


def test_large_batches_are_bounded_in_pieces_with_the_same_result():
    torch.manual_seed(0)
    center = torch.rand(3, 3000, dtype=torch.float64)
    region = L2(center, 0.5, (0, 1)).batched((3000,))
    a = torch.randn(3, 70, 3000, dtype=torch.float64)
    low = region.minimum(a)
    for i in range(3):
        for r in (0, 69):
            assert torch.allclose(region[i].minimum(a[i : i + 1, r : r + 1]), low[i, r])
    assert torch.allclose(region.minimum(a[:1])[0], low[0])
