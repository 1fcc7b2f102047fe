"""Smoothing whose sigma depends on the input, soundly: the choice of sigma is itself certified.

Sun et al. 2026. A selector, smoothed with a fixed sigma, picks one of a few; within the selector's
radius the pick does not change, so there the classifier is an ordinary smoothed one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from certify.core.certificate import Certificate
from certify.core.errors import BadInput
from certify.core.votes import Votes
from certify.smoothing.certifier import Smoothed
from certify.smoothing.rules import leader

_SELECTOR = "sigma-"


@dataclass(frozen=True, eq=False)
class VarianceDual:
    """A smoothed choice of sigma, then the classifier smoothed with it.

    Attributes:
        selector: whose class i stands for ``experts[i]``; its sigma at least the largest of theirs.
        experts: classifiers smoothed with one sigma each, by ascending sigma; they may share a
            model. Their alpha is that of the whole certificate: half goes to each stage.
    """

    selector: Smoothed
    experts: tuple[Smoothed, ...]

    def __post_init__(self) -> None:
        sigmas = [e.noise.parameters.get("sigma", 0.0) for e in self.experts]
        if not sigmas or sigmas != sorted(set(sigmas)) or sigmas[0] <= 0:
            raise BadInput("experts must have Gaussian noise, by ascending sigma, each another one")
        if self.selector.noise.parameters.get("sigma", 0.0) < sigmas[-1]:
            raise BadInput(
                f"the selector's sigma must be at least {sigmas[-1]:g}, the largest choice"
            )
        parts = (self.selector, *self.experts)
        if any(p.method != "two-stage" or p.noise.name != "gaussian" for p in parts):
            raise BadInput("selector and experts are two-stage certifiers with Gaussian noise")
        if len({(p.budget.alpha, p.seed) for p in parts}) > 1:
            raise BadInput("selector and experts must share alpha and seed")

    def certify(
        self, x: Any, done: Callable[[int, Certificate], None] | None = None
    ) -> list[Certificate]:
        """One certificate per input ``(B, *shape)``: radius the smaller of the two."""
        started = time.monotonic()
        certificates = []
        for number, example in enumerate(np.asarray(x, np.float32)):
            certificate = self._certify(example, started)
            certificates.append(certificate)
            if done is not None:
                done(number, certificate)
        return certificates

    def _certify(self, x: np.ndarray, started: float) -> Certificate:
        first = self.selector.votes(x[None], _SELECTOR)[0]
        picked = leader(first.counts[f"{_SELECTOR}selection"])
        if picked >= len(self.experts):
            raise BadInput(
                f"the selector has more classes than there are {len(self.experts)} experts"
            )
        expert = self.experts[picked]
        second = expert.votes(x[None], "")[0]
        settings: dict[str, str | int | float | bool] = {
            "selector": float(self.selector.noise.parameters["sigma"])
        }
        settings |= {
            f"sigma_{i}": float(e.noise.parameters["sigma"]) for i, e in enumerate(self.experts)
        }
        votes = Votes(
            "variance-dual",
            expert.budget.alpha,
            expert.budget.norm,
            settings,
            {**first.counts, **second.counts},
        )
        return expert.certificate(x, votes, time.monotonic() - started)
