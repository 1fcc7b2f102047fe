"""The ladder: stages from cheap to tight, each on what is still open."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch

from certify.bounds import evaluate
from certify.bounds.ball import in_l2_ball
from certify.bounds.budget import Limits, OutOfTime
from certify.bounds.crown import Plan, input_boxes, tighten
from certify.bounds.decide import Means
from certify.bounds.program import prepare
from certify.bounds.rounding import unguaranteed
from certify.climb import Climb, is_memory
from certify.core.certificate import Evidence, Verdict
from certify.core.claim import Case
from certify.core.errors import UsageError
from certify.core.graph import Graph
from certify.core.semantics import Semantics
from certify.core.split_tree import SplitTree
from certify.search.attack import AttackSettings
from certify.search.outcome import Outcome
from certify.search.pieces import METHOD as PIECES
from certify.search.pieces import prove_pieces
from certify.search.problem import Findings
from certify.search.strategy import free_inputs
from certify.search.substitutions import can_list
from certify.search.target import Target
from certify.settings import Options

Trees = Mapping[tuple[int, int], tuple[SplitTree, ...]]

_LOOKED_AT_FIRST = 32  # targets attacked before any bound
_ATTACK_SECONDS = 20.0  # the last attack gives up after this long
_SPLIT_AT_ONCE = 10  # up to this many free inputs, halving boxes beats optimising slopes


def climb(
    graph: Graph,
    targets: list[Target],
    options: Options,
    deadline: float,
    trees: Trees | None = None,
) -> Outcome:
    """Decide all targets, or say why not.

    Args:
        deadline: as `time.monotonic` tells it.
        trees: proofs by cases to take up first, by target key.

    Raises:
        UsageError: a device was asked for that is not there.
    """
    limits = Limits(options.memory, deadline)
    means = Means(Semantics(options.semantics), _device(options.device), limits)
    run = Climb(graph, options, means, list(targets), trees=trees or {})
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


def _decided(run: Climb) -> Outcome:
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
        if not is_memory(problem):
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
    if run.stuck is not None:
        return _outcome(run, run.stuck.verdict, _stopped(run, run.stuck))
    return _outcome(run, Verdict.UNKNOWN, _why(run))


def prove_again(
    graph: Graph, case: Case, evidence: Evidence, semantics: str, seconds: float
) -> tuple[bool, float]:
    """Whether the evidence's method alone proves a case, and the smallest margin it finds.

    Args:
        evidence: of a search, its trees are where the search is taken up again.
        seconds: that a search may take; bounds alone take what they need.

    Raises:
        BadInput: the trees do not fit the case.
    """
    method = evidence.method
    targets = [
        Target(
            0, i, case.region if case.region.batch == 1 else case.region.rows([i]), case.spec, None
        )
        for i in range(case.region.batch)
    ]
    if method == PIECES:
        return prove_pieces(graph, case, evidence, Means(Semantics(semantics)))
    if method == "search":
        options = Options(seconds, semantics=semantics, attack=False)
        trees = {(0, i): every for i, every in enumerate(evidence.trees)}
        found = climb(graph, targets, options, time.monotonic() + seconds, trees)
        return found.verdict is Verdict.HOLDS, -np.inf if found.margin is None else found.margin
    options = Options(method=method, semantics=semantics, attack=False)
    run = Climb(graph, options, Means(Semantics(semantics)), targets)
    run.bound(method)
    return not run.open, run.worst()


def _stages(run: Climb) -> Iterator[None]:
    """The stages in order; the caller stops when everything is decided."""
    options = run.options
    if options.attack:
        run.attack(AttackSettings(rounds=0), 0.2 * options.timeout, _LOOKED_AT_FIRST)
        yield
    claimable = not unguaranteed_here(run)
    if claimable and options.method == "auto" and all(can_list(t.region) for t in run.open):
        run.search()  # looks at every member
        yield
        return
    if claimable and options.method != "auto":
        run.bound(options.method)
        yield
    elif claimable:
        yield from _bound_stages(run)
    if options.attack:
        seconds = min(_ATTACK_SECONDS, 0.2 * run.means.limits.remaining())
        run.attack(AttackSettings(), seconds if claimable else _ATTACK_SECONDS)
        yield
    if claimable and options.method == "auto":
        run.search()
        yield


def _bound_stages(run: Climb) -> Iterator[None]:
    run.bound("ibp")
    yield
    run.bound("crown-ibp")
    yield
    if run.options.attack:
        run.attack(AttackSettings(rounds=1), 0.1 * run.options.timeout, _LOOKED_AT_FIRST)
        yield
    run.bound("crown")
    yield
    if any((free_inputs(target.region) or np.inf) > _SPLIT_AT_ONCE for target in run.open):
        run.means = replace(run.means, alpha=run.affordable_alpha())
        run.bound("alpha")
        yield
    if run.means.semantics is Semantics.REAL and any(in_l2_ball(t.region) for t in run.open):
        run.bound("sdp-crown")
        yield


def unguaranteed_here(run: Climb) -> list[str]:
    """What stands in the way of a claim in the semantics asked for."""
    if run.means.semantics is not Semantics.FLOAT32:
        return []
    names = unguaranteed(prepare(run.graph, torch.float64, run.means.device))
    if not prepare(run.graph, torch.float32, run.means.device).exact:
        names.append("arithmetic between constants, which a runtime does in float32")
    return names


def _stopped(run: Climb, found: Findings) -> str:
    """What a search that did not decide has shown so far."""
    if found.verdict is not Verdict.TIMEOUT:
        return found.reason
    words = f"the time limit of {run.options.timeout:g} s passed after {found.leaves} sub-problems"
    words += f": best margin {found.margin:.4g}, {100 * found.open_share:.3g} % of the region open"
    if len(run.open) > 1:
        words += f", {len(run.open)} of {len(run.open) + len(run.proofs)} cases undecided"
    return f"{words}; hardest: {found.hardest}" if found.hardest else words


def _outcome(run: Climb, verdict: Verdict, reason: str) -> Outcome:
    worst = run.worst()
    margin = worst if np.isfinite(worst) else None
    return Outcome(verdict, run.last, run.means.device, margin, reason, run.found, run.proofs)


def _why(run: Climb) -> str:
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


def _overflows(run: Climb) -> bool:
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


def _first_infinite(run: Climb) -> str:
    with torch.no_grad():
        program = prepare(run.graph, torch.float64, run.means.device)
        state = tighten(program, run.open[0].region, Plan(refine=False), Semantics.SEARCH, Limits())
    for node, box in zip(run.graph.nodes, state.bounds, strict=True):
        if box is not None and not bool(box.lower.isfinite().all() and box.upper.isfinite().all()):
            return f"node {node.name!r} ({node.op})"
    return "the specification's rows"
