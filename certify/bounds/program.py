"""A graph made ready to run: constants as tensors on one device in one precision, rules resolved.

The only thing bound methods share besides the graph. It is read-only, and cached for as long as the
graph lives and its parameters have not changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from certify import ops
from certify.core.errors import BadInput
from certify.core.graph import INPUT, Graph, Node
from certify.ops.record import AffineRule, Op, RelaxedRule, Site


@dataclass(frozen=True, eq=False)
class Step:
    """One node with everything needed to run it.

    Attributes:
        index: position in the program.
        sources: per operand, the index of the step that produces it, or None where constant.
        constants: per operand, the constant tensor, or None where variable or omitted.
        sizes: as ``constants``, with the rule's weights and biases replaced by absolute values.
        like: an empty tensor of the program's precision, on its device.
    """

    index: int
    node: Node
    op: Op
    rule: AffineRule | RelaxedRule
    site: Site
    sources: tuple[int | None, ...]
    constants: tuple[Tensor | None, ...]
    sizes: tuple[Tensor | None, ...]
    like: Tensor

    def operands(self, values: Sequence[Any]) -> list[Any]:
        """Operands in record order: ``values[source]`` where variable, else the constant."""
        return [self.constants[i] if s is None else values[s] for i, s in enumerate(self.sources)]

    def size_operands(self, values: Sequence[Any]) -> list[Any]:
        """As `operands`, with absolute values of weights and biases."""
        return [self.sizes[i] if s is None else values[s] for i, s in enumerate(self.sources)]

    @cached_property
    def affine(self) -> bool:
        """Whether this step is affine here."""
        return isinstance(self.rule, AffineRule)

    @property
    def linear(self) -> AffineRule:
        """The rule of an affine step."""
        if not isinstance(self.rule, AffineRule):
            raise TypeError(f"{self.node.name} is not affine")
        return self.rule

    @property
    def curve(self) -> RelaxedRule:
        """The rule of a nonlinear step."""
        if not isinstance(self.rule, RelaxedRule):
            raise TypeError(f"{self.node.name} is affine")
        return self.rule

    @cached_property
    def variables(self) -> tuple[int, ...]:
        """Distinct steps this one reads."""
        return tuple(dict.fromkeys(s for s in self.sources if s is not None))

    @cached_property
    def offset(self) -> Tensor | None:
        """The constant part ``b`` of an affine step, of the result's shape; None when zero."""
        zeros = [
            self.constants[i] if s is None else self.like.new_zeros(self.site.shapes[i])
            for i, s in enumerate(self.sources)
        ]
        found = self.op.forward(self.site, *zeros).expand(self.site.shape)
        return found if found.requires_grad or bool(found.any()) else None

    @cached_property
    def offset_size(self) -> Tensor | None:
        """A bound on the sizes of the terms that make up `offset`; None when zero."""
        rule = self.rule
        if isinstance(rule, AffineRule) and rule.offset_size is not None:
            return rule.offset_size(self.site, *self.sizes).expand(self.site.shape)
        return None if self.offset is None else self.offset.abs()

    @cached_property
    def diagonal(self) -> bool:
        """Each result element is one operand element times a number, plus a number."""
        if not isinstance(self.rule, AffineRule) or sum(self.site.varies) != 1:
            return False
        shape = self.site.shapes[self.site.varies.index(True)]
        return (
            math.prod(shape) == math.prod(self.site.shape)
            and max(self.rule.summands(self.site)) <= 2
        )


@dataclass(frozen=True, eq=False)
class Program:
    """A runnable graph.

    Attributes:
        steps: in topological order; None at a model input.
        inputs: indices of the model inputs, in order.
        output: index of the output's step.
        exact: whether every constant is stored exactly in this precision.
    """

    graph: Graph
    dtype: torch.dtype
    device: torch.device
    steps: tuple[Step | None, ...]
    inputs: tuple[int, ...]
    output: int
    exact: bool

    @cached_property
    def index(self) -> dict[str, int]:
        """Step indices by node name."""
        return {node.name: i for i, node in enumerate(self.graph.nodes)}

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape of a step's result for one example."""
        return self.graph.nodes[index].shape

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """Per step, the steps that read it."""
        found: list[list[int]] = [[] for _ in self.steps]
        for step in self.steps:
            if step is not None:
                for source in step.variables:
                    found[source].append(step.index)
        return tuple(tuple(f) for f in found)

    @cached_property
    def ancestors(self) -> tuple[frozenset[int], ...]:
        """Per step, itself and every step it depends on."""
        found: list[frozenset[int]] = []
        for i, step in enumerate(self.steps):
            above = [found[s] for s in step.variables] if step else []
            found.append(frozenset({i}).union(*above))
        return tuple(found)

    @cached_property
    def operations(self) -> int:
        """About how many floating-point operations one example takes."""
        total = 0
        for step in self.steps:
            if step is not None:
                size = math.prod(step.site.shape)
                total += (
                    2 * size * (max(1, step.linear.summands(step.site)[0]) if step.affine else 4)
                )
        return total

    @cached_property
    def largest(self) -> int:
        """Elements of the largest tensor of one example."""
        return max(math.prod(node.shape) for node in self.graph.nodes)


