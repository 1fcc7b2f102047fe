"""Radii from the value and the gradient of a smoothed classifier (Mohapatra et al. 2020).

Units: noise of standard deviation 1. Known are lower bounds on the value ``p = P(f = c)`` and on
the directional derivative along the perturbation, ``s = v . E[e 1(f = c)]``. The worst classifier
with these is a slab across the direction; with a known orthogonal gradient norm it is bounded by a
smoothed half-plane, evaluated by weak duality: any multipliers give a valid bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from certify.core.errors import BadInput
from certify.smoothing.confidence import Estimate

_MARGIN = 1e-9  # on probabilities: far above the error of root finding and quadrature
_HALVINGS = 60
_REACH, _NODES = 13.0, 2601  # trapezoid rule on a Gaussian weight: error below 1e-30 where smooth
_LEAST_WIDTH = 0.02  # of the smoothed half-plane, for the trapezoid rule's sake


class Slab(NamedTuple):
    """``low < z < high`` across the direction, as tail masses on either side."""

    low: float
    high: float


def slab(q: float, s: float) -> Slab:
    """The slab of mass ``1 - q`` whose mean is ``s``: ends a < b with ``phi(a) - phi(b) = s``.

    Args:
        q: what is missing from 1.
        s: directional derivative; clipped to what mass ``1 - q`` can have.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    if not 0 < q < 1:
        raise BadInput(f"a slab needs a mass strictly between 0 and 1, got 1 - {q}")
    turned = s > 0
    goal = -abs(s)
    density = _density

    def excess(t: float) -> float:
        left = density(float(ndtri(t))) if t > 0 else 0.0
        return left - density(float(ndtri(q - t))) - goal

    t = 0.0 if excess(0.0) >= 0 else float(brentq(excess, 0.0, q / 2, xtol=1e-300, rtol=1e-14))
    low = float(ndtri(t)) if t > 0 else -math.inf
    high = -float(ndtri(q - t))
    return Slab(-high, -low) if turned else Slab(low, high)


def slab_value(r: float, q: float, s: float) -> float:
    """Least value at distance ``r`` along the direction, for value ``1 - q`` and derivative ``s``.

    Equals the optimum of the Neyman-Pearson problem with both constraints; increasing in ``s``.
    """
    found = slab(q, s)
    return _cdf(found.high - r) - _cdf(found.low - r) - _MARGIN


def radius_l2(value: Estimate, gradient: float) -> float:
    """Radius within which the value stays above 1/2, for gradient norm at most ``gradient``.

    Never below the radius without the gradient. 0 where p <= 1/2.
    """
    q = float(value.q)
    if not 0 < q < 0.5:
        return 0.0
    s = -min(gradient, _steepest(q))
    return _largest(lambda r: slab_value(r, q, s), q)


def radius(value: Estimate, s: float, t: float) -> float:
    """As `radius_l2`, for a derivative at least ``s`` along the direction and an orthogonal
    gradient norm at least ``t``: in one more dimension the worst case is milder."""
    q = float(value.q)
    if not 0 < q < 0.5:
        return 0.0
    s = max(s, -_steepest(q))
    plain = _largest(lambda r: slab_value(r, q, s), q)
    if t <= 0:
        return plain
    planes = _Planes(1 - q, s, t)
    return max(plain, _largest(planes.value, q, plain))


def radius_lp(value: Estimate, dual_norm: float, norm2: tuple[float, float], kappa: float) -> float:
    """Radius in an lp norm (units of the noise), from the gradient's norms.

    Args:
        dual_norm: upper bound of the gradient's dual norm ``||mu||_p*``.
        norm2: lower and upper bound of its Euclidean norm.
        kappa: largest Euclidean length of a vector of p-norm 1: 1 for p = 1 and 2, sqrt(d) for
            p = infinity.
    """
    low, high = norm2
    s = -min(dual_norm / kappa, high)
    t = math.sqrt(max(0.0, low * low - s * s))
    return radius(value, s, t) / kappa


class _Planes:
    """The two-dimensional bound for one value and gradient; multipliers are warm-started."""

    def __init__(self, p: float, s: float, t: float) -> None:
        self.p, self.s, self.t = p, s, t
        self.z = np.linspace(-_REACH, _REACH, _NODES)
        self.weight = np.exp(-(self.z**2) / 2) / math.sqrt(2 * math.pi) * (self.z[1] - self.z[0])
        self.start: np.ndarray | None = None

    def value(self, r: float) -> float:
        """A valid lower bound at distance ``r``: the dual's value at the best multipliers found."""
        from scipy.optimize import minimize

        lean = np.exp(r * self.z - r * r / 2)
        if self.start is None:
            self.start = self._first(r)

        def negative(x: np.ndarray) -> tuple[float, np.ndarray]:
            bound, gradient = self._dual(x, lean)
            return -bound, -gradient

        limits = [(None, None), (None, None), (_LEAST_WIDTH, None)]
        found = minimize(negative, self.start, jac=True, method="L-BFGS-B", bounds=limits)
        self.start = np.asarray(found.x)
        return self._dual(self.start, lean)[0] - _MARGIN

    def _first(self, r: float) -> np.ndarray:
        ends = slab(1 - self.p, self.s)
        low = max(ends.low, -8.0)
        at = [math.exp(r * e - r * r / 2) for e in (low, ends.high)]
        slope = (at[1] - at[0]) / (ends.high - low)
        return np.array([at[0] - slope * low, slope, 0.3])

    def _dual(self, x: np.ndarray, lean: np.ndarray) -> tuple[float, np.ndarray]:
        from scipy.special import ndtr

        c0, c1, c2 = x
        A = c0 + c1 * self.z - lean
        u = A / c2
        inside, edge = ndtr(u), np.exp(-u * u / 2) / math.sqrt(2 * math.pi)
        value = c0 * self.p + c1 * self.s + c2 * self.t
        value -= float(self.weight @ (A * inside + c2 * edge))
        weighted = self.weight * inside
        gradient = np.array(
            [
                self.p - weighted.sum(),
                self.s - weighted @ self.z,
                self.t - self.weight @ edge,
            ]
        )
        return float(value), gradient


def _largest(value: Callable[[float], float], q: float, at_least: float | None = None) -> float:
    """The largest r found with ``value(r) >= 1/2``, between the radius without the gradient and the
    most that any gradient could give."""
    from scipy.special import ndtri

    low = -float(ndtri(q)) * (1 - 1e-9) - 1e-12 if at_least is None else at_least
    low, high = max(low, 0.0), -float(ndtri(q / 2))
    if at_least is not None:
        high = max(high, 2 * low + 1)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if value(middle) >= 0.5:
            low = middle
        else:
            high = middle
    return low


def _steepest(q: float) -> float:
    """The largest gradient norm that value ``1 - q`` can have: a half-space's."""
    from scipy.special import ndtri

    return _density(float(ndtri(q)))


def _density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))
