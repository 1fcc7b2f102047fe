"""Radius rules against known values, worst cases, linear programs and brute force."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction as F

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.special import ndtr
from scipy.stats import norm

from certify.core.errors import BadInput
from certify.smoothing import radii
from certify.smoothing.confidence import Estimate
from certify.smoothing.discrete import l0_radius, l0_value, sparse_radii, sparse_value
from certify.smoothing.first_order import radius, radius_l2, radius_lp, slab_value
from certify.smoothing.shrinkage import (
    ball_value,
    ball_vanishes,
    cone_recedes,
    orthant_recedes,
    slab_vanishes,
)


def known(p: float) -> Estimate:
    """A probability known exactly."""
    return Estimate(np.array(p), np.array(1 - p))


def steepest(p: float) -> float:
    """The gradient norm of a half-space."""
    return float(norm.pdf(norm.ppf(p)))


@pytest.mark.parametrize("distance", [0.01, 0.3, 1.7])
@pytest.mark.parametrize("sigma", [0.25, 1.0])
def test_a_half_space_gets_its_distance_exactly(distance: float, sigma: float) -> None:
    found = float(radii.gaussian_l2(norm.sf(distance / sigma), sigma))
    assert distance - 1e-12 < found <= distance


def test_the_runner_up_helps_only_when_it_is_far() -> None:
    plain = float(radii.gaussian_l2(0.3, 1.0))
    assert float(radii.gaussian_l2(0.3, 1.0, 0.1)) == pytest.approx(0.9030, abs=1e-4)
    assert float(radii.gaussian_l2(0.3, 1.0, 0.3)) == pytest.approx(plain)
    assert float(radii.gaussian_l2(0.6, 1.0, 0.2)) == pytest.approx(0.2941, abs=1e-4)
    assert float(radii.gaussian_l2(0.6, 1.0)) == 0


@pytest.mark.parametrize(("p", "uniform", "laplace"), [(0.9, 1.386, 1.138), (0.99, 1.697, 2.766)])
def test_l1_radii_at_equal_deviation(p: float, uniform: float, laplace: float) -> None:
    """In units of the standard deviation."""
    assert float(radii.uniform_l1(1 - p, math.sqrt(3))) == pytest.approx(uniform, abs=6e-4)
    assert float(radii.laplace_l1(1 - p, 1 / math.sqrt(2))) == pytest.approx(laplace, abs=6e-4)


def test_maximum_norm_radii() -> None:
    assert float(radii.uniform_linf(0.1, 1.0, 1)) == pytest.approx(0.8)
    assert float(radii.uniform_linf(0.1, 1.0, 2)) == pytest.approx(2 * (1 - math.sqrt(0.6)))
    assert float(radii.gaussian_linf(0.1, 0.5, 4)) == pytest.approx(0.25 * 1.2815516, abs=1e-6)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [(0.9, 0.9, 1.81239), (0.99, 0.6, 1.82412), (0.95, 0.4, 0.98394)],
)
def test_two_branches(left: float, right: float, expected: float) -> None:
    found = float(radii.split_dual_l2(1 - left, 1 - right, 1.0))
    assert found == pytest.approx(expected, abs=6e-6)
    assert float(radii.split_dual_l2(1 - right, 1 - left, 1.0)) == found
    a, b = norm.ppf([left, right])
    theta = np.linspace(0, 2 * math.pi, 100_001)

    def worst(r: float) -> float:
        return float((ndtr(a - r * np.cos(theta)) + ndtr(b - r * np.sin(theta))).min())

    assert worst(found) >= 1 - 1e-9
    assert worst(found * 1.001) < 1


def test_two_branches_and_the_published_overclaim() -> None:
    """The root of summed squares would claim 3.0903 here; the averaged vote is lost long before."""
    a, b = norm.ppf([0.99, 0.979])
    found = float(radii.split_dual_l2(0.01, 0.021, 1.0))
    assert found < math.hypot(a, b)
    assert float(radii.split_dual_l2(0.5, 0.0010, 1.0)) == pytest.approx(2.18517, abs=1e-4)
    u = 3.087 * np.array([0.0, 1.0])
    assert (ndtr(0.0 - u[0]) + ndtr(norm.ppf(0.999) - u[1])) / 2 < 0.51


def test_two_branches_with_many_classes() -> None:
    found = radii.split_dual_multiclass(0.1, 0.6, [[0.05, 0.5]], 1.0)
    assert found == pytest.approx(0.9403, abs=2e-4)
    more = radii.split_dual_multiclass(0.1, 0.6, [[0.05, 0.5], [0.05, 0.55]], 1.0)
    assert float(radii.split_dual_l2(0.1, 0.6, 1.0)) <= more < found


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.9, (1.2816, 1.3474, 1.4292, 1.5265, 1.6436)),
        (0.6, (0.2533, 0.3078, 0.3885, 0.5076, 0.6805)),
        (0.99, (2.3263, 2.3729, 2.4289, 2.4954, 2.5758)),
    ],
)
def test_gradients_lengthen_radii(p: float, expected: tuple[float, ...]) -> None:
    shares = (1, 0.75, 0.5, 0.25, 0)
    found = [radius_l2(known(p), share * steepest(p)) for share in shares]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found[0] >= float(radii.gaussian_l2(1 - p, 1.0)) - 1e-8
    assert radius_l2(known(p), 10.0) == pytest.approx(found[0], abs=1e-8)  # none is steeper


def test_the_slab_is_the_worst_case_of_a_linear_program() -> None:
    z = np.linspace(-8, 8, 4001)
    mass = norm.pdf(z) * (z[1] - z[0])
    for p, s, r in ((0.9, -0.1, 1.3), (0.7, -0.2, 0.5), (0.95, 0.02, 0.9)):
        found = linprog(
            mass * np.exp(r * z - r * r / 2),
            A_ub=[-mass, -mass * z],
            b_ub=[-p, -s],
            bounds=(0, 1),
        )
        assert slab_value(r, 1 - p, s) <= found.fun + 1e-5
        assert slab_value(r, 1 - p, s) == pytest.approx(found.fun, abs=2e-3)


@pytest.mark.parametrize(
    ("share", "part", "slab", "both"),
    [(0.5, 0.2, 1.594, 1.682), (0.95, 0.05, 1.619, 2.302)],
)
def test_l1_radii_from_the_gradient(share: float, part: float, slab: float, both: float) -> None:
    norm2 = share * steepest(0.9)
    assert radius(known(0.9), -part * norm2, 0.0) == pytest.approx(slab, abs=1e-3)
    assert radius_lp(known(0.9), part * norm2, (norm2, norm2), 1.0) == pytest.approx(both, abs=0.01)


def test_the_two_dimensional_bound_is_below_every_classifier_of_these_moments() -> None:
    """Half-planes across a diagonal have their own radius; the bound must not exceed it."""
    for angle in (0.3, 0.8, 1.2):
        p = 0.85
        g = steepest(p)
        s, t = -g * math.cos(angle), g * math.sin(angle)
        true = norm.ppf(p) / math.cos(angle)  # where the direction meets the half-plane's border
        assert radius(known(p), s, t) <= true + 1e-6


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5])
def test_no_majority_no_radius(p: float) -> None:
    assert radius_l2(known(p), 0.1) == 0
    assert radius(known(p), -0.1, 0.1) == 0


def test_changed_features_against_published_rationals() -> None:
    value = l0_value(F(99, 100), F(8, 10), 255, 1)
    assert float(value) == pytest.approx(0.190784313725, abs=1e-12)
    values = [float(l0_value(F(99, 100), F(2, 10), 255, r)) for r in range(1, 6)]
    np.testing.assert_allclose(values, (0.7931, 0.6363, 0.5110, 0.4108, 0.3305), atol=6e-5)
    assert l0_radius(F(99, 100), F(2, 10), 255, 9) == 3
    assert sparse_value(F(95, 100), F(2, 10), F(2, 10), 1, 2) == F(32, 100)
    assert l0_value(F(95, 100), F(8, 10), 1, 3) == F(32, 100)
    assert float(sparse_value(F(95, 100), F(1, 100), F(6, 10), 2, 1)) == pytest.approx(
        0.341758, abs=1e-6
    )
    assert float(sparse_value(F(95, 100), F(1, 100), F(6, 10), 0, 3)) == pytest.approx(
        0.775394, abs=1e-6
    )


@pytest.mark.parametrize(("keep", "values"), [(F(1, 2), 2), (F(1, 5), 3), (F(7, 10), 1)])
def test_changed_features_against_enumeration(keep: F, values: int) -> None:
    """Every noisy point one by one, sorted by likelihood ratio."""
    size, changed, p = 3, 2, F(9, 10)
    lost = (1 - keep) / values
    clean, moved = (0,) * size, (1,) * changed + (0,) * (size - changed)
    points = []
    for z in itertools.product(range(values + 1), repeat=size):
        masses = [
            math.prod((keep if a == b else lost for a, b in zip(z, x, strict=True)), start=F(1))
            for x in (clean, moved)
        ]
        points.append(masses)
    points.sort(key=lambda m: -m[0] / m[1])
    left, value = p, F(0)
    for mass, other in points:
        share = min(F(1), left / mass) if left > 0 else F(0)
        value, left = value + share * other, left - share * mass
    assert l0_value(p, keep, values, changed) == value


def test_certified_pairs_do_not_contain_each_other() -> None:
    found = sparse_radii(F(99, 100), F(1, 100), F(6, 10), 10)
    for a, b in itertools.combinations(found, 2):
        assert (a[0] < b[0]) and (a[1] > b[1])
    for added, deleted in found:
        assert sparse_value(F(99, 100), F(1, 100), F(6, 10), added, deleted) > F(1, 2)
        assert sparse_value(F(99, 100), F(1, 100), F(6, 10), added, deleted + 1) <= F(1, 2)


def test_what_smoothing_costs() -> None:
    assert ball_vanishes(1.0, 3072) == pytest.approx(0.01804, abs=1e-5)
    assert ball_vanishes(1.0, 2) == pytest.approx(0.8493, abs=1e-4)
    assert ball_value(1.0, 0.0, ball_vanishes(1.0, 2), 2) == pytest.approx(0.5)
    assert slab_vanishes(1.0) == pytest.approx(1.4826, abs=1e-4)
    for faces, moved in ((2, 0.545), (10, 1.499), (100, 2.462)):
        assert orthant_recedes(faces, 1.0) == pytest.approx(moved, abs=6e-4)
    for size, moved, slack in ((2, 1.285, 1e-3), (10, 5.024, 1e-3), (3072, 95.98, 0.02)):
        assert abs(cone_recedes(math.radians(30), 1.0, size) - moved) < slack


@pytest.mark.parametrize("sigma", [0, -1, math.inf, math.nan, "0.5"])
def test_noise_needs_a_scale(sigma: float) -> None:
    with pytest.raises(BadInput, match="positive"):
        radii.gaussian_l2(0.1, sigma)


def test_no_sample_shows_certainty() -> None:
    with pytest.raises(BadInput, match="infinite radius"):
        radii.gaussian_l2(0.0, 1.0)
    with pytest.raises(BadInput, match="infinite radius"):
        radii.laplace_l1(0.0, 1.0)
