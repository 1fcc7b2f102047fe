"""Rules of the two methods called dual randomized smoothing."""

from __future__ import annotations

import numpy as np

from certify.core.votes import Votes
from certify.smoothing import radii
from certify.smoothing.confidence import Estimate, clopper_pearson, clopper_pearson_upper
from certify.smoothing.noise import Gaussian, Noise
from certify.smoothing.rules import Found, charged, counted, leader, rule, settled

SIDES = ("left", "right")


@rule("split-dual")
def split_dual(votes: Votes, noise: Noise, size: int) -> Found:
    """Two branches see disjoint halves of the elements; the answer is that of their mean (Xia et
    al. 2024). Half of alpha for each branch; radius ``sigma (a + b) / sqrt(2)``, a or b perhaps
    below 0.
    """
    label, left, right = _branches(votes, noise, size, votes.alpha / 2)
    sigma = float(noise.parameters["sigma"])
    return _answer(label, float(radii.split_dual_l2(left.q, right.q, sigma)), left, right)


@rule("split-dual-multi-class")
def split_dual_multi_class(votes: Votes, noise: Noise, size: int) -> Found:
    """As `split_dual` with bounds for every rival: half of alpha for the class, half for them."""
    label, left, right = _branches(votes, noise, size, votes.alpha / 4)
    sigma = float(noise.parameters["sigma"])
    plain = float(radii.split_dual_l2(left.q, right.q, sigma))
    if max(float(left.q), float(right.q)) >= 1:
        return _answer(label, plain, left, right)
    rivals = np.stack([_upper(votes, side, label, noise, size) for side in SIDES], 1)
    found = radii.split_dual_multiclass(float(left.q), float(right.q), rivals, sigma)
    return _answer(label, max(plain, found), left, right)


@rule("variance-dual")
def variance_dual(votes: Votes, noise: Noise, size: int) -> Found:
    """A smoothed selector picks sigma, then the classifier is smoothed with it (Sun et al. 2026).

    Half of alpha each; the radius is the smaller one, for within it sigma does not change.
    """
    picked = leader(counted(votes, "sigma-selection"))
    est = counted(votes, "sigma-estimation")
    chosen = settled(
        picked,
        clopper_pearson(est[picked], est.sum(), votes.alpha / 2),
        votes,
        Gaussian(float(votes.settings["selector"])),
        size,
    )
    if chosen.label < 0:
        return Found(-1, 0.0, chosen.bound, "the choice of sigma is not certain: " + chosen.why)
    if float(votes.settings[f"sigma_{picked}"]) != float(noise.parameters["sigma"]):
        return Found(-1, 0.0, chosen.bound, "the votes are not from the sigma that was picked")
    label = leader(counted(votes, "selection"))
    est = counted(votes, "estimation")
    found = settled(
        label, clopper_pearson(est[label], est.sum(), votes.alpha / 2), votes, noise, size
    )
    return found._replace(radius=min(found.radius, chosen.radius))


def _branches(
    votes: Votes, noise: Noise, size: int, alpha: float
) -> tuple[int, Estimate, Estimate]:
    label = leader(counted(votes, "selection-left") + counted(votes, "selection-right"))
    slack = noise.slack(size)
    found = []
    for side in SIDES:
        est = counted(votes, f"estimation-{side}")
        found.append(charged(clopper_pearson(est[label], est.sum(), alpha), slack))
    return label, found[0], found[1]


def _upper(votes: Votes, side: str, label: int, noise: Noise, size: int) -> np.ndarray:
    est = counted(votes, f"estimation-{side}")
    rivals = np.delete(est, label)
    found = clopper_pearson_upper(rivals, est.sum(), votes.alpha / (4 * len(rivals)))
    return np.minimum(found + noise.slack(size), 1.0)


def _answer(label: int, radius: float, left: Estimate, right: Estimate) -> Found:
    mean = Estimate((left.p + right.p) / 2, np.minimum((left.q + right.q) / 2, 1.0))
    if radius > 0:
        return Found(label, radius, mean)
    return Found(-1, 0.0, mean, f"the branches agree too little on class {label} for a radius")
