"""The ways to certify: which samples are asked for, and which rule reads them.

A method is a function that makes a plan for one input; registering it is all it takes for
`certify.smooth`, the command line and ``certify supports`` to know it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.errors import BadInput
from certify.core.votes import Votes
from certify.smoothing.first_order_rule import statistics
from certify.smoothing.noise import Noise
from certify.smoothing.rules import decided, leader, most_radius, votes_needed
from certify.smoothing.sampling import Ask, Plan

if TYPE_CHECKING:
    from certify.smoothing.subspace import Subspace

FIRST_LOOK = 128  # samples before a decision is first tried
_GROWTH = 1.02  # a sequential run goes on while twice the votes could give this much more radius


@dataclass(frozen=True)
class Budget:
    """What may be spent on one input.

    Attributes:
        n0: votes that pick the class.
        n: votes that bound its probability.
        alpha: probability that the certificate of an input is wrong.
        norm: of the radius.
        radius: answer only whether the radius is at least this; None: find it.
        subspace: radii for perturbations in it only; None: any.
        sigmas: for the method that chooses one of them.
    """

    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    norm: str = ""
    radius: float | None = None
    subspace: Subspace | None = None
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("n0", self.n0), ("n", self.n)):
            if not isinstance(value, int) or value < 1:
                raise BadInput(f"{name} must be a whole number above 0, got {value!r}")
        if not 0 < self.alpha < 1:
            raise BadInput(
                f"alpha must lie strictly between 0 and 1, got {self.alpha!r}; use 0.001"
            )
        if self.radius is not None and not 0 < self.radius < float("inf"):
            raise BadInput(f"the radius asked about must be a positive number, got {self.radius!r}")


@dataclass(frozen=True)
class Method:
    """A way to certify.

    Attributes:
        plan: ``(budget, noise, size)`` -> the plan of one input.
        summary: one line.
        noises: those it is for; () for all.
        heads: branches of the model whose votes it counts.
    """

    name: str
    plan: Callable[[Budget, Noise, int], Plan]
    summary: str
    noises: tuple[str, ...] = ()
    heads: int = 1


METHODS: dict[str, Method] = {}
Planner = Callable[[Budget, Noise, int], Plan]


def method(
    name: str, summary: str, noises: tuple[str, ...] = (), heads: int = 1
) -> Callable[[Planner], Planner]:
    """Register a plan as a method.

    Raises:
        ValueError: the name is taken.
    """

    def register(plan: Planner) -> Planner:
        if name in METHODS:
            raise ValueError(f"two methods are called {name}")
        METHODS[name] = Method(name, plan, summary, noises, heads)
        return plan

    return register


@method("two-stage", "some votes pick the class, fresh ones bound its probability (Cohen 2019)")
def two_stage(budget: Budget, noise: Noise, size: int) -> Plan:
    """See the rule of this name."""
    selection = (yield Ask("selection", budget.n0)).votes[0]
    if not selection[:-1].any():
        return _votes("two-stage", budget, selection=selection, estimation=selection)
    estimation = (yield Ask("estimation", budget.n)).votes[0]
    return _votes("two-stage", budget, selection=selection, estimation=estimation)


@method("single-stage", "the same votes pick and bound, at half of alpha; no selection samples")
def single_stage(budget: Budget, noise: Noise, size: int) -> Plan:
    """See the rule of this name."""
    return _votes("single-stage", budget, estimation=(yield Ask("estimation", budget.n)).votes[0])


@method("multi-class", "bounds the runner-up too: certifies answers below one half")
def multi_class(budget: Budget, noise: Noise, size: int) -> Plan:
    """See the rule of this name."""
    selection = (yield Ask("selection", budget.n0)).votes[0]
    estimation = (yield Ask("estimation", budget.n)).votes[0]
    return _votes("multi-class", budget, selection=selection, estimation=estimation)


@method("sequential", "bounds valid at all times; stops when more votes would add little")
def sequential(budget: Budget, noise: Noise, size: int) -> Plan:
    """See the rule of this name; n is the most that is drawn."""
    from certify.smoothing.rules import apply

    selection = (yield Ask("selection", budget.n0)).votes[0]
    label, estimation, step = leader(selection), np.zeros_like(selection), FIRST_LOOK
    while estimation.sum() < budget.n:
        ask = Ask("estimation", min(step, budget.n - int(estimation.sum())))
        estimation = estimation + (yield ask).votes[0]
        votes = _votes("sequential", budget, selection=selection, estimation=estimation)
        k, total = int(estimation[label]), int(estimation.sum())
        if decided(k, total, noise.needed(1e-6, budget.norm, size), 0.0, budget.alpha) is False:
            break
        more = _votes("sequential", budget, selection=selection, estimation=estimation * 2)
        now, then = apply(votes, noise, size).radius, apply(more, noise, size).radius
        if now > 0 and then <= now * _GROWTH:
            break
        step = total
    return votes


@method("decision", "is the radius at least --radius? stops as soon as that is known")
def decision(budget: Budget, noise: Noise, size: int) -> Plan:
    """See the rule of this name; n is the most that is drawn."""
    if budget.radius is None:
        raise BadInput("the decision mode needs a radius to decide about")
    selection = (yield Ask("selection", budget.n0)).votes[0]
    label, estimation, step = leader(selection), np.zeros_like(selection), FIRST_LOOK
    enough, slack = noise.needed(budget.radius, budget.norm, size), noise.slack(size)
    while estimation.sum() < budget.n:
        ask = Ask("estimation", min(step, budget.n - int(estimation.sum())))
        estimation = estimation + (yield ask).votes[0]
        total = int(estimation.sum())
        if decided(int(estimation[label]), total, enough, slack, budget.alpha) is not None:
            break
        step = max(FIRST_LOOK, total // 2)
    return _votes(
        "decision", budget, {"radius": budget.radius}, selection=selection, estimation=estimation
    )


@method(
    "first-order", "value and gradient of the smoothed classifier (Mohapatra 2020)", ("gaussian",)
)
def first_order(budget: Budget, noise: Noise, size: int) -> Plan:
    """See the rule of this name; the gradient comes from the votes' own noise."""
    selection = (yield Ask("selection", budget.n0)).votes[0]
    label, half = leader(selection), max(1, budget.n // 2)
    first = yield Ask("first", half, label)
    second = yield Ask("second", half, label)
    if first.moment is None or second.moment is None:
        raise AssertionError("the sampler was asked for moments")
    x, y = first.moment / half, second.moment / half
    sums, settings = statistics(x, y), dict[str, Any]()
    if budget.subspace is not None:
        px, py = budget.subspace.project(x), budget.subspace.project(y)
        sums |= {f"{k}_part": v for k, v in statistics(px, py).items() if k in ("dot", "second")}
        settings |= budget.subspace.facts()
    found = _votes(
        "first-order",
        budget,
        settings,
        selection=selection,
        first=first.votes[0],
        second=second.votes[0],
    )
    return Votes(found.rule, found.alpha, found.norm, found.settings, found.counts, sums)


@method(
    "dual",
    "two branches see disjoint halves of the input (Xia 2024)",
    ("gaussian", "gaussian-grid"),
    2,
)
def split_dual(budget: Budget, noise: Noise, size: int) -> Plan:
    """See the rule ``split-dual``."""
    return (yield from _dual("split-dual", budget))


@method(
    "dual-multi-class",
    "as dual, with bounds for every rival class",
    ("gaussian", "gaussian-grid"),
    2,
)
def split_dual_multi_class(budget: Budget, noise: Noise, size: int) -> Plan:
    """See the rule ``split-dual-multi-class``."""
    return (yield from _dual("split-dual-multi-class", budget))


def _dual(rule: str, budget: Budget) -> Plan:
    selection = (yield Ask("selection", budget.n0)).votes
    estimation = (yield Ask("estimation", budget.n)).votes
    counts = {
        f"{stage}-{side}": votes[i]
        for stage, votes in (("selection", selection), ("estimation", estimation))
        for i, side in enumerate(("left", "right"))
    }
    return _votes(rule, budget, **counts)


def _votes(rule: str, budget: Budget, settings: Any = None, **counts: np.ndarray) -> Votes:
    return Votes(rule, budget.alpha, budget.norm, settings or {}, counts)


def refuse_hopeless(budget: Budget, name: str, noise: Noise, size: int) -> None:
    """Refuse settings under which no input could be certified.

    Raises:
        BadInput: with the number of votes that would do.
    """
    if getattr(noise, "shared", False):
        return  # every one of its samples is drawn, whatever n is
    alpha = budget.alpha / (2 if name in ("single-stage", "multi-class", "first-order") else 1)
    if budget.radius is not None:
        least = votes_needed(noise, budget.norm, size, budget.radius, alpha)
        if least > budget.n:
            raise BadInput(
                f"n = {budget.n} votes cannot certify radius {budget.radius:g} at alpha = "
                f"{budget.alpha:g}, even if all agree: at least n = {least} are needed"
            )
    elif METHODS[name].heads == 1 and most_radius(noise, budget.norm, size, budget.n, alpha) <= 0:
        raise BadInput(
            f"n = {budget.n} votes certify nothing at alpha = {budget.alpha:g}, even if "
            "all agree: give more votes"
        )
