"""Rounded weights: steps of integer formats, the region they span, and the rounded network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from certify.core.errors import UsageError
from certify.core.graph import Graph
from certify.ops.builder import as_numpy
from certify.semantic.weights import weight_names

MOST_BITS = 32


def steps(graph: Graph, bits: int, per_channel: bool = True) -> dict[str, np.ndarray]:
    """The quantisation step of every weight: symmetric, signed, the largest value exactly kept.

    Args:
        bits: of the signed integers, 2 to 32.
        per_channel: one step per output channel, else one per tensor.

    Returns:
        By name of constant, shaped to broadcast against it.

    Raises:
        UsageError: bits out of range.
    """
    if not 2 <= bits <= MOST_BITS:
        raise UsageError(f"{bits} bits: give 2 to {MOST_BITS}")
    found = {}
    for name in weight_names(graph):
        weight = as_numpy(graph.constants[name]).astype(np.float64)
        axes = tuple(range(1, weight.ndim)) if per_channel else None
        found[name] = np.abs(weight).max(axis=axes, keepdims=True) / (2 ** (bits - 1) - 1)
    return found


def rounded(graph: Graph, step: Mapping[str, np.ndarray]) -> Graph:
    """The network with every weight at the nearest multiple of its step (float64)."""
    constants = dict(graph.constants)
    for name, size in step.items():
        weight = as_numpy(graph.constants[name]).astype(np.float64)
        safe = np.where(size == 0, 1.0, size)
        constants[name] = np.where(size == 0, weight, np.round(weight / safe) * size)
    return replace(graph, constants=MappingProxyType(constants), source={"dtype": "float64"})
