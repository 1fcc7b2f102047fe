"""Certifies and predicts what a smoothed classifier answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.arrays import is_tensor
from certify.core.certificate import Certificate, Guarantee, Verdict
from certify.core.claim import Case, Claim
from certify.core.errors import BadInput
from certify.core.provenance import Provenance, now, versions
from certify.core.region import BALLS, L0, Region
from certify.core.spec import Spec
from certify.core.votes import Smoothing, Votes
from certify.smoothing.base import Base, refuse_mixing
from certify.smoothing.confidence import rank_p_value
from certify.smoothing.ledger import Ledger
from certify.smoothing.methods import METHODS, Budget, refuse_hopeless
from certify.smoothing.noise import Noise
from certify.smoothing.rules import apply, leader
from certify.smoothing.sampling import Ask, Plan, Sampler, drive
from certify.smoothing.streams import item_name

if TYPE_CHECKING:
    from torch import Tensor

_ASSUMED = (
    "noise of different samples is independent: the counters of the Philox generator behave as "
    "random numbers do",
    "the seed was chosen before any result was seen",
)
_IDEAL = (
    "the model sees the exact sum of input and noise: floating-point addition leaks nothing "
    "about the input (soundness 'exact-grid' needs no such assumption)"
)


@dataclass(frozen=True, eq=False)
class Smoothed:
    """A classifier under noise, with its certificates; made by `certify.smooth`.

    Attributes:
        make: the base classifier for inputs of a shape.
        noise, method, budget: what is drawn, asked for, and spent per input.
        seed: of the run; with an input's values it decides every sample.
        batch: samples per forward pass; changes no result.
        ledger: file of votes already counted; None: none is kept.
    """

    make: Callable[[tuple[int, ...]], Base]
    noise: Noise
    method: str
    budget: Budget
    seed: int = 0
    batch: int = 1000
    ledger: str | Path | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise BadInput(f"unknown method {self.method!r}; known are {', '.join(METHODS)}")
        fits = METHODS[self.method].noises
        if fits and self.noise.name not in fits:
            raise BadInput(
                f"method {self.method} is for {' or '.join(fits)} noise, not {self.noise.name}"
            )
        self.noise.check_norm(self.budget.norm)
        if not isinstance(self.batch, int) or self.batch < 1:
            raise BadInput(f"batch must be a whole number above 0, got {self.batch!r}")

    @cached_property
    def _bases(self) -> dict[tuple[int, ...], Base]:
        return {}

    def base(self, shape: tuple[int, ...]) -> Base:
        """The classifier that is smoothed, checked once."""
        if shape not in self._bases:
            found = self.make(shape)
            if METHODS[self.method].heads != len(found.heads):
                raise BadInput(
                    f"method {self.method} counts the votes of "
                    f"{METHODS[self.method].heads} branches, the model has "
                    f"{len(found.heads)}"
                )
            self._bases[shape] = found
        return self._bases[shape]

    def certify(
        self,
        x: Any,
        radius: float | None = None,
        done: Callable[[int, Certificate], None] | None = None,
    ) -> list[Certificate]:
        """One certificate per input; HOLDS with a ``radius`` above 0, or UNKNOWN: it abstained.

        Args:
            x: ``(B, *shape)``, array or tensor, in the units of the noise.
            radius: answer only whether the radius is at least this, with as few samples as that
                takes; `Certificate.radius` is then this very number.
            done: told number and certificate of each input as it is finished.

        Raises:
            BadInput: inputs, model or settings that cannot be certified; nothing was drawn then.
        """
        budget, method = self.budget, self.method
        if radius is not None:
            budget, method = replace(budget, radius=radius), "decision"
        inputs, base = self._inputs(x)
        refuse_hopeless(budget, method, self.noise, base.size)
        started, certificates = time.monotonic(), {}

        def finished(number: int, votes: Votes) -> None:
            made = self.certificate(inputs[number], votes, time.monotonic() - started)
            certificates[number] = made
            if done is not None:
                done(number, made)

        plans = [METHODS[method].plan(budget, self.noise, base.size) for _ in inputs]
        self._drive(base, inputs, plans, finished)
        return [certificates[i] for i in range(len(inputs))]

    def votes(self, x: Any, prefix: str = "") -> list[Votes]:
        """Only the votes, for rules that combine several; ``prefix`` goes before every stage."""
        inputs, base = self._inputs(x)
        plans = [METHODS[self.method].plan(self.budget, self.noise, base.size) for _ in inputs]
        found = self._drive(base, inputs, [_renamed(plan, prefix) for plan in plans], None)
        return [replace(v, counts={prefix + k: c for k, c in v.counts.items()}) for v in found]

    def predict(self, x: Any, n: int = 1000, alpha: float = 0.001) -> np.ndarray:
        """The smoothed classifier's answers, ``(B,)``; -1 where ``n`` votes do not settle it.

        An answer differs from the smoothed classifier's with probability at most ``alpha`` (Hung
        and Fithian 2019). For methods of one branch.
        """
        inputs, base = self._inputs(x)
        if len(base.heads) > 1:
            raise BadInput(
                f"predict counts the votes of one branch, the model has {len(base.heads)}"
            )

        def plan() -> Plan:
            votes = (yield Ask("prediction", n)).votes[0]
            return Votes("prediction", alpha, "", {}, {"prediction": votes})

        votes = self._drive(base, inputs, [plan() for _ in inputs], None)
        return np.array([_predicted(v.counts["prediction"], alpha) for v in votes], np.int64)

    def _inputs(self, x: Any) -> tuple[list[np.ndarray], Base]:
        array = np.asarray(x.detach().cpu() if is_tensor(x) else x, dtype=np.float32)
        if array.ndim < 2 or not len(array):
            raise BadInput(
                f"inputs must be (batch, ...) with at least one of them; got {array.shape}"
            )
        if not np.isfinite(array).all():
            raise BadInput("an input is not finite")
        self.noise.check_input(array.astype(np.float64))
        base = self.base(array.shape[1:])
        return list(array), base

    def _drive(
        self,
        base: Base,
        inputs: Sequence[np.ndarray],
        plans: Sequence[Plan],
        done: Callable[[int, Votes], None] | None,
    ) -> list[Votes]:
        import torch

        flat: list[tuple[str, Tensor]] = [
            (item_name(x), torch.from_numpy(x.reshape(-1).copy()).to(base.device)) for x in inputs
        ]
        refuse_mixing(base, flat[0][1])
        ledger = None if self.ledger is None else Ledger(self.ledger, self._about(base))
        try:
            sampler = Sampler(base, self.noise, self.seed, self.batch, ledger)
            return drive(sampler, flat, plans, done)
        finally:
            if ledger is not None:
                ledger.close()

    def _about(self, base: Base) -> dict[str, Any]:
        return {
            "model": base.sha256,
            "noise": self.noise.name,
            "seed": self.seed,
            "parameters": dict(self.noise.parameters),
            "run": dict(base.settings),
        }

    def certificate(self, x: Any, votes: Votes, seconds: float) -> Certificate:
        """What votes that this classifier gave at ``x`` show; nothing is drawn."""
        x = np.asarray(x, np.float32)
        base = self.base(x.shape)
        found = apply(votes, self.noise, base.size)
        holds = found.label >= 0
        label = found.label if holds else _favourite(votes)
        radius = found.radius if holds else float(votes.settings.get("radius", 0.0))
        region = ball(x, votes.norm, radius, self.budget)
        claim = Claim(
            base.name,
            base.format,
            base.sha256,
            (Case(region, Spec.classify(label, base.classes)),),
            Smoothing(self.noise.name, self.noise.parameters),
        )
        assumed = (*_ASSUMED, *(() if self.noise.name == "gaussian-grid" else (_IDEAL,)))
        settings = {"n0": self.budget.n0, "n": self.budget.n, "batch": self.batch, **base.settings}
        return Certificate(
            Verdict.HOLDS if holds else Verdict.UNKNOWN,
            claim,
            Guarantee(1 - votes.alpha, "real", assumed),
            Provenance(
                base.sha256,
                None,
                votes.rule,
                settings,
                self.seed,
                versions(),
                str(base.device),
                seconds,
                now(),
            ),
            radius=found.radius if holds else None,
            votes=votes,
            reason=found.why,
        )


def ball(x: np.ndarray, norm: str, radius: float, budget: Budget | None = None) -> Region:
    """The set a radius speaks of, around ``x`` of any shape."""
    center = x[None].astype(np.float64)
    if norm == "0":
        return L0(center, np.array([int(radius)]), (0.0, 1.0)).batched(x.shape)
    if budget is not None and budget.subspace is not None:
        return budget.subspace.around(x, radius)
    found: Region = BALLS[norm](center, radius)
    return found.batched(x.shape)


def _favourite(votes: Votes) -> int:
    """The class most votes are for, where nothing is certified."""
    own = [counts for stage, counts in votes.counts.items() if not stage.startswith("sigma-")]
    return leader(np.sum(own, 0))


def _renamed(plan: Plan, prefix: str) -> Plan:
    """The same plan in streams of its own."""
    ask = next(plan)
    while True:
        tally = yield ask._replace(stage=prefix + ask.stage)
        try:
            ask = plan.send(tally)
        except StopIteration as end:
            found: Votes = end.value
            return found


def _predicted(votes: np.ndarray, alpha: float) -> int:
    order = np.argsort(-votes[:-1], kind="stable")
    first, second = int(votes[order[0]]), int(votes[order[1]])
    rival = max(second, int(votes[-1]))
    if first <= rival or float(rank_p_value(first, rival)) > alpha:
        return -1
    return int(order[0])


def check_votes(certificate: Certificate) -> tuple[bool, str]:
    """Whether a smoothed claim follows from the votes in its certificate, and a sentence.

    The votes themselves are taken from the file; drawing them again takes the model and its seed.
    """
    from certify.smoothing.noise import noise_from

    claim, votes = certificate.claim, certificate.votes
    if claim.smoothing is None or votes is None:
        return False, "the certificate is about a smoothed model and brings no votes"
    noise = noise_from(claim.smoothing.noise, claim.smoothing.parameters)
    case = claim.cases[0]
    size = int(np.prod(case.region.shape or ()))
    found = apply(votes, noise, size)
    stated = certificate.radius or 0.0
    if found.label < 0 or found.radius < stated:
        return False, f"the votes give radius {found.radius:.6g}, not the stated {stated:.6g}"
    wanted = Spec.classify(found.label, case.spec.num_outputs)
    if len(claim.cases) != 1 or not _same(case.spec, wanted):
        return False, f"the votes are for class {found.label}, the claim is about something else"
    if "subspace" in votes.settings:
        from certify.smoothing.subspace import agrees

        if not agrees(votes.settings, case.region, stated):
            return False, "the region is not within the radius, or not in the votes' subspace"
        return True, f"the votes give radius {found.radius:.6g} again"
    extent = getattr(case.region, getattr(case.region, "size_field", ""), None)
    if extent is None or type(case.region) is not BALLS.get(votes.norm):
        return False, "the region is not a ball in the norm of the votes"
    if float(np.max(np.asarray(extent))) > stated:
        return False, "the region is larger than the stated radius"
    return True, f"the votes give radius {found.radius:.6g} again"


def _same(a: Spec, b: Spec) -> bool:
    from certify.core.claim import spec_to_dict

    return spec_to_dict(a) == spec_to_dict(b)
