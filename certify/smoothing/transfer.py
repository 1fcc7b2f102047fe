"""A certificate for a changed model, from the votes of the old one and a few comparisons.

Ugare et al. 2024 ("Incremental randomized smoothing certification"): if two models answer
differently under the noise with probability at most zeta, then the new model's probability is at
least the old one's less zeta. Moves certificates to a quantised, compiled or bfloat16 model.
"""

from __future__ import annotations

import numpy as np

from certify.core.errors import BadInput
from certify.smoothing.confidence import Estimate, clopper_pearson_upper
from certify.smoothing.noise import Noise


def disagreement(differ: int, compared: int, alpha: float) -> float:
    """Upper bound of the probability that the models differ, from fresh samples of one input."""
    return float(clopper_pearson_upper(differ, compared, alpha))


def transferred(bound: Estimate, zeta: float) -> Estimate:
    """The new model's probability of the class, from the old model's bound.

    The confidences add up: 1 - alpha - alpha_zeta.

    Raises:
        BadInput: zeta outside [0, 1].
    """
    if not 0 <= zeta <= 1:
        raise BadInput(f"a disagreement lies in [0, 1], got {zeta!r}")
    return Estimate(np.maximum(bound.p - zeta, 0.0), np.minimum(bound.q + zeta, 1.0))


def transferred_radius(bound: Estimate, zeta: float, noise: Noise, norm: str, size: int) -> float:
    """The new model's radius; 0 where nothing is left."""
    return noise.radius(transferred(bound, zeta), norm, size)
