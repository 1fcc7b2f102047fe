"""From votes to radii: pure functions, one per way of counting, so that anyone can apply them
again.

A rule reads the counts of a `Votes` and spends its alpha once, all its statements together. It
never sees a model or a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from certify.core.errors import BadInput
from certify.core.votes import Votes
from certify.smoothing.confidence import Estimate, clopper_pearson, clopper_pearson_upper
from certify.smoothing.noise import Noise
from certify.smoothing.sequential import confidence_sequence, exceeds, falls_short


class Found(NamedTuple):
    """What votes show.

    Attributes:
        label: the answer, or -1 where no answer was certified.
        radius: in input units, of an open ball; 0 exactly where nothing is certified.
        bound: of the answer's probability.
        why: "" or why nothing is certified.
    """

    label: int
    radius: float
    bound: Estimate
    why: str = ""


Rule = Callable[[Votes, Noise, int], Found]
RULES: dict[str, Rule] = {}
"""By name; each takes the votes, the noise and the number of input elements."""


def rule(name: str) -> Callable[[Rule], Rule]:
    """Register a rule.

    Raises:
        ValueError: the name is taken.
    """

    def register(function: Rule) -> Rule:
        if name in RULES:
            raise ValueError(f"two rules are called {name}")
        RULES[name] = function
        return function

    return register


def apply(votes: Votes, noise: Noise, size: int) -> Found:
    """What votes show about an input of ``size`` elements.

    Raises:
        BadInput: unknown rule, or votes that are not what it reads.
    """
    from certify.smoothing import dual_rules, first_order_rule, levels  # noqa: F401

    if votes.rule not in RULES:
        raise BadInput(f"unknown rule {votes.rule!r}; known are {', '.join(sorted(RULES))}")
    return RULES[votes.rule](votes, noise, size)


@rule("two-stage")
def two_stage(votes: Votes, noise: Noise, size: int) -> Found:
    """Cohen et al. 2019, Certify: some votes pick the class, fresh ones bound its probability."""
    label = leader(counted(votes, "selection"))
    est = counted(votes, "estimation")
    return settled(label, clopper_pearson(est[label], est.sum(), votes.alpha), votes, noise, size)


@rule("single-stage")
def single_stage(votes: Votes, noise: Noise, size: int) -> Found:
    """The same votes pick the class and bound it, at half of alpha.

    A false certificate needs a class whose bound exceeds both its probability and 1/2; the chance
    of that is largest with two classes at 1/2, where it is alpha/2 each.
    """
    est = counted(votes, "estimation")
    label = leader(est)
    return settled(
        label, clopper_pearson(est[label], est.sum(), votes.alpha / 2), votes, noise, size
    )


@rule("multi-class")
def multi_class(votes: Votes, noise: Noise, size: int) -> Found:
    """Cohen et al. 2019, theorem 1 with both probabilities: half of alpha for the class, the other
    half shared by all rivals."""
    label = leader(counted(votes, "selection"))
    est = counted(votes, "estimation")
    if len(est) < 3:
        raise BadInput("the multi-class rule needs at least two classes")
    rivals = np.delete(est, label)  # answers that are no class count as one rival more
    upper = clopper_pearson_upper(rivals, est.sum(), votes.alpha / (2 * len(rivals)))
    found = clopper_pearson(est[label], est.sum(), votes.alpha / 2)
    return settled(label, found, votes, noise, size, float(upper.max()))


@rule("sequential")
def sequential(votes: Votes, noise: Noise, size: int) -> Found:
    """As two-stage with a bound that holds at all times at once: any stopping rule is allowed."""
    label = leader(counted(votes, "selection"))
    est = counted(votes, "estimation")
    found = confidence_sequence(int(est[label]), int(est.sum()), votes.alpha)
    return settled(label, found, votes, noise, size)


@rule("decision")
def decision(votes: Votes, noise: Noise, size: int) -> Found:
    """Is the radius at least ``settings["radius"]``? Stops as soon as it is known.

    Two e-processes, for "enough" and for "not enough", at alpha each: only one of them can err.
    """
    label = leader(counted(votes, "selection"))
    est = counted(votes, "estimation")
    radius = float(votes.settings["radius"])
    enough = noise.needed(radius, votes.norm, size)
    answer = decided(int(est[label]), int(est.sum()), enough, noise.slack(size), votes.alpha)
    if answer is True:
        return Found(label, radius, enough)
    why = (
        f"{est.sum()} samples do not tell whether the radius is {radius:g}"
        if answer is None
        else f"the answer's probability is shown to be below what radius {radius:g} needs"
    )
    return Found(-1, 0.0, Estimate(np.array(0.0), np.array(1.0)), why)


def decided(k: int, n: int, enough: Estimate, slack: float, alpha: float) -> bool | None:
    """Whether ``k`` of ``n`` votes show a probability of at least ``enough``; None: not yet
    known."""
    p0 = float(enough.p)
    if p0 + slack < 1 and exceeds(k, n, p0 + slack, alpha):
        return True
    return False if p0 < 1 and falls_short(k, n, p0, alpha) else None


def settled(
    label: int, found: Estimate, votes: Votes, noise: Noise, size: int, other: float | None = None
) -> Found:
    """The radius that a bound gives; what the noise drawn is off by is charged here, once."""
    bound = charged(found, noise.slack(size))
    if other is not None:
        other = min(1.0, other + noise.slack(size))
    radius = noise.radius(bound, votes.norm, size, other)
    if radius > 0:
        return Found(label, radius, bound)
    return Found(
        -1,
        0.0,
        bound,
        f"at least {float(bound.p):.3f} of the answers under noise are class "
        f"{label}: too few for a radius",
    )


def charged(found: Estimate, slack: float) -> Estimate:
    """The bound for ideal noise, from one for noise within ``slack`` of it in total variation."""
    return Estimate(np.maximum(found.p - slack, 0.0), np.minimum(found.q + slack, 1.0))


def counted(votes: Votes, stage: str) -> np.ndarray:
    """The votes of a stage.

    Raises:
        BadInput: there are none.
    """
    found = votes.counts.get(stage)
    if found is None or len(found) < 2 or found.sum() < 1:
        raise BadInput(f"rule {votes.rule!r} needs votes of the stage {stage!r}")
    return found


def leader(votes: np.ndarray) -> int:
    """The class with most votes, the first of equals; answers that are no class never lead."""
    return int(votes[:-1].argmax())


def most_radius(noise: Noise, norm: str, size: int, n: int, alpha: float) -> float:
    """The radius if all ``n`` votes agree: no more can come of a run."""
    found = clopper_pearson(n, n, alpha)
    return noise.radius(charged(found, noise.slack(size)), norm, size)


def votes_needed(noise: Noise, norm: str, size: int, radius: float, alpha: float) -> int:
    """The least n for which `most_radius` can be reached; a power of the tail: alpha^(1/n)."""
    enough = noise.needed(radius, norm, size)
    room = float(enough.q) - noise.slack(size)
    if room <= 0:
        raise BadInput(
            f"no number of votes certifies radius {radius:g} with {noise.name} noise here"
        )
    return max(1, math.ceil(math.log(alpha) / math.log1p(-room) * (1 + 1e-6)))
