"""The training methods: what of a batch is bounded or attacked, and how that becomes a loss.

A method is one function; registering it is all it takes. Only ``ibp``, ``crown-ibp``, ``crown``,
``alpha`` and ``learned-slopes`` train on an upper bound of the worst loss. The others lie between
an attack and a bound on purpose, and their loss proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certify.bounds.alpha import Alpha, optimise
from certify.bounds.program import Program
from certify.core.errors import BadInput
from certify.core.region import Box, Region
from certify.training.attack import Ascent, ascend
from certify.training.bounder import (
    Analysis,
    analyse,
    logits,
    margins_of,
    robust_cross_entropy,
    shrunk,
)


@dataclass(eq=False)
class Step:
    """One training step, as the methods see it.

    Attributes:
        x, y: inputs ``(B, *shape)`` and labels.
        region: what is bounded; ``lower, upper``: its box.
        beta: weight of the linear bound now.
        options: of the method, see `Options`.
        first: the analysis whose boxes the regularisers look at; set by the method.
    """

    program: Program
    x: Tensor
    y: Tensor
    region: Region
    lower: Tensor
    upper: Tensor
    beta: float
    options: Options
    slope_net: nn.Module | None = None
    generator: torch.Generator | None = None
    first: Analysis | None = None

    def analyse(self, region: Region | None = None, refine: bool = False) -> Analysis:
        """Bounds on a region; the regularisers see the first one."""
        region = region or self.region
        if self.options.shrink < 1:
            found = shrunk(self.program, region, self.y, self.options.shrink)
        else:
            found = analyse(self.program, region, self.y, refine)
        self.first = self.first or found
        return found

    def attacked(self, how: Ascent | None = None) -> Tensor:
        """Adversarial points ``(B, *shape)``, by cross-entropy."""
        how = how or self.options.attack
        grow = (how.enlarge - 1) / 2 * (self.upper - self.lower)
        y = self.y

        def loss(x: Tensor) -> Tensor:
            return F.cross_entropy(logits(self.program, x), y, reduction="none")

        return ascend(loss, self.lower - grow, self.upper + grow, how, self.generator)


@dataclass(frozen=True)
class Options:
    """What single methods can be told.

    Attributes:
        attack: for those that attack.
        coefficient: alpha of CC-, MTL- and Exp-IBP: 0 is the attack, 1 the bound.
        small_box: lambda of SABR: half width of the small box in parts of the whole one.
        shrink: factor on upper ends before unstable ReLUs (SABR's shrinking): not a bound.
        split: share of the nonlinear steps that TAPS bounds; the rest is attacked.
        taps_weight: of the gradient through TAPS' attack.
        fusion: bound the loss itself with one row (CROWN-IBP).
        alpha_steps: slope steps of the method ``alpha``.
    """

    attack: Ascent = field(default_factory=Ascent)
    coefficient: float = 0.1
    small_box: float = 0.4
    shrink: float = 1.0
    split: float = 0.5
    taps_weight: float = 4.0
    fusion: bool = True
    alpha_steps: int = 5

    def __post_init__(self) -> None:
        for name, low in (("coefficient", 0), ("small_box", 0), ("shrink", 0), ("split", 0)):
            if not low <= getattr(self, name) <= 1:
                raise BadInput(f"{name} must lie in [0, 1], got {getattr(self, name)!r}")


Objective = Callable[[Step], Tensor]


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        objective: a step to losses ``(B,)``.
        bound: whether the loss is an upper bound of the worst case.
    """

    name: str
    objective: Objective
    summary: str
    bound: bool


METHODS: dict[str, Method] = {}


def method(name: str, summary: str, bound: bool = False) -> Callable[[Objective], Objective]:
    """Register an objective.

    Raises:
        ValueError: the name is taken.
    """

    def register(objective: Objective) -> Objective:
        if name in METHODS:
            raise ValueError(f"two training methods are called {name}")
        METHODS[name] = Method(name, objective, summary, bound)
        return objective

    return register


@method("ibp", "interval bounds (Gowal et al. 2018)", bound=True)
def ibp(step: Step) -> Tensor:
    """Robust cross-entropy of interval margins."""
    return robust_cross_entropy(step.analyse().interval)


@method("crown-ibp", "one backward pass over interval bounds (Zhang et al. 2020)", bound=True)
def crown_ibp(step: Step) -> Tensor:
    """Margins ``beta CROWN + (1 - beta) IBP``, or their fused loss."""
    found = step.analyse()
    if step.beta < 1e-5:
        return robust_cross_entropy(found.interval)
    if step.options.fusion:
        return found.fused(step.beta)
    margins = found.linear()
    if step.beta < 1:
        margins = step.beta * margins + (1 - step.beta) * found.interval
    return robust_cross_entropy(margins)


@method("crown", "backward passes for every layer: for small networks", bound=True)
def crown(step: Step) -> Tensor:
    """Margins by CROWN, or by intervals where those are better."""
    found = step.analyse(refine=True)
    return robust_cross_entropy(torch.maximum(found.linear(), found.interval))


@method("alpha", "as crown, with slopes optimised in every step", bound=True)
def alpha(step: Step) -> Tensor:
    """Slopes are optimised for the margins, then held; the gradient is that of the bound."""
    found = step.analyse(refine=True)
    rows = {found.state.program.output: found.rows}
    settings = Alpha(iterations=step.options.alpha_steps, unit_iterations=0)
    _, slopes = optimise(found.state, rows, settings)
    held = None if slopes is None else {k: tuple(t.detach() for t in v) for k, v in slopes.items()}
    return robust_cross_entropy(torch.maximum(found.linear(held), found.interval))


@method("learned-slopes", "a second network proposes slopes (Dvijotham et al. 2018)", bound=True)
def learned_slopes(step: Step) -> Tensor:
    """Any slopes give a bound; both networks minimise it."""
    from certify.training.slope_net import SlopeNet

    if not isinstance(step.slope_net, SlopeNet):
        raise BadInput("the method learned-slopes needs a slope network")
    found = step.analyse()
    slopes = step.slope_net(step.x, found)
    return robust_cross_entropy(torch.maximum(found.linear(slopes), found.interval))


@method("pgd", "adversarial training, the baseline (Madry et al. 2018); no bound")
def pgd(step: Step) -> Tensor:
    """Cross-entropy at the attacked points."""
    return F.cross_entropy(logits(step.program, step.attacked()), step.y, reduction="none")


@method("sabr", "interval bounds on a small box around the attack (Mueller et al. 2023); no bound")
def sabr(step: Step) -> Tensor:
    """A box of ``small_box`` times the width, inside the whole one, around the attacked point."""
    return robust_cross_entropy(step.analyse(small_box(step)).interval)


@method("cc-ibp", "margins mixed between attack and bound (De Palma et al. 2024); no bound")
def cc_ibp(step: Step) -> Tensor:
    """``RCE((1 - a) m_attacked + a m_bound)``."""
    a = step.options.coefficient
    attacked = margins_of(logits(step.program, step.attacked()), step.y)
    return robust_cross_entropy((1 - a) * attacked + a * step.analyse().interval)


@method("mtl-ibp", "losses mixed between attack and bound (De Palma et al. 2024); no bound")
def mtl_ibp(step: Step) -> Tensor:
    """``(1 - a) CE(attacked) + a RCE(bound)``."""
    a = step.options.coefficient
    return (1 - a) * pgd(step) + a * ibp(step)


@method("exp-ibp", "losses mixed in the exponent (De Palma et al. 2024); no bound")
def exp_ibp(step: Step) -> Tensor:
    """``CE(attacked)^(1 - a) RCE(bound)^a``."""
    a = step.options.coefficient
    attacked, bound = pgd(step).clamp_min(1e-12), ibp(step).clamp_min(1e-12)
    return torch.exp((1 - a) * attacked.log() + a * bound.log())


@method("taps", "interval bounds first, attacks on the rest (Mao et al. 2023); no bound")
def taps(step: Step) -> Tensor:
    """Product of the attacked loss behind the split and the interval loss of the whole."""
    return _taps(step, step.region)


@method("staps", "taps on SABR's small box (Mao et al. 2023); no bound")
def staps(step: Step) -> Tensor:
    """See `taps`."""
    return _taps(step, small_box(step))


def _taps(step: Step, region: Region) -> Tensor:
    from certify.training.split import attacked_margins, expand_gradient

    whole = step.analyse(region)
    margins = attacked_margins(whole, step.options.split, step.options.attack, step.generator)
    attacked = expand_gradient(robust_cross_entropy(margins), step.options.taps_weight)
    return attacked * robust_cross_entropy(whole.interval)


def small_box(step: Step) -> Region:
    """SABR's box: half width ``small_box`` times the whole one's, kept inside it."""
    share = step.options.small_box
    half = share * (step.upper - step.lower) / 2
    centre = step.attacked(replace(step.options.attack, enlarge=1.0))
    centre = centre.maximum(step.lower + half).minimum(step.upper - half)
    return Box(centre - half, centre + half).batched(tuple(centre.shape[1:]))


def options_for(name: str, given: dict[str, Any]) -> Options:
    """The options of a method, with the defaults of its authors.

    Raises:
        TypeError: an unknown option.
        BadInput: shrinking, for a method whose loss is a bound.
    """
    if given.get("shrink", 1.0) < 1 and METHODS[name].bound:
        raise BadInput(f"with shrink, {name} would train on something that is no bound; it is for "
                       "sabr and the other methods that claim none")
    if name in ("cc-ibp", "mtl-ibp", "exp-ibp") and "attack" not in given:
        given = {**given, "attack": Ascent(1, 10.0)}
    return Options(**given)
