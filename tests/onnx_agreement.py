"""A graph against ONNX Runtime on random points."""

from __future__ import annotations

import math

import numpy as np
import torch

from certify.bounds.evaluate import evaluate
from certify.core.graph import Graph
from certify.importers.onnx_runtime import Runtime

RNG = np.random.default_rng(0)


def evaluated(graph: Graph, x: np.ndarray) -> np.ndarray:
    """``x`` is (N, all inputs, flat); the result (N, outputs)."""
    parts, at = [], 0
    for shape in graph.input_shapes:
        size = math.prod(shape)
        parts.append(torch.tensor(x[:, at : at + size]).double().reshape(len(x), *shape))
        at += size
    return evaluate(graph, *parts).reshape(len(x), -1).numpy()


def assert_agrees(graph: Graph, low: float = -1, high: float = 1, points: int = 4) -> None:
    """Graph in float64 against ONNX Runtime in the model's own precision."""
    size = sum(math.prod(shape) for shape in graph.input_shapes)
    x = RNG.uniform(low, high, (points, size)).astype(np.float32)
    want = Runtime(graph).run_batch(x)
    got = evaluated(graph, x)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
