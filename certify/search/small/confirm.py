"""Confirming a counterexample without torch: as `certify.search.replay.confirm`, by kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from certify.core.certificate import Counterexample
from certify.core.graph import Graph
from certify.core.region import Region
from certify.core.spec import Spec
from certify.importers.vnnlib_cases import Case
from certify.search.membership import into_case, into_region, precision
from certify.search.replay import replay
from certify.search.small import compiled
from certify.search.small.memory import Question


def confirmed(
    graph: Graph, place: Region | Case, spec: Spec, x: np.ndarray, question: Question
) -> Counterexample | None:
    """``x`` as a counterexample, if it is one; refused when real arithmetic contradicts it.

    Args:
        place: batch 1, or a case of a property file with its exact decimal ends.
        spec: batch 1.
        question: the same network and specification.
    """
    dtype = precision(str(graph.source.get("dtype", "float32")))
    if isinstance(place, Case):
        point: np.ndarray | None = into_case(place, x, dtype)
    else:
        point = into_region(place, list(graph.input_shapes), 0, x, dtype)
    if point is None:
        return None
    output = np.asarray(replay(graph, point)).reshape(-1)
    if not np.isfinite(output).all() or not bool(spec.violated(point[None], output[None])[0]):
        return None
    verdict = in_real_arithmetic(place, spec, point, question)
    if verdict is False:
        return None
    stops = np.cumsum([int(np.prod(s, dtype=np.int64)) for s in graph.input_shapes])[:-1]
    parts = np.split(point, stops)
    shaped = tuple(p.reshape(s).copy() for p, s in zip(parts, graph.input_shapes, strict=True))
    return Counterexample(shaped, output, proved=verdict is True)


def labelled(found: Counterexample, case: int, example: int) -> Counterexample:
    """The counterexample with its place in the claim."""
    return replace(found, case=case, example=example)


def in_real_arithmetic(
    place: Region | Case, spec: Spec, x: np.ndarray, question: Question
) -> bool | None:
    """Whether the exact function of the stored weights is unsafe at ``x``; None: cannot tell.

    Where the point had to leave the exact box of a property file, the whole (tiny) interval of
    that input is taken instead, so that the answer is about a point of the box.
    """
    lower = upper = x.astype(np.float64)
    if isinstance(place, Case):
        outside = (lower < place.inner_lower) | (lower > place.inner_upper)
        ends = (place.box.lower, place.box.upper)
        low, high = (np.asarray(e, dtype=np.float64).reshape(-1) for e in ends)
        lower, upper = np.where(outside, low, lower), np.where(outside, high, upper)
    point = Question(
        question.net, lower, upper, np.flatnonzero(lower < upper), question.starts, question.strict
    )
    least, most = compiled.point_ranges(point)
    rows = spec.rows()
    never = np.where(rows.strict, least >= 0, least > 0)
    rounded = np.array([c.exact is not None for c in spec.clauses])[rows.group]
    slack = np.where(rounded, rows.bound - np.nextafter(rows.bound, -np.inf), 0.0)
    always = np.where(rows.strict, most < -slack, most <= -slack)
    starts = question.starts[:-1]
    if np.logical_and.reduceat(always, starts).any():
        return True
    return False if np.logical_or.reduceat(never, starts).all() else None
