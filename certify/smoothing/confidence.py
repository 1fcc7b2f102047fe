"""Confidence bounds for a probability from counts and for a mean from bounded samples.

Pure functions in float64. Counts are exact integers; ``alpha`` is the one-sided failure probability
of each number returned, and whoever calls spends it (`certify.smoothing.budget`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from certify.core.errors import BadInput

_GUARD = 1e-9  # relative; scipy's incomplete beta inverse is good to 1e-10 of its tail


class Estimate(NamedTuple):
    """A lower bound of a probability.

    Attributes:
        p: the bound.
        q: an upper bound of the complement; not ``1 - p``, which loses its digits near 0.
    """

    p: np.ndarray
    q: np.ndarray


def clopper_pearson(successes: Any, trials: Any, alpha: float) -> Estimate:
    """The exact one-sided lower bound (Clopper and Pearson 1934), arrays broadcast.

    P(bound > true probability) <= alpha for every true probability.

    Raises:
        BadInput: counts that are no integers or out of order, or alpha outside (0, 1).
    """
    from scipy.special import betainccinv, betaincinv

    k, n = counts(successes, trials)
    _level(alpha)
    inside = np.maximum(k, 1)
    p = np.where(k == 0, 0.0, betaincinv(inside, n - inside + 1, alpha) * (1 - _GUARD))
    q = np.where(k == 0, 1.0, betainccinv(n - inside + 1, inside, alpha) * (1 + _GUARD))
    return Estimate(p, np.minimum(q, 1.0))


def clopper_pearson_upper(successes: Any, trials: Any, alpha: float) -> np.ndarray:
    """The exact one-sided upper bound; ``1 - clopper_pearson(n - k, n).p`` with all its digits."""
    k, n = counts(successes, trials)
    return clopper_pearson(n - k, n, alpha).q


def hoeffding(samples_mean: Any, trials: int, alpha: float) -> np.ndarray:
    """Lower bound of the mean of samples in [0, 1] (Hoeffding 1963, theorem 1)."""
    _level(alpha)
    _, n = counts(0, trials)
    reach = np.sqrt(np.log(1 / alpha) / (2 * n)) * (1 + _GUARD)
    return np.asarray(np.maximum(np.asarray(samples_mean, dtype=np.float64) - reach, 0.0))


def empirical_bernstein(mean: Any, variance: Any, trials: int, alpha: float) -> np.ndarray:
    """Lower bound of the mean of samples in [0, 1] (Maurer and Pontil 2009, theorem 4).

    Args:
        variance: the unbiased sample variance (division by n - 1).
    """
    _level(alpha)
    _, n = counts(0, trials)
    if (n < 2).any():
        raise BadInput("an empirical variance needs at least 2 samples")
    width = np.log(2 / alpha)
    reach = np.sqrt(2 * np.asarray(variance) * width / n) + 7 * width / (3 * (n - 1))
    found = np.asarray(mean, dtype=np.float64) - reach * (1 + _GUARD)
    return np.asarray(np.maximum(found, 0.0))


def rank_p_value(first: Any, second: Any) -> np.ndarray:
    """Two-sided exact p-value that the two leading counts come from a fair coin.

    Returning the leader only when this is at most alpha errs with probability at most alpha (rank
    verification, Hung and Fithian 2019).
    """
    from scipy.special import bdtrc

    k, n = counts(np.maximum(first, second), np.add(first, second))
    tail = np.where(k == 0, 1.0, bdtrc(np.maximum(k, 1) - 1, n, 0.5))
    return np.asarray(np.minimum(2 * tail * (1 + _GUARD), 1.0))


def counts(successes: Any, trials: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as int64 arrays.

    Raises:
        BadInput: not whole numbers, or not 0 <= successes <= trials with trials >= 1.
    """
    k, n = np.asarray(successes), np.asarray(trials)
    for name, array in (("successes", k), ("trials", n)):
        if array.dtype.kind not in "iu":
            raise BadInput(f"{name} must be whole numbers, got {array.dtype}: votes are counted")
    if (n < 1).any() or (k < 0).any() or (k > n).any():
        raise BadInput(f"counts must satisfy 0 <= successes <= trials, got {k} of {n}")
    return k.astype(np.int64), n.astype(np.int64)


def _level(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise BadInput(f"alpha must lie strictly between 0 and 1, got {alpha!r}")
