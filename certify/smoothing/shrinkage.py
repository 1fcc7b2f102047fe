"""What smoothing costs where it certifies nothing: regions shrink and classes vanish.

Closed forms for simple decision regions and two answers (Mohapatra et al. 2021, "Hidden cost of
randomized smoothing"): the smoothed classifier keeps a point while at least half of the noise lands
in the region.
"""

from __future__ import annotations

import math

import numpy as np

from certify.smoothing.radii import scale


def ball_value(radius: float, distance: float, sigma: float, size: int) -> float:
    """P(x + noise in the ball) at ``distance`` from its centre, in ``size`` dimensions."""
    from scipy.stats import ncx2

    scale("sigma", sigma)
    return float(ncx2.cdf((radius / sigma) ** 2, size, (distance / sigma) ** 2))


def ball_vanishes(radius: float, size: int) -> float:
    """The sigma above which no point is left of a ball: ``radius / sqrt(median of chi2)``."""
    from scipy.stats import chi2

    return radius / math.sqrt(float(chi2.median(size)))


def slab_vanishes(half_width: float) -> float:
    """The sigma above which no point is left of a slab: ``half_width / z(3/4)``."""
    from scipy.special import ndtri

    return half_width / float(ndtri(0.75))


def orthant_recedes(faces: int, sigma: float) -> float:
    """How far the corner of ``faces`` orthogonal half-spaces moves inwards, per face."""
    from scipy.special import ndtri

    scale("sigma", sigma)
    return sigma * float(ndtri(2.0 ** (-1.0 / faces)))


def cone_recedes(half_angle: float, sigma: float, size: int) -> float:
    """How far the apex of a circular cone moves along its axis.

    Args:
        half_angle: in radians, in (0, pi/2).
    """
    from scipy.optimize import brentq
    from scipy.stats import chi2, norm

    scale("sigma", sigma)
    slope = math.tan(half_angle)
    z = np.linspace(-12.0, 12.0, 4801)
    weight = norm.pdf(z) * (z[1] - z[0])

    def excess(a: float) -> float:
        inside = chi2.cdf((slope * np.maximum(a + z, 0.0)) ** 2, size - 1)
        return float(weight @ inside) - 0.5

    return sigma * float(brentq(excess, -12.0, 24.0 + 4 * math.sqrt(size) / slope, xtol=1e-10))
