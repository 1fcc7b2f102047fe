"""Builds a `Graph` node by node; the one place where importers and operators meet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from certify.core.errors import BadInput, LimitExceeded
from certify.core.graph import INPUT, Array, Graph, Node, Shape
from certify.ops.record import REGISTRY, Site

LARGEST_TENSOR = 2**28  # elements of one example's tensor: 1 GiB in float32


class Value(NamedTuple):
    """A tensor while a graph is being built.

    Attributes:
        name: node or constant name.
        shape: shape for one example.
        constant: the array, or None when it depends on the model's input.
    """

    name: str
    shape: Shape
    constant: Array | None = None

    @property
    def rank(self) -> int:
        """Number of axes, one example."""
        return len(self.shape)


@dataclass(frozen=True)
class Call:
    """One operator call of the source model, as a translation sees it.

    ONNX: ``inputs`` are values (None where omitted) and ``attrs`` the node's attributes, decoded.
    ATen: ``inputs`` are the positional arguments in schema order, defaults filled in, each a
    `Value`, a list of them, or a plain Python constant; ``attrs`` is empty.
    """

    name: str
    kind: str
    inputs: tuple[Any, ...]
    attrs: Mapping[str, Any]
    opset: int = 0
    outputs: int = 1
    where: str = ""

    def attr(self, key: str, default: Any = None) -> Any:
        """Attribute ``key``, or ``default`` where the node does not set it."""
        return self.attrs.get(key, default)

    def arg(self, index: int, default: Any = None) -> Any:
        """Argument ``index``, or ``default`` where it is omitted or None."""
        found = self.inputs[index] if index < len(self.inputs) else None
        return default if found is None else found

    def static(self, index: int, default: Any = None) -> Any:
        """Argument ``index`` as a constant numpy array or Python value.

        Raises:
            BadInput: the argument depends on the model's input.
        """
        found = self.arg(index, default)
        if isinstance(found, Value):
            if found.constant is None:
                raise BadInput(f"{self.where or self.name}: operand {index} must be a constant")
            return np.asarray(as_numpy(found.constant))
        return found


def as_numpy(array: Array) -> np.ndarray:
    """A numpy view of a numpy array or torch tensor (detached, on the CPU)."""
    detach = getattr(array, "detach", None)
    return np.asarray(detach().cpu().numpy() if detach is not None else array)


class Builder:
    """Collects nodes; `finish` freezes them. Names are made unique."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}
        self._names: set[str] = set()
        self.prefix = "v"
        self.where = ""
        self.single = False  # round Python numbers in the model's code to float32, as torch does

    def input(self, name: str, shape: Shape) -> Value:
        """A model input."""
        label = self._unique(name)
        self.nodes.append(Node(label, INPUT, (), MappingProxyType({}), shape, self.where))
        return Value(label, shape)

    def include(self, graph: Graph) -> Value:
        """Take over the nodes and constants of a graph under their own names; its output."""
        self.nodes += graph.nodes
        self.constants.update(graph.constants)
        self._names.update(graph.constants, (node.name for node in graph.nodes))
        return Value(graph.output, graph.output_shape)

    def constant(self, array: Array, name: str | None = None) -> Value:
        """A constant operand; numpy or torch, kept as it is."""
        if not hasattr(array, "shape"):
            array = np.asarray(array, dtype=np.float64)
        if self.single and isinstance(array, np.ndarray | np.generic) and array.dtype == np.float64:
            array = array.astype(np.float32).astype(np.float64)
        return Value(name or "", tuple(int(n) for n in array.shape), array)

    def add(self, op: str, *operands: Value | None, name: str | None = None, **attrs: Any) -> Value:
        """Append operator ``op`` and return its result. At least one operand must vary, or the
        result is computed at once and is a constant.

        Raises:
            BadInput: the operands' shapes do not fit; the message names the place.
        """
        record = REGISTRY.ops[op]
        shapes = tuple(v.shape if v is not None else () for v in operands)
        try:
            shape = tuple(int(n) for n in record.shape(attrs, *shapes))
        except (ValueError, IndexError, TypeError, ZeroDivisionError) as problem:
            raise BadInput(
                f"{self.where or name or op}: operand shapes {shapes} do not fit {op}: {problem}"
            ) from None
        self._check_size(shape, op)
        varies = tuple(v is not None and v.constant is None for v in operands)
        label = self._unique(name or f"{self.prefix}/{op}")
        site = Site(label, MappingProxyType(dict(attrs)), shapes, varies, shape)
        if not any(varies):
            return self._fold(op, site, operands)
        inputs = tuple(self._operand(v) for v in operands)
        self.nodes.append(Node(label, op, inputs, site.attrs, shape, self.where))
        return Value(label, shape)

    def align(self, value: Value, rank: int) -> Value:
        """``value`` with leading ones so that it has ``rank`` axes (broadcasting made explicit)."""
        if value.rank >= rank or value.constant is not None:
            return value
        return self.add("reshape", value, shape=(1,) * (rank - value.rank) + value.shape)

    def broadcast(self, *values: Value) -> tuple[Value, ...]:
        """All values brought to one rank by `align`; use before any elementwise operator."""
        rank = max(v.rank for v in values)
        return tuple(self.align(v, rank) for v in values)

    def finish(self, output: Value, source: Mapping[str, Any] | None = None) -> Graph:
        """The frozen graph, without nodes and constants the output does not need.

        Raises:
            BadInput: the output does not depend on the input.
        """
        if output.constant is not None:
            raise BadInput("the output does not depend on the model's input")
        whole = Graph(tuple(self.nodes), self.constants, output.name, source or {})
        nodes = tuple(whole.live())
        used = {name for node in nodes for name in node.inputs}
        kept = {name: array for name, array in self.constants.items() if name in used}
        facts = MappingProxyType(dict(source or {}))
        return Graph(nodes, MappingProxyType(kept), output.name, facts)

    def _unique(self, name: str) -> str:
        label, count = name, 1
        while label in self._names:
            count += 1
            label = f"{name}_{count}"
        self._names.add(label)
        return label

    def _operand(self, value: Value | None) -> str:
        if value is None:
            return ""
        if value.constant is None:
            return value.name
        name = value.name
        if not name or self.constants.get(name) is not value.constant:
            name = self._unique(name or f"{self.prefix}/constant")
            self.constants[name] = value.constant
        return name

    def _check_size(self, shape: Shape, op: str) -> None:
        if any(n < 0 for n in shape):
            raise BadInput(f"{self.where or op}: negative size in shape {shape}")
        if math.prod(shape) > LARGEST_TENSOR:
            raise LimitExceeded(
                f"{self.where or op}: a tensor of shape {shape} is beyond {LARGEST_TENSOR} elements"
            )

    def _fold(self, op: str, site: Site, operands: tuple[Value | None, ...]) -> Value:
        import torch

        native = any(isinstance(v.constant, torch.Tensor) for v in operands if v is not None)
        tensors = [None if v is None else torch.as_tensor(v.constant) for v in operands]
        if not native:  # float64: the claim is about real arithmetic on the stored weights
            tensors = [
                t.double() if t is not None and t.is_floating_point() else t for t in tensors
            ]
        result = REGISTRY.ops[op].forward(site, *tensors)
        return Value(site.name, site.shape, result if native else result.detach().numpy())
