"""The ladder: stages from cheap to tight, each on what is still open."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from certify.bounds import evaluate
from certify.bounds.alpha import Alpha
from certify.bounds.budget import Limits, OutOfTime
from certify.bounds.crown import Plan, input_boxes, tighten
from certify.bounds.decide import Decision, Means, decide
from certify.bounds.program import prepare
from certify.bounds.rounding import Semantics, unguaranteed
from certify.core.certificate import Counterexample, Verdict
from certify.core.claim import Case
from certify.core.errors import UsageError
from certify.core.graph import Graph
from certify.search.attack import AttackSettings, attack
from certify.search.replay import confirm
from certify.settings import Options
from certify.targets import Target, groups, own_spec, question

_LOOKED_AT_FIRST = 32  # targets attacked before any bound
_ATTACK_SECONDS = 20.0  # the last attack gives up after this long
_LEAST_MEMORY = 2**26
# Margins this close to unsafe, relative to the thresholds, are worth running the model.
_NEAR = 1e-6


@dataclass(frozen=True, eq=False)
class Proof:
    """A proved example: by which method, with which margins ``(R,)`` and slopes by node name."""

    method: str
    margins: np.ndarray
    slopes: dict[str, tuple[np.ndarray, ...]]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the ladder found; see `Certificate` for the fields."""

    verdict: Verdict
    method: str
    device: str
    margin: float | None
    reason: str = ""
    counterexample: Counterexample | None = None
    proofs: dict[tuple[int, int], Proof] = field(default_factory=dict)


