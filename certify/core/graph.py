"""The network as a frozen graph: what every importer produces and every method walks.

Shapes are those of **one example**, exactly as the model sees it (a leading 1 in the model stays a
leading 1 here). Engines put their own batch axes in front.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from certify.core.errors import BadInput

Shape = tuple[int, ...]
Array = Any  # numpy.ndarray or torch.Tensor; importers keep what the model gave them

INPUT = "input"


@dataclass(frozen=True)
class Node:
    """One operator at one place.

    Attributes:
        name: unique; the ONNX tensor name or the torch node name, so a viewer shows the same.
        op: name of the operator record, or ``"input"``.
        inputs: operand names, each a node or a constant of the graph, in the record's order.
        attrs: static settings of the operator (axes are counted from the end, hence negative).
        shape: shape of the result for one example.
        where: where it came from (ONNX node, or source line), for messages.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    shape: Shape
    where: str = ""


@dataclass(frozen=True, eq=False)
class Graph:
    """A directed acyclic graph with one output. Two graphs are equal when they are the same object.

    Attributes:
        nodes: in topological order; the model's inputs are nodes whose ``op`` is ``"input"``.
        constants: arrays by name (numpy from ONNX, the model's own live tensors from torch).
        output: name of the node that is the result.
        source: facts for provenance: ``path``, ``sha256``, ``format``, ``dtype``.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    output: str
    source: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """Nodes by name; constants are not among them."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def inputs(self) -> tuple[Node, ...]:
        """The model's inputs, in its own order."""
        return tuple(node for node in self.nodes if node.op == INPUT)

    @property
    def input_shapes(self) -> tuple[Shape, ...]:
        """The inputs' shapes for one example, in the order of `inputs`."""
        return tuple(node.shape for node in self.inputs)

    @property
    def output_shape(self) -> Shape:
        """The output's shape for one example."""
        return self.by_name[self.output].shape

    def node(self, name: str) -> Node:
        """The node called ``name``.

        Raises:
            BadInput: no such node; the message names a few that exist.
        """
        try:
            return self.by_name[name]
        except KeyError:
            known = ", ".join(list(self.by_name)[-8:])
            raise BadInput(f"the graph has no node {name!r}; the last ones are {known}") from None

    def live(self) -> Iterator[Node]:
        """Nodes the output depends on, in order, and every model input."""
        needed = {self.output}
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        return (n for n in self.nodes if n.name in needed or n.op == INPUT)


def renamed(graph: Graph, prefix: str) -> Graph:
    """The same graph with ``prefix`` before every node's and constant's name."""

    def name(old: str) -> str:
        return prefix + old if old else old

    nodes = tuple(replace(n, name=name(n.name), inputs=tuple(map(name, n.inputs)))
                  for n in graph.nodes)
    constants = {name(key): array for key, array in graph.constants.items()}
    return Graph(nodes, constants, name(graph.output), graph.source)


def chained(first: Graph, second: Graph, source: Mapping[str, Any]) -> Graph:
    """``second`` after ``first``: its one input is the output of ``first``.

    Args:
        source: facts about the result, see `Graph`.

    Raises:
        BadInput: ``second`` has several inputs, or one of another size.
    """
    if len(second.inputs) != 1:
        raise BadInput(f"a network with {len(second.inputs)} inputs cannot follow another; it "
                       "must have one")
    (there,) = second.inputs
    if math.prod(there.shape) != math.prod(first.output_shape):
        raise BadInput(f"a result of shape {first.output_shape} does not fit an input of shape "
                       f"{there.shape}")
    if set(first.by_name) & set(second.by_name) or set(first.constants) & set(second.constants):
        first = renamed(first, "front/")
    shape = there.shape
    bridge = replace(there, op="reshape", inputs=(first.output,), attrs={"shape": shape})
    rest = [bridge if n is there else n for n in second.nodes]
    constants = {**first.constants, **second.constants}
    return Graph((*first.nodes, *rest), constants, second.output, source)
