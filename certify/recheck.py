"""`check`: evaluates a certificate's evidence again.

The bound is derived anew by the same engine, and a counterexample is run again on the model. That
finds a damaged or forged file, a changed model, and a nondeterministic run. It does not find an
error in the engine: an independent checker would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.certificate import Certificate, Counterexample, Verdict
from certify.core.errors import BadInput
from certify.core.region import Product, Region
from certify.core.region_box import Box

if TYPE_CHECKING:
    from certify.core.claim import Case
    from certify.core.graph import Graph


_PATIENCE = 10.0  # a search may take this many times the first one's seconds
_MARGIN_SLACK = 0.01  # optimised slopes may end elsewhere on another machine


@dataclass(frozen=True)
class Report:
    """Whether a certificate stood up to a second look, and why.

    Attributes:
        accepted: its claim was established again; or it claims nothing.
        reason: one sentence.
        margin: the margin derived this time, for a claim that holds.
    """

    accepted: bool
    reason: str
    margin: float | None = None

    def __bool__(self) -> bool:
        return self.accepted


def check(certificate: Certificate, model: Graph | str | Path | None = None) -> Report:
    """Establish a certificate's claim again.

    Args:
        model: the network, or its ONNX file; default: the file it was certified from.

    Raises:
        BadInput: there is no model to check against, or it cannot be read.
    """
    if certificate.claim.smoothing is not None:
        return _smoothed_again(certificate)
    network = _network(certificate, model)
    from certify.importers.model_claim import model_hash, unedited

    if model_hash(network) != certificate.claim.model_sha256:
        return Report(False, "this is not the model the certificate is about: the SHA-256 differs")
    if certificate.claim.edits:
        from certify.semantic.edits import edited

        network = edited(unedited(network), certificate.claim.edits)
    if certificate.verdict is Verdict.HOLDS:
        return _holds_again(certificate, network)
    if certificate.verdict is Verdict.VIOLATED:
        return _violated_again(certificate, network)
    return Report(True, f"the certificate claims nothing (verdict {certificate.verdict.value})")


def _smoothed_again(certificate: Certificate) -> Report:
    from certify.smoothing.certifier import check_votes

    if certificate.verdict is not Verdict.HOLDS:
        return Report(True, f"the certificate claims nothing (verdict {certificate.verdict.value})")
    try:
        return Report(*check_votes(certificate))
    except BadInput as problem:
        return Report(False, str(problem))


def _network(certificate: Certificate, model: Graph | str | Path | None) -> Graph:
    from certify.core.graph import Graph
    from certify.importers.model_file import load

    if isinstance(model, Graph):
        return model
    if model is None:
        model = str(certificate.provenance.settings.get("model_path") or "")
        if not model:
            raise BadInput("the certificate does not say where its model is; give the model")
    return load(model)


def _holds_again(certificate: Certificate, network: Graph) -> Report:
    from certify.ladder import prove_again

    if not certificate.evidence:
        return Report(False, "the certificate says that its claim holds and brings no evidence")
    margin = math.inf
    seconds = _PATIENCE * max(certificate.provenance.seconds, 1.0)
    arithmetic = certificate.guarantee.arithmetic
    pairs = zip(certificate.claim.cases, certificate.evidence, strict=True)
    for number, (case, evidence) in enumerate(pairs):
        method = evidence.method
        try:
            proved, found = prove_again(network, case, evidence, arithmetic, seconds)
        except BadInput as problem:
            return Report(False, f"case {number}: {problem}")
        margin = min(margin, found)
        if not proved:
            return Report(
                False, f"case {number} was not proved again by {method}: margin {found:.4g}"
            )
    stated = certificate.margin
    if stated is not None and stated > margin + _MARGIN_SLACK * max(abs(margin), abs(stated)):
        return Report(False, f"the stated margin {stated:.4g} was not reached again: {margin:.4g}")
    return Report(True, f"every case was proved again, margin {margin:.4g}", margin)


def _violated_again(certificate: Certificate, network: Graph) -> Report:
    from certify.search.replay import confirm

    point = certificate.counterexample
    if point is None:
        return Report(False, "the certificate says violated and has no counterexample")
    case = certificate.claim.cases[point.case]
    place = _place(case, point)
    found = confirm(
        network,
        place,
        case.spec,
        point.flat,
        certificate.guarantee.arithmetic,
        case=point.case,
        example=point.example,
    )
    if found is None:
        return Report(False, "the counterexample is not one: the model's answer there is safe")
    if not all(np.array_equal(a, b) for a, b in zip(found.inputs, point.inputs, strict=True)):
        return Report(False, "the counterexample lies outside the region")
    return Report(True, "the model was run on the counterexample again, and its answer is unsafe")


def _place(case: Case, point: Counterexample) -> Any:
    """Where the point must lie. A box from a property file may hold no float32 number in a fixed
    input; it is given the meaning it had there: the number nearest to it."""
    from certify.importers.vnnlib import Case as Boxed

    example = case.region if case.region.batch == 1 else case.region.rows([point.example])
    ends = _flat_ends(example)
    if ends is None or case.spec.batch > 1:
        return case.region
    lower, upper = ends
    exact = tuple(tuple(Decimal(float(v)) for v in side) for side in ends)
    return Boxed(Box(lower, upper), case.spec, lower, upper, *exact)


def _flat_ends(region: Region) -> tuple[np.ndarray, np.ndarray] | None:
    parts = region.parts if isinstance(region, Product) else (region,)
    if not all(type(part) is Box for part in parts):
        return None
    ends = [part.ends() for part in parts]
    return (
        np.concatenate([np.asarray(e[0], dtype=np.float64).reshape(-1) for e in ends]),
        np.concatenate([np.asarray(e[1], dtype=np.float64).reshape(-1) for e in ends]),
    )
