"""How far a vote carries: radius rules for every noise, pure float64 functions of tail bounds.

``q`` is an upper bound on the probability that the classifier does *not* answer the class, so that
p = 1 - q; radii are rounded down and are those of open balls. 0 means that nothing is certified.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from certify.core.errors import BadInput
from certify.smoothing.quantiles import probability, z_below

_DOWN = 1 - 2.0**-44
_MARGIN = 1e-9
_ANGLES = 20_001
_HALVINGS = 60


def gaussian_l2(q: Any, sigma: float, other: Any = None) -> np.ndarray:
    """Cohen et al. 2019, theorem 1: ``sigma/2 (z(p) - z(other))``, with ``other = 1 - p`` at least.

    Args:
        other: upper bound on the probability of every single other class; None: only q is known.
    """
    scale("sigma", sigma)
    own = z_below(q)
    binary = sigma * own
    if other is None:
        return np.asarray(np.maximum(binary, 0.0) * _DOWN)
    rival = -z_below(np.maximum(probability("other", other), 2.0**-1000))
    return np.asarray(np.maximum(np.maximum(binary, sigma / 2 * (own - rival)), 0.0) * _DOWN)


def gaussian_linf(q: Any, sigma: float, size: int) -> np.ndarray:
    """The l2 ball around a box of ``size`` dimensions."""
    return gaussian_l2(q, sigma) / math.sqrt(size) * _DOWN


def uniform_l1(q: Any, width: float) -> np.ndarray:
    """Noise uniform on [-width, width]^d (Yang et al. 2020): ``2 width (p - 1/2)``."""
    scale("width", width)
    found = 2 * width * (0.5 - probability("q", q)) - _MARGIN * width
    return np.asarray(np.maximum(found, 0.0) * _DOWN)


def uniform_linf(q: Any, width: float, size: int) -> np.ndarray:
    """The same noise in the maximum norm: ``2 width (1 - (3/2 - p)^(1/d))``."""
    scale("width", width)
    share = -np.expm1(np.log(0.5 + probability("q", q)) / size)
    return np.asarray(np.maximum(2 * width * share * (1 - _MARGIN), 0.0) * _DOWN)


def laplace_l1(q: Any, spread: float) -> np.ndarray:
    """Laplace noise of scale ``spread`` (Teng et al. 2020): ``-spread ln(2 (1 - p))``."""
    scale("spread", spread)
    tail = probability("q", q)
    if (tail <= 0).any():
        raise BadInput("a tail probability of 0 would give an infinite radius; no sample shows it")
    return np.asarray(np.maximum(-spread * np.log(2 * tail) * (1 - _MARGIN), 0.0) * _DOWN)


def split_dual_l2(q_left: Any, q_right: Any, sigma: float) -> np.ndarray:
    """Two branches on disjoint coordinates (Xia et al. 2024): ``sigma (a + b) / sqrt(2)``.

    a, b are the quantiles of each branch for the same class, one of which may be negative: the mean
    of the branches stays above 1/2 while ``a - u + b - v > 0``, and u + v <= sqrt(2) r / sigma.
    """
    scale("sigma", sigma)
    total = z_below(q_left) + z_below(q_right)
    return np.asarray(np.maximum(sigma * total / math.sqrt(2), 0.0) * _DOWN)


def split_dual_multiclass(q_left: float, q_right: float, rivals: Any, sigma: float) -> float:
    """As `split_dual_l2` where each rival class has bounds of its own.

    Args:
        rivals: ``(C - 1, 2)`` upper bounds on every other class's probability per branch.

    The smallest difference over all ways to share a distance between the branches, on a grid of
    angles with the Lipschitz slack of its spacing.
    """
    scale("sigma", sigma)
    low = float(split_dual_l2(q_left, q_right, sigma)) / sigma
    own = [float(z_below(q_left)), float(z_below(q_right))]
    others = np.maximum(probability("rivals", rivals), 2.0**-1000).reshape(-1, 2)
    limits = -z_below(others)
    reach = own[0] + own[1] - float(limits.sum(1).max()) + 8.0
    high = max(low, min(reach, 40.0))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if all(_difference(middle, own, rival) > _MARGIN for rival in limits):
            low = middle
        else:
            high = middle
    return float(low * sigma * _DOWN)


def _difference(rho: float, own: list[float], rival: np.ndarray) -> float:
    """Least value of the class minus the rival over all angles, by grid and slack."""
    from scipy.special import ndtr

    theta = np.linspace(0, math.pi / 2, _ANGLES)
    u, v = rho * np.cos(theta), rho * np.sin(theta)
    value = ndtr(own[0] - u) + ndtr(own[1] - v) - ndtr(rival[0] + u) - ndtr(rival[1] + v)
    slack = 0.8 * rho * (theta[1] - theta[0])  # Lipschitz constant 4 rho phi(0), half a step away
    return float(value.min() - slack)


def scale(name: str, value: float) -> None:
    """Refuse a noise scale that is none.

    Raises:
        BadInput: not a positive finite number.
    """
    if not (isinstance(value, (int, float, np.floating)) and 0 < value < math.inf):
        raise BadInput(f"{name} must be a positive number, got {value!r}")
