"""What a graph computes at given points, by nothing but its records' ``forward``."""

from __future__ import annotations

from typing import Any

import torch

from certify import ops
from certify.core.graph import Graph
from certify.ops.record import Site


def run(graph: Graph, *inputs: torch.Tensor) -> torch.Tensor:
    """The graph's own meaning at points, by the records' ``forward``."""
    registry = ops.load()
    values: dict[str, Any] = {k: torch.as_tensor(v) for k, v in graph.constants.items()}
    values.update({n.name: x for n, x in zip(graph.inputs, inputs, strict=True)})
    for node in graph.nodes:
        if node.name in values:
            continue
        operands = [values.get(name) for name in node.inputs]
        shapes = tuple(() if v is None else tuple(v.shape) for v in operands)
        varies = tuple(name in graph.by_name for name in node.inputs)
        site = Site(node.name, node.attrs, shapes, varies, node.shape)
        values[node.name] = registry.ops[node.op].forward(site, *operands)
    return values[graph.output]
