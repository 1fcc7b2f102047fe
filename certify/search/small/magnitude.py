"""How large the numbers inside a model may get when it runs: no answer where it may overflow."""

from __future__ import annotations

import numpy as np

from certify.core.graph import INPUT, Graph, Node

_LARGEST = {"float32": 1e30, "float64": 1e290}  # far from overflow, in any order of summation


def may_overflow(graph: Graph, size: np.ndarray) -> bool:
    """Whether a model of this package's `_RULES` may leave its number range.

    Args:
        size: ``(n,)`` largest absolute value of every input.
    """
    limit = _LARGEST.get(str(graph.source.get("dtype", "float32")), 0.0)
    sizes: dict[str, np.ndarray] = {}
    start = 0
    with np.errstate(all="ignore"):
        for node in graph.live():
            if node.op == INPUT:
                count = int(np.prod(node.shape, dtype=np.int64))
                sizes[node.name] = size[start : start + count].reshape(node.shape)
                start += count
            else:
                sizes[node.name] = _size(graph, sizes, node)
            if not (sizes[node.name] <= limit).all():
                return True
    return False


def _size(graph: Graph, sizes: dict[str, np.ndarray], node: Node) -> np.ndarray:
    """Bound of every element of a node, as if no two terms ever had opposite signs."""
    values = [
        sizes[name] if name in sizes else abs(np.asarray(graph.constants[name], dtype=np.float64))
        for name in node.inputs
    ]
    if node.op in ("add", "sub"):
        return np.asarray(values[0] + values[1])
    if node.op == "mul":
        return np.asarray(values[0] * values[1])
    if node.op in ("matmul", "linear"):
        weight = values[1].T if node.op == "linear" else values[1]
        product = values[0] @ weight
        return np.asarray(product + values[2] if len(values) > 2 else product)
    if node.op == "transpose":
        rank = values[0].ndim
        return values[0].transpose([p % rank for p in node.attrs["perm"]])
    return values[0].reshape(node.shape)
