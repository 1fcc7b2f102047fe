"""Radii from the value and the gradient of the smoothed classifier, both from the same samples.

Mohapatra et al. 2020. The gradient at unit noise is ``mu = E[e 1(f = c)] = E[e (1(f = c) - 1/2)]``;
X and Y are its means over two halves of the samples. Along a fixed unit vector a mean of m samples
exceeds its expectation by more than c with probability at most delta (`reach`); conditioned on the
other half, Y is such a vector, and so ``X . Y`` tells the length of mu up to c.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from certify.core.errors import BadInput
from certify.core.votes import Votes
from certify.smoothing import first_order
from certify.smoothing.confidence import Estimate, clopper_pearson
from certify.smoothing.noise import Noise
from certify.smoothing.rules import Found, charged, counted, leader, rule, settled

# sup over classifiers of 2 ln E exp(lambda v.(e (h - 1/2) - mu)) / lambda^2, numerically, at lambda
_TILTS = (0.01, 0.1, 0.5, 1.0, 2.0, 4.0)
_PROXIES = (0.2505, 0.2546, 0.2741, 0.2997, 0.3500, 0.4014)
_MARGIN = 1e-3  # on the proxies
_SUMMED = 1e-5  # float32 sums over batches; far below every `reach`
_DOWN = 1 - 1e-9


class Lengths(NamedTuple):
    """Bounds of a vector's Euclidean length."""

    low: float
    high: float


@rule("first-order")
def first_order_rule(votes: Votes, noise: Noise, size: int) -> Found:
    """Half of alpha for the value, the other half for what the norm needs to know of the gradient.

    ``sums``: ``dot`` = X . Y, ``second`` = |Y|, ``largest`` and ``total`` = max and sum of
    |(X + Y) / 2|; ``dot_part``, ``second_part`` for the subspace ``settings["subspace"]``.
    """
    if noise.name != "gaussian":
        raise BadInput("the first-order rule is for gaussian noise")
    label = leader(counted(votes, "selection"))
    first, second = counted(votes, "first"), counted(votes, "second")
    est = first + second
    found = charged(clopper_pearson(est[label], est.sum(), votes.alpha / 2), noise.slack(size))
    plain = settled(label, found, votes, noise, size)
    if plain.label < 0:
        return plain
    sigma = float(noise.parameters["sigma"])
    m = int(min(first.sum(), second.sum()))
    radius = sigma * _radius(votes, found, size, m) * _DOWN
    return plain._replace(radius=max(plain.radius, radius))


def _radius(votes: Votes, found: Estimate, size: int, m: int) -> float:
    """In units of the noise."""
    half = votes.alpha / 2
    if "subspace" in votes.settings:
        part = lengths(_sum(votes, "dot_part"), _sum(votes, "second_part"), m, half / 4)
        whole = lengths(_sum(votes, "dot"), _sum(votes, "second"), m, half / 4)
        t = math.sqrt(max(0.0, whole.low**2 - part.high**2))
        return first_order.radius(found, -part.high, t)
    if votes.norm == "2":
        high = lengths(_sum(votes, "dot"), _sum(votes, "second"), m, half / 2).high
        return first_order.radius_l2(found, high)
    norm2 = lengths(_sum(votes, "dot"), _sum(votes, "second"), m, half / 6)
    rest = half / 3
    if votes.norm == "1":
        largest = _sum(votes, "largest") + reach(2 * m, rest / (2 * size))
        return first_order.radius_lp(found, min(largest, norm2.high), norm2, 1.0)
    signs = size * math.log(2) - math.log(rest)  # all sign vectors at once
    total = _sum(votes, "total") + math.sqrt(size) * _tail(2 * m, signs)
    dual = min(total, math.sqrt(size) * norm2.high)
    return first_order.radius_lp(found, dual, norm2, math.sqrt(size))


def lengths(dot: float, second: float, m: int, delta: float) -> Lengths:
    """Bounds of |mu| from X . Y and |Y|; each holds with probability at least 1 - 2 delta."""
    c = reach(m, delta)
    above, below = dot + second * c, dot - second * c
    high = (c + math.sqrt(c * c + 4 * max(above, 0.0))) / 2
    low = (-c + math.sqrt(c * c + 4 * below)) / 2 if below > 0 else 0.0
    return Lengths(low, high)


def reach(m: int, delta: float) -> float:
    """What a mean of m samples exceeds along a fixed direction with probability at most delta."""
    return _tail(m, -math.log(delta))


def _tail(m: int, log: float) -> float:
    """Chernoff at the best of a few tilts: any tilt is valid."""
    bounds = [(k + _MARGIN) * t / 2 + log / (m * t) for t, k in zip(_TILTS, _PROXIES, strict=True)]
    general = (max(_PROXIES) + _MARGIN) * 2 * log / m  # one constant for every tilt, the best tilt
    return min(*bounds, math.sqrt(general)) + _SUMMED


def statistics(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """What the rule keeps of the two means ``(size,)``."""
    mean = np.abs(x + y) / 2
    values = {"dot": x @ y, "second": np.linalg.norm(y), "largest": mean.max(), "total": mean.sum()}
    return {name: np.array([value], np.float64) for name, value in values.items()}


def _sum(votes: Votes, name: str) -> float:
    found = votes.sums.get(name)
    if found is None or found.shape != (1,):
        raise BadInput(f"the first-order rule needs the sum {name!r}")
    return float(found[0])