_Key = tuple[torch.dtype, str, tuple[tuple[int, int], ...]]
_CACHE: WeakKeyDictionary[Graph, dict[_Key, Program]] = WeakKeyDictionary()


def prepare(
    graph: Graph, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Program:
    """The program of ``graph``, from the cache when its parameters have not changed since.

    Raises:
        BadInput: a constant is not finite in this precision.
    """
    device = torch.device(device)
    live = tuple(
        (id(c), c._version) for c in graph.constants.values() if isinstance(c, torch.Tensor)
    )
    grad = torch.is_grad_enabled() and any(
        c.requires_grad for c in graph.constants.values() if isinstance(c, torch.Tensor)
    )
    if grad:  # holds an autograd graph: not to be kept
        return _build(graph, dtype, device)
    programs = _CACHE.setdefault(graph, {})
    key = (dtype, str(device), live)
    if key not in programs:
        for stale in [k for k in programs if k[2] != live]:
            del programs[stale]
        programs[key] = _build(graph, dtype, device)
    return programs[key]


def _build(graph: Graph, dtype: torch.dtype, device: torch.device) -> Program:
    registry = ops.load()
    place = {node.name: i for i, node in enumerate(graph.nodes)}
    tensors = {name: _tensor(name, c, dtype, device) for name, c in graph.constants.items()}
    like = torch.empty(0, dtype=dtype, device=device)
    steps: list[Step | None] = []
    for i, node in enumerate(graph.nodes):
        if node.op == INPUT:
            steps.append(None)
            continue
        op = registry.ops[node.op]
        shapes = tuple(_shape(graph, name) for name in node.inputs)
        site = Site(
            node.name, node.attrs, shapes, tuple(n in place for n in node.inputs), node.shape
        )
        rule = op.rule(site)
        constants = tuple(tensors.get(name) for name in node.inputs)
        absolute = (rule.weights + rule.biases) if isinstance(rule, AffineRule) else ()
        sizes = tuple(
            c.abs() if c is not None and k in absolute else c for k, c in enumerate(constants)
        )
        sources = tuple(place.get(name) for name in node.inputs)
        steps.append(Step(i, node, op, rule, site, sources, constants, sizes, like))
    inputs = tuple(i for i, node in enumerate(graph.nodes) if node.op == INPUT)
    exact = all(_same(graph.constants[name], tensor) for name, tensor in tensors.items())
    return Program(graph, dtype, device, tuple(steps), inputs, place[graph.output], exact)


def _same(array: Any, tensor: Tensor) -> bool:
    original = to_tensor(array)
    if original.dtype == tensor.dtype or not original.is_floating_point():
        return True
    return original.dtype.itemsize <= tensor.dtype.itemsize or bool(
        (original.detach().to(tensor.device) == tensor.detach().to(original.dtype)).all()
    )


def _shape(graph: Graph, name: str) -> tuple[int, ...]:
    if not name:
        return ()
    node = graph.by_name.get(name)
    return node.shape if node else tuple(int(n) for n in graph.constants[name].shape)


def to_tensor(array: Any) -> Tensor:
    """A tensor of the same numbers; a tensor is returned as it is, a read-only array is copied."""
    if isinstance(array, torch.Tensor):
        return array
    plain = np.asarray(array)
    return torch.from_numpy(plain if plain.flags.writeable else plain.copy())


def _tensor(name: str, array: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    given = to_tensor(array)
    if not given.is_floating_point():
        return given.to(device)
    moved = given.to(device=device, dtype=dtype)
    if (
        moved.dtype != given.dtype
        and bool(given.isfinite().all())
        and not bool(moved.isfinite().all())
    ):
        raise BadInput(f"constant {name!r} does not fit {dtype}; use float64")
    return moved