@dataclass
class _Climb:
    """One run in progress."""

    graph: Graph
    options: Options
    means: Means
    open: list[Target]
    proofs: dict[tuple[int, int], Proof] = field(default_factory=dict)
    margins: dict[tuple[int, int], float] = field(default_factory=dict)
    found: Counterexample | None = None
    last: str = "none"
    cost: float = 0.0  # seconds of the last bound stage

    def attack(self, settings: AttackSettings, seconds: float, count: int | None = None) -> None:
        """Look for a counterexample in the open targets, the least robust first."""
        until = min(self.means.limits.deadline, time.monotonic() + seconds)
        order = sorted(self.open, key=lambda t: self.margins.get(t.key, 0.0))[:count]
        settings = replace(settings, device=self.means.device)
        for target in order:
            if time.monotonic() > until:
                return
            for candidate in self._candidates(target, settings, until):
                self.found = confirm(
                    self.graph,
                    target.place,
                    target.spec,
                    candidate.x,
                    self.options.semantics,
                    case=target.case,
                    example=target.example,
                )
                if self.found is not None:
                    self.last = "attack"
                    return

    def _candidates(self, target: Target, settings: AttackSettings, until: float) -> Iterator[Any]:
        spec = target.spec if target.spec.batch == 1 else own_spec(target)
        seed = self.options.seed + 7919 * target.case + target.example
        for candidate in attack(
            self.graph, target.region, spec, deadline=until, seed=seed, settings=settings
        ):
            if candidate.margin <= _NEAR * (1 + float(np.abs(spec.rows().bound).max())):
                yield candidate  # the model itself may round the other way

    def bound(self, method: str) -> None:
        """Try to prove the open targets."""
        before = time.monotonic()
        self.last = method
        for group in groups(self.graph, self.open):
            decision = self._decide(group, method)
            best = group[0].spec.rows().clause_margins(decision.margins).min(axis=1)
            for i, target in enumerate(group):
                margin = float(np.nan_to_num(best[i], nan=-np.inf))
                self.margins[target.key] = max(margin, self.margins.get(target.key, -np.inf))
                if decision.proved[i]:
                    self.margins[target.key] = margin  # what was proved, not what was searched
                    self.proofs[target.key] = Proof(
                        method, decision.margins[i], self._slopes(decision, group)
                    )
        self.open = [t for t in self.open if t.key not in self.proofs]
        self.cost = time.monotonic() - before
        self.options.say(
            f"{method}: {len(self.open)} open, worst margin {self.worst():.4g}, {self.cost:.2f} s"
        )

    def _decide(self, group: list[Target], method: str) -> Decision:
        """As `decide`; when memory runs out, with half as much, down to a floor."""
        limits = self.means.limits
        while True:
            try:
                return decide(
                    self.graph, question(group), method, replace(self.means, limits=limits)
                )
            except (MemoryError, RuntimeError) as problem:
                if not _is_memory(problem) or limits.memory <= _LEAST_MEMORY:
                    raise
                limits = replace(limits, memory=limits.memory // 2)
                self.options.say(f"out of memory; going on with {limits.memory / 2**20:.0f} MiB")

    def _slopes(self, decision: Decision, group: list[Target]) -> dict[str, tuple[np.ndarray, ...]]:
        if decision.evidence.slopes is None or len(group) > 1:
            return {}
        names = [node.name for node in self.graph.nodes]
        return {
            names[i]: tuple(t.cpu().numpy().astype(np.float32) for t in tensors)
            for i, tensors in decision.evidence.slopes.items()
        }

    def worst(self) -> float:
        """The smallest margin over all targets."""
        return min(self.margins.values(), default=-np.inf)

    def affordable_alpha(self) -> Alpha:
        """Slope optimisation that fits into half of the time left, judged by the last stage."""
        alpha = self.means.alpha
        fits = int(0.5 * self.means.limits.remaining() / max(1e-3, 4 * self.cost))
        return replace(alpha, unit_iterations=min(alpha.unit_iterations, fits if fits >= 2 else 0))


def climb(graph: Graph, targets: list[Target], options: Options, deadline: float) -> Outcome:
    """Decide all targets, or say why not.

    Args:
        deadline: as `time.monotonic` tells it.

    Raises:
        UsageError: a device was asked for that is not there.
    """
    limits = Limits(options.memory, deadline)
    means = Means(Semantics(options.semantics), _device(options.device), limits)
    run = _Climb(graph, options, means, list(targets))
    if _overflows(run):
        return _outcome(
            run,
            Verdict.UNKNOWN,
            "the model overflows to infinity or NaN at a corner of the"
            " region, so no answer about real numbers would be about the model as it runs",
        )
    return _decided(run)


def _device(asked: str) -> str:
    """The device to run on, as torch names it."""
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("--device cuda was asked for, but torch sees no CUDA device; use cpu")
    return asked


def _decided(run: _Climb) -> Outcome:
    """The stages one after the other, and what they came to."""
    options, limits = run.options, run.means.limits
    try:
        for _ in _stages(run):
            if run.found is not None or not run.open:
                break
            limits.check()
    except OutOfTime:
        return _outcome(
            run,
            Verdict.TIMEOUT,
            f"the time limit of {options.timeout:g} s passed during {run.last}",
        )
    except (MemoryError, RuntimeError) as problem:
        if not _is_memory(problem):
            raise
        return _outcome(
            run,
            Verdict.UNKNOWN,
            "memory ran out; give more with --memory or use a cheaper --method",
        )
    if run.found is not None:
        return _outcome(run, Verdict.VIOLATED, "")
    if not run.open:
        return _outcome(run, Verdict.HOLDS, "")
    return _outcome(run, Verdict.UNKNOWN, _why(run))


def prove_again(graph: Graph, case: Case, method: str, semantics: str) -> tuple[bool, float]:
    """Whether one method alone proves a case, and the smallest margin it finds."""
    targets = [
        Target(
            0, i, case.region if case.region.batch == 1 else case.region.rows([i]), case.spec, None
        )
        for i in range(case.region.batch)
    ]
    options = Options(method=method, semantics=semantics, attack=False)
    run = _Climb(graph, options, Means(Semantics(semantics)), targets)
    run.bound(method)
    return not run.open, run.worst()


def _stages(run: _Climb) -> Iterator[None]:
    """The stages in order; the caller stops when everything is decided."""
    options = run.options
    if options.attack:
        run.attack(AttackSettings(rounds=0), 0.2 * options.timeout, _LOOKED_AT_FIRST)
        yield
    if unguaranteed_here(run):
        pass
    elif options.method != "auto":
        run.bound(options.method)
        yield
    else:
        yield from _bound_stages(run)
    if options.attack:
        run.attack(AttackSettings(), min(_ATTACK_SECONDS, run.means.limits.remaining()))
        yield


def _bound_stages(run: _Climb) -> Iterator[None]:
    run.bound("ibp")
    yield
    run.bound("crown-ibp")
    yield
    if run.options.attack:
        run.attack(AttackSettings(rounds=1), 0.1 * run.options.timeout, _LOOKED_AT_FIRST)
        yield
    run.bound("crown")
    yield
    run.means = replace(run.means, alpha=run.affordable_alpha())
    run.bound("alpha")
    yield


def unguaranteed_here(run: _Climb) -> list[str]:
    """What stands in the way of a claim in the semantics asked for."""
    if run.means.semantics is not Semantics.FLOAT32:
        return []
    names = unguaranteed(prepare(run.graph, torch.float64, run.means.device))
    if not prepare(run.graph, torch.float32, run.means.device).exact:
        names.append("arithmetic between constants, which a runtime does in float32")
    return names


def _outcome(run: _Climb, verdict: Verdict, reason: str) -> Outcome:
    worst = run.worst()
    margin = worst if np.isfinite(worst) else None
    return Outcome(verdict, run.last, run.means.device, margin, reason, run.found, run.proofs)


def _why(run: _Climb) -> str:
    names = unguaranteed_here(run)
    if names:
        return (
            f"no standard bounds the float32 accuracy of {', '.join(names)}; "
            f"only --semantics real can be claimed for this model"
        )
    worst = run.worst()
    if not np.isfinite(worst):
        node = _first_infinite(run)
        return (
            f"no finite bound at {node}: its operand may leave the operator's domain; "
            f"a smaller region may help"
        )
    tightest = "alpha" in (run.last, run.options.method)
    hint = f"a smaller region{'' if tightest else ' or --method alpha'} may help"
    total = len(run.open) + len(run.proofs)
    open_count = f"{len(run.open)} of {total} cases open, " if run.proofs else ""
    return (
        f"bounds too loose: {open_count}best margin {worst:.4g} after {run.last} in "
        f"{run.options.semantics} semantics; {hint}"
    )


def _overflows(run: _Climb) -> bool:
    """Whether the model, run in its own precision, leaves its number range within a region."""
    double = run.graph.source.get("dtype") == "float64"
    with torch.no_grad():
        program = prepare(run.graph, torch.float64 if double else torch.float32, run.means.device)
        for target in run.open[:_LOOKED_AT_FIRST]:
            boxes = input_boxes(program, target.region)
            ends = [torch.cat((b.lower, b.upper, torch.lerp(b.lower, b.upper, 0.5))) for b in boxes]
            if not all(bool(v.isfinite().all()) for v in evaluate.run(program, tuple(ends))):
                return True
    return False


def _first_infinite(run: _Climb) -> str:
    with torch.no_grad():
        program = prepare(run.graph, torch.float64, run.means.device)
        state = tighten(program, run.open[0].region, Plan(refine=False), Semantics.SEARCH, Limits())
    for node, box in zip(run.graph.nodes, state.bounds, strict=True):
        if box is not None and not bool(box.lower.isfinite().all() and box.upper.isfinite().all()):
            return f"node {node.name!r} ({node.op})"
    return "the specification's rows"


def _is_memory(problem: BaseException) -> bool:
    words = ("not enough memory", "out of memory", "can't allocate memory")
    return isinstance(problem, MemoryError) or any(w in str(problem).lower() for w in words)
