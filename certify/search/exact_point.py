"""The rows of a specification at one point, enclosed in real arithmetic."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch

from certify.bounds.budget import Limits
from certify.bounds.crown import Plan, interval_row_bounds, tighten
from certify.bounds.program import prepare
from certify.core.graph import Graph
from certify.core.region import Box, Product, Region
from certify.core.semantics import Semantics
from certify.core.spec import Spec


def row_interval(
    graph: Graph, lower: np.ndarray, upper: np.ndarray, spec: Spec
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of ``y.Y + x.X`` of every row over a tiny box, all rounding accounted for.

    Args:
        lower, upper: flat float64 ends; equal for a point.
        spec: of one example.

    Returns:
        ``(least, most)``, each ``(R,)``; infinite or NaN where nothing is known.
    """
    with torch.no_grad():
        program = prepare(graph, torch.float64)
        region = _box(graph, lower, upper)
        state = tighten(program, region, Plan(refine=False), Semantics.REAL, Limits())
        stacked = spec.rows()
        rows = {program.output: _coefficients(stacked.y[0], graph.output_shape)}
        if stacked.x is not None:
            starts = np.cumsum([0, *(math.prod(s) for s in graph.input_shapes)])
            for index, (a, b) in zip(program.inputs, itertools.pairwise(starts), strict=True):
                rows[index] = _coefficients(stacked.x[0][:, a:b], program.shape(index))
        found = interval_row_bounds(state, rows, mirrored=True)[0].numpy()
    least, most = np.split(found, 2)
    return least, -most


def _box(graph: Graph, lower: np.ndarray, upper: np.ndarray) -> Region:
    stops = np.cumsum([0, *(math.prod(s) for s in graph.input_shapes)])
    parts = [
        Box(lower[a:b].reshape(1, *s), upper[a:b].reshape(1, *s)).batched(s)
        for (a, b), s in zip(itertools.pairwise(stops), graph.input_shapes, strict=True)
    ]
    return parts[0] if len(parts) == 1 else Product(parts)


def _coefficients(rows: np.ndarray, shape: tuple[int, ...]) -> Any:
    return torch.from_numpy(np.ascontiguousarray(rows)).reshape(1, len(rows), *shape)
