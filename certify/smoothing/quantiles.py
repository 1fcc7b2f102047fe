"""Normal quantiles and probabilities that err on the safe side, also next to 0 and 1.

Everything is float64 and speaks of tail probabilities q = 1 - p: near p = 1 that is where the
digits are. scipy's ``ndtri`` and ``ndtr`` are accurate to a few units of roundoff; `SLACK` covers
that many times over.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from certify.core.errors import BadInput

SLACK = 2.0**-44


def z_below(q: Any) -> np.ndarray:
    """The z with P(N(0,1) > z) = q, rounded down: a lower bound of the quantile at 1 - q.

    -inf at q >= 1.

    Raises:
        BadInput: q is not float64, NaN or not above 0.
    """
    from scipy.special import ndtri

    tail = probability("q", q)
    if (tail <= 0).any():
        raise BadInput("a tail probability of 0 would give an infinite radius; no sample shows it")
    z = -ndtri(np.minimum(tail, 1.0))
    return np.asarray(np.where(np.isfinite(z), z - np.abs(z) * SLACK - SLACK**2, z))


def tail_above(z: Any) -> np.ndarray:
    """P(N(0,1) > z), rounded up."""
    from scipy.special import ndtr

    found = ndtr(-np.asarray(z, dtype=np.float64))
    return np.asarray(np.minimum(found * (1 + SLACK), 1.0))


def probability(name: str, value: Any) -> np.ndarray:
    """``value`` as float64 in [0, 1].

    Raises:
        BadInput: it is of a narrower type, which may have rounded up already, or no probability.
    """
    array = np.asarray(value)
    if array.dtype.kind == "f" and array.dtype.itemsize < 8:
        raise BadInput(f"{name} is {array.dtype}: probabilities are float64, or radii round up")
    array = array.astype(np.float64)
    if not ((array >= 0) & (array <= 1)).all():
        raise BadInput(f"{name} must lie in [0, 1], got {value!r}")
    return array
