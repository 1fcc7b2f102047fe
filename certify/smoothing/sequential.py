"""Bounds that stay valid however often one looks and whenever one stops.

One-sided e-process for "p <= p0" with a Beta(1/2, 1/2) prior truncated to (p0, 1]: a nonnegative
martingale of mean at most 1 under every such p, so it exceeds 1/alpha with probability at most
alpha at any time (Ville 1939; Robbins 1970).
"""

from __future__ import annotations

import math

import numpy as np

from certify.smoothing.confidence import Estimate, counts

_ITERATIONS = 200
_GUARD = 1e-9  # on log e: far above the error of the special functions


def log_e(successes: int, trials: int, p0: float) -> float:
    """Logarithm of the e-value against ``p <= p0``, rounded down."""
    return _log_e(successes, trials, p0, 1.0 - p0)


def _log_e(k: int, n: int, p0: float, q0: float) -> float:
    """As `log_e`, with ``q0 = 1 - p0`` given to all its digits."""
    from scipy.special import betainc, betaln

    a, b = 0.5 + k, 0.5 + n - k
    # 1 - I_p0(a, b) = I_q0(b, a)
    posterior, prior = betainc(b, a, q0), betainc(0.5, 0.5, q0)
    if posterior <= 0 or prior <= 0:
        return -math.inf
    value = betaln(a, b) + math.log(posterior) - betaln(0.5, 0.5) - math.log(prior)
    value -= k * math.log(p0) if k else 0.0
    value -= (n - k) * math.log(q0) if n > k else 0.0
    return float(value - _GUARD * (1 + abs(value)))


def exceeds(successes: int, trials: int, p0: float, alpha: float) -> bool:
    """Whether the samples so far show ``p > p0``; may be asked after every sample."""
    return trials > 0 and log_e(successes, trials, p0) >= math.log(1 / alpha)


def falls_short(successes: int, trials: int, p0: float, alpha: float) -> bool:
    """Whether the samples so far show ``p < p0``.

    Together with `exceeds` at the same alpha no split is needed: for any true p at most one of the
    two can be wrong.
    """
    return trials > 0 and _log_e(trials - successes, trials, 1 - p0, p0) >= math.log(1 / alpha)


def confidence_sequence(successes: int, trials: int, alpha: float) -> Estimate:
    """A lower bound of p that holds at all times at once: the largest p0 the e-process rejects."""
    ks, ns = counts(successes, trials)
    k, n = int(ks), int(ns)
    threshold = math.log(1 / alpha)
    # In q0 = 1 - p0 on a log scale, where the digits are; rejected at high, not rejected at low.
    low, high = math.log(max((n - k) / n, 1e-300)), 0.0
    if k == 0 or _log_e(k, n, 1e-12, 1 - 1e-12) < threshold:
        return Estimate(np.array(0.0), np.array(1.0))
    low = max(low, -700.0)
    for _ in range(_ITERATIONS):
        middle = (low + high) / 2
        q0 = math.exp(middle)
        p0 = -math.expm1(middle)
        if p0 <= 0 or _log_e(k, n, p0, q0) >= threshold:
            high = middle
        else:
            low = middle
    q = min(1.0, math.exp(high) * (1 + 1e-12))
    return Estimate(np.array(max(0.0, -math.expm1(high) * (1 - 1e-12))), np.array(q))
