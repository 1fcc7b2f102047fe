"""Query -> Certificate: attacks and bounds from cheap to tight, until everything is decided."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from certify.core.certificate import Certificate, Evidence, Guarantee, Verdict
from certify.core.claim import Case
from certify.core.errors import BadInput
from certify.core.provenance import Provenance, Scalar, now, versions
from certify.core.region import Product, Region, as_inputs
from certify.importers.model_claim import claim_about
from certify.settings import PROOF_METHODS, Options

if TYPE_CHECKING:
    from certify.core.graph import Graph
    from certify.core.spec import Spec
    from certify.importers.vnnlib import VnnlibQuery
    from certify.search.outcome import Outcome
    from certify.search.target import Target

_LARGEST_TREES = 2**25  # bytes of all proofs by cases in a certificate


def verify(
    network: Graph, region: Region, spec: Spec, timeout: float = 60.0, **options: Any
) -> Certificate:
    """Decide whether a specification holds on a region, for every example of a batch.

    Args:
        network: from `certify.load` or `certify.from_torch`.
        region: with or without a batch axis; a batch claims every one of its examples.
        spec: see `certify.Spec`; its rows may differ per example.
        timeout: seconds.
        options: further fields of `Options`.

    Returns:
        A certificate. HOLDS is only said after the deciding bound was evaluated with all rounding
        accounted for; VIOLATED only after the model itself has run on the very point.

    Raises:
        BadInput: region or specification do not fit the network.
        UsageError: an unknown option.
    """
    started = time.monotonic()
    chosen = Options(timeout=timeout, **options)
    parts = as_inputs(region, list(network.input_shapes))
    fitted = parts[0] if len(parts) == 1 else Product(parts)
    _check_outputs(network, spec)
    if spec.batch not in (1, fitted.batch):
        raise BadInput(
            f"the specification has rows for {spec.batch} examples, the region has {fitted.batch}"
        )
    return _certify(network, (Case(fitted, spec),), None, None, chosen, started)


def verify_query(
    network: Graph,
    query: VnnlibQuery,
    timeout: float = 60.0,
    *,
    started: float | None = None,
    **options: Any,
) -> Certificate:
    """Decide a property file; as `verify`. The claim holds when all of its cases do.

    Args:
        started: `time.monotonic` at which the time limit began to run; default: now.
    """
    started = time.monotonic() if started is None else started
    chosen = Options(timeout=timeout, **options)
    sizes = [_count(shape) for shape in network.input_shapes]
    query.check_sizes(sum(sizes), _count(network.output_shape))
    cases = []
    for case in query.cases:
        parts = as_inputs(case.box, list(network.input_shapes))
        cases.append(Case(parts[0] if len(parts) == 1 else Product(parts), case.spec))
    return _certify(network, tuple(cases), query, query.sha256, chosen, started)


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def _check_outputs(network: Graph, spec: Spec) -> None:
    size = _count(network.output_shape)
    if spec.num_outputs != size:
        raise BadInput(
            f"the specification is about {spec.num_outputs} outputs, the network has {size}"
        )


def _certify(
    network: Graph,
    cases: tuple[Case, ...],
    query: VnnlibQuery | None,
    spec_sha256: str | None,
    options: Options,
    started: float,
) -> Certificate:
    from certify.small_route import small_route

    begun = now()
    claim = claim_about(network, cases)
    # Leaving takes time too: the answer is to arrive within the limit, on a busy machine as well.
    spare = min(1.0, 0.05 * options.timeout)
    targets, deadline = _targets(cases, query), started + options.timeout - spare
    outcome = small_route(network, targets, options, deadline)
    if outcome is None:
        from certify.ladder import climb  # late: it takes torch

        outcome = climb(network, targets, options, deadline)
    settings: dict[str, Scalar] = {
        "timeout": options.timeout,
        "method": options.method,
        "semantics": options.semantics,
        "attack": options.attack,
        "memory": options.memory,
        "workers": options.workers,
        "model_path": str(network.source.get("path", "")),
    }
    provenance = Provenance(
        claim.model_sha256,
        spec_sha256,
        outcome.method,
        settings,
        options.seed,
        versions(),
        outcome.device,
        time.monotonic() - started,
        begun,
    )
    return Certificate(
        outcome.verdict,
        claim,
        _guarantee(options),
        provenance,
        margin=_margin(outcome),
        counterexample=outcome.counterexample,
        evidence=_evidence(outcome, cases),
        reason=outcome.reason,
    )


def _margin(outcome: Outcome) -> float | None:
    """The margin that is stated: none for a proof by cases, whose smallest margin says where the
    search stopped. Its leaves are kept in few bits, so a second look may find a little less."""
    searched = any(proof.margins is None for proof in outcome.proofs.values())
    return None if outcome.verdict is Verdict.HOLDS and searched else outcome.margin


def _targets(cases: tuple[Case, ...], query: VnnlibQuery | None) -> list[Target]:
    from certify.search.target import Target

    found = []
    for number, case in enumerate(cases):
        for example in range(case.region.batch):
            region = case.region if case.region.batch == 1 else case.region.rows([example])
            place = query.cases[number] if query is not None else region
            found.append(Target(number, example, region, case.spec, place))
    return found


def _guarantee(options: Options) -> Guarantee:
    from certify.wording import assumptions

    return Guarantee(1.0, options.semantics, assumptions(options.semantics))


def _evidence(outcome: Outcome, cases: tuple[Case, ...]) -> tuple[Evidence, ...]:
    if outcome.verdict is not Verdict.HOLDS:
        return ()
    import numpy as np

    found = []
    for number, case in enumerate(cases):
        mine = [outcome.proofs[number, example] for example in range(case.region.batch)]
        methods = sorted({p.method for p in mine}, key=PROOF_METHODS.index)
        rows = [p.margins for p in mine if p.margins is not None]
        margins = np.stack(rows) if len(rows) == len(mine) else None
        slopes = mine[0].slopes if len(mine) == 1 else {}
        trees = tuple(p.trees for p in mine)
        found.append(Evidence(methods[-1], slopes, margins, trees if any(trees) else ()))
    return _kept(tuple(found))


def _kept(evidence: tuple[Evidence, ...]) -> tuple[Evidence, ...]:
    """Evidence without the slopes of its trees, or without the trees, where they are too large."""

    def size(every: tuple[Evidence, ...]) -> int:
        return sum(t.size for e in every for trees in e.trees for t in trees)

    if size(evidence) <= _LARGEST_TREES:
        return evidence
    evidence = tuple(
        replace(e, trees=tuple(tuple(t.without_slopes() for t in trees) for trees in e.trees))
        for e in evidence
    )
    if size(evidence) <= _LARGEST_TREES:
        return evidence
    return tuple(replace(e, trees=()) for e in evidence)
