"""A proof over pieces of a range of transformations, as a certificate."""

from __future__ import annotations

import math

import numpy as np

from certify.core.certificate import Certificate, Counterexample, Evidence, Guarantee, Verdict
from certify.core.claim import Case
from certify.core.errors import BadInput
from certify.core.graph import Graph
from certify.core.provenance import Provenance, now, versions
from certify.core.region import Box
from certify.core.spec import Spec
from certify.evaluation.transformed.sweep import Finding
from certify.importers.model_claim import claim_about
from certify.search.pieces import METHOD
from certify.semantic.edits import transformed
from certify.wording import assumptions


def certificate(network: Graph, image: np.ndarray, finding: Finding,
                semantics: str = "real") -> Certificate:
    """What is known about one image, checkable from the model's file alone.

    A proof is written as its tree of pieces; `certify.check` bounds each of them anew, through the
    transformation as a graph. An attack is confirmed by the model itself.

    Raises:
        BadInput: the image is misclassified as it is: there is nothing to claim.
    """
    pieces = finding.pieces
    if finding.predicted != finding.label:
        raise BadInput(f"image {finding.index} is misclassified as it is")
    graph = transformed(network, image, pieces.names)
    classes = math.prod(network.output_shape)
    spec = Spec.classify(finding.label, classes)
    case = Case(Box(pieces.lower, pieces.upper).batched(graph.input_shapes[0]), spec)
    claim = claim_about(graph, (case,))
    provenance = Provenance(
        claim.model_sha256, None, METHOD,
        {"model_path": str(network.source.get("path", "")),
         "pieces": ",".join(map(str, pieces.counts)), "semantics": semantics},
        0, versions(), "cpu", finding.seconds, now())
    guarantee = Guarantee(1.0, semantics, assumptions(semantics))
    if finding.certified:
        tree = pieces.tree(finding.proved)
        return Certificate(Verdict.HOLDS, claim, guarantee, provenance,
                           evidence=(Evidence(METHOD, {}, None, ((tree,),)),))
    point = _confirmed(graph, case, finding, semantics)
    if point is not None:
        return Certificate(Verdict.VIOLATED, claim, guarantee, provenance, counterexample=point)
    return Certificate(Verdict.UNKNOWN, claim, guarantee, provenance,
                       reason=f"{100 * finding.share:.3g} % of the range is proved")


def _confirmed(graph: Graph, case: Case, finding: Finding, semantics: str) -> Counterexample | None:
    from certify.search.replay import confirm

    for point in finding.attacked:
        found = confirm(graph, case.region, case.spec, point, semantics)
        if found is not None:
            return found
    return None
