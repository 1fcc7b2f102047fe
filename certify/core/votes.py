"""Evidence of a statement about a smoothed function: what was counted, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from certify.core.errors import BadInput

Scalar = str | int | float | bool


@dataclass(frozen=True, eq=False)
class Smoothing:
    """Which function a claim is about: not the model, but what it answers most often under noise.

    Attributes:
        noise: a name from `certify.smoothing.noise.NOISES`.
        parameters: of the noise, by name, in the units of the inputs.
    """

    noise: str
    parameters: Mapping[str, float] = field(default_factory=dict)

    def words(self) -> str:
        """Such as ``gaussian noise, sigma 0.25``."""
        said = ", ".join(f"{k} {v:g}" for k, v in self.parameters.items())
        return f"{self.noise} noise" + (f", {said}" if said else "")


@dataclass(frozen=True, eq=False)
class Votes:
    """What a rule needs to see again that a radius follows.

    Attributes:
        rule: a name from `certify.smoothing.rules.RULES`.
        alpha: failure probability that the rule spends, all its statements together.
        norm: of the radius: ``"2"``, ``"1"``, ``"inf"``, ``"0"`` or a subspace by name.
        settings: further parameters of the rule.
        counts: whole numbers by stage; votes are ``(classes + 1,)``, answers that are no class
            last.
        sums: float64 statistics by name.
    """

    rule: str
    alpha: float
    norm: str
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    counts: Mapping[str, np.ndarray] = field(default_factory=dict)
    sums: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 1:
            raise BadInput(f"alpha must lie in [0, 1), got {self.alpha}")
        for name, counted in self.counts.items():
            if counted.dtype != np.int64 or counted.ndim != 1 or (counted < 0).any():
                raise BadInput(
                    f"{name}: votes are whole numbers (int64), one per class, not below 0"
                )
        for name, sums in self.sums.items():
            if sums.dtype != np.float64 or not np.isfinite(sums).all():
                raise BadInput(f"{name}: sums are finite numbers in float64")
