"""Confidence bounds: published constants, exact coverage by enumeration, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from certify.core.errors import BadInput, UsageError
from certify.smoothing.budget import Budget
from certify.smoothing.confidence import (
    clopper_pearson,
    clopper_pearson_upper,
    empirical_bernstein,
    hoeffding,
    rank_p_value,
)
from certify.smoothing.quantiles import tail_above, z_below
from certify.smoothing.sequential import confidence_sequence, exceeds, falls_short, log_e

ALPHA = 1e-3


@pytest.mark.parametrize(
    ("n", "cap"),
    [
        (100, 1.500475),
        (1000, 2.463263),
        (10**4, 3.198578),
        (10**5, 3.811457),
        (10**6, 4.346774),
        (10**7, 4.827648),
    ],
)
def test_the_largest_radius_of_n_unanimous_votes(n: int, cap: float) -> None:
    found = float(z_below(clopper_pearson(n, n, ALPHA).q))
    exact = float(stats.norm.isf(-np.expm1(np.log(ALPHA) / n)))
    assert found == pytest.approx(cap, abs=6e-7)
    assert exact - 1e-9 <= found <= exact


def test_the_bound_covers_every_probability_by_enumeration() -> None:
    grid = np.linspace(0, 1, 201)
    for n in (1, 2, 3, 7, 20, 61, 200):
        k = np.arange(n + 1)
        lower, upper = clopper_pearson(k, n, ALPHA).p, clopper_pearson_upper(k, n, ALPHA)
        mass = stats.binom.pmf(k[None], n, grid[:, None])
        assert (mass * (lower[None] > grid[:, None])).sum(1).max() <= ALPHA
        assert (mass * (upper[None] < grid[:, None])).sum(1).max() <= ALPHA


def test_the_bound_is_monotone_and_mirrors() -> None:
    n, k = 50, np.arange(51)
    assert (np.diff(clopper_pearson(k, n, ALPHA).p) > 0).all()
    assert (clopper_pearson(k, n, 1e-4).p[1:] < clopper_pearson(k, n, ALPHA).p[1:]).all()
    assert (np.diff(clopper_pearson(20, np.arange(20, 90), ALPHA).p) < 0).all()
    np.testing.assert_array_equal(
        clopper_pearson_upper(k, n, ALPHA), clopper_pearson(n - k, n, ALPHA).q
    )
    assert clopper_pearson(0, n, ALPHA).p == 0
    assert clopper_pearson_upper(n, n, ALPHA) == 1


@pytest.mark.parametrize(
    ("votes", "p_value"),
    [((60, 40), 0.0569), ((530, 470), 0.0620), ((560, 440), 0.000165), ((11, 0), 0.000977)],
)
def test_rank_verification(votes: tuple[int, int], p_value: float) -> None:
    assert float(rank_p_value(*votes)) == pytest.approx(p_value, rel=5e-3)
    assert float(rank_p_value(*votes)) >= stats.binomtest(votes[0], sum(votes)).pvalue * (1 - 1e-12)


def test_a_tie_is_never_significant() -> None:
    assert rank_p_value(500, 500) == 1
    assert float(rank_p_value(0, 11)) == float(rank_p_value(11, 0))


def test_means_of_bounded_samples() -> None:
    assert float(hoeffding(0.9, 1000, 0.05)) == pytest.approx(0.9 - np.sqrt(np.log(20) / 2000))
    flat = float(empirical_bernstein(0.9, 0.0, 1000, 0.05))
    assert flat == pytest.approx(0.9 - 7 * np.log(40) / (3 * 999))
    assert float(empirical_bernstein(0.01, 0.2, 10, 0.05)) == 0


@pytest.mark.parametrize(
    ("share", "radius"), [(1.0, 3.7728), (0.9, 1.2559), (0.99, 2.2738), (0.6, 0.2337)]
)
def test_the_confidence_sequence(share: float, radius: float) -> None:
    n = 10**5
    found = confidence_sequence(round(share * n), n, ALPHA)
    assert float(z_below(found.q)) == pytest.approx(radius, abs=6e-5)
    assert float(found.p) < float(clopper_pearson(round(share * n), n, ALPHA).p)


@pytest.mark.parametrize("p0", [0.1, 0.5, 0.84, 0.999])
def test_an_e_value_has_mean_at_most_one(p0: float) -> None:
    for n in (1, 5, 40, 150):
        k = np.arange(n + 1)
        e = np.exp([log_e(int(i), n, p0) for i in k])
        for p in (p0, 0.7 * p0, 0.2 * p0):
            assert (stats.binom.pmf(k, n, p) * e).sum() <= 1 + 1e-12
        assert (stats.binom.pmf(k, n, p0) * e).sum() > 0.99  # it is a martingale at p0


def test_peeking_at_every_sample_keeps_the_level() -> None:
    rng, alpha, p0, n = np.random.default_rng(0), 0.1, 0.6, 400
    wrong = 0
    for draws in rng.random((1500, n)) < p0:
        k = draws.cumsum()
        looks = range(9, n, 10)
        wrong += any(exceeds(int(k[i]), i + 1, p0, alpha) for i in looks)
    assert stats.binomtest(wrong, 1500, alpha, alternative="greater").pvalue > 1e-6
    assert not falls_short(400, 400, p0, alpha)
    assert falls_short(100, 400, p0, alpha)


def test_quantiles_err_on_the_safe_side() -> None:
    q = np.concatenate((10.0 ** -np.arange(1, 300, 7), [0.3, 0.5, 0.9, 1 - 1e-12]))
    z = z_below(q)
    assert (tail_above(z) >= q).all()
    np.testing.assert_allclose(special.ndtr(-z), q, rtol=1e-9)
    assert z_below(1.0) == -np.inf


def test_a_budget_is_spent_once() -> None:
    budget = Budget(0.01)
    halves = budget.split(1, 1)
    assert sum(b.spend() for b in halves) <= 0.01
    for used in (budget, *halves):
        with pytest.raises(UsageError, match="already spent"):
            used.spend()
    with pytest.raises(UsageError, match="already spent"):
        budget.split(1, 2)


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 2, float("nan"), "0.1"])
def test_a_budget_is_a_probability(alpha: float) -> None:
    with pytest.raises(BadInput, match="alpha"):
        Budget(alpha)


@pytest.mark.parametrize(
    ("k", "n"), [(1.0, 2), (3, 2), (-1, 2), (0, 0), (1, 2.5), (np.float32(1), 2)]
)
def test_votes_are_counted(k: float, n: float) -> None:
    with pytest.raises(BadInput, match=r"whole|counts"):
        clopper_pearson(k, n, ALPHA)


@pytest.mark.parametrize("q", [np.float32(0.1), -0.1, 1.1, float("nan"), 0.0])
def test_tails_are_float64_probabilities(q: float) -> None:
    with pytest.raises(BadInput):
        z_below(q)
