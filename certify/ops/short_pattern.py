"""Activations that a model spells out in two or three calls, recognised by their shape alone."""

from __future__ import annotations

from certify.core.graph import Graph, Node
from certify.ops.forms import scalar_constant


def short_match(graph: Graph, node: Node) -> tuple[str, str] | None:
    """The operator that ``node`` spells out and the node it is applied to, or None.

    ``log(sigmoid(x))`` is a log_sigmoid and ``x / (1 + |x|)`` a softsign: the same real functions.
    As products of steps bounded apart from each other they would lose what ties them together.
    """
    if node.op == "log":
        inner = graph.by_name[node.inputs[0]]
        return ("log_sigmoid", inner.inputs[0]) if inner.op == "sigmoid" else None
    if node.op != "mul":
        return None
    for base, other in (node.inputs, node.inputs[::-1]):
        if base in graph.by_name and _one_plus_size(
            graph, _operand(graph, other, "reciprocal"), base
        ):
            return "softsign", base
    return None


def _operand(graph: Graph, name: str, op: str) -> str:
    """The operand of the node ``name`` if that is an ``op``, else nothing."""
    node = graph.by_name.get(name)
    return node.inputs[0] if node is not None and node.op == op else ""


def _one_plus_size(graph: Graph, name: str, base: str) -> bool:
    """Whether the node ``name`` is ``1 + |base|``."""
    node = graph.by_name.get(name)
    if node is None or node.op != "add" or node.shape != graph.by_name[base].shape:
        return False
    pairs = (node.inputs, node.inputs[::-1])
    return any(
        scalar_constant(graph, one) == 1 and _operand(graph, size, "abs") == base
        for one, size in pairs
    )
