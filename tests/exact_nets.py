"""Runs a graph on points in exact rationals, or in float32 with sums in any order.

Written apart from the engine: numpy only, operator by operator. The one thing taken from a record
is which input meets which weight in a convolution, by probing its ``forward`` with unit vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from certify import ops
from certify.core.graph import INPUT, Graph, Node
from certify.ops.record import Site

REGISTRY = ops.load()
PRODUCTS = ("linear", "conv", "conv_transpose")


def rational(array: Any) -> np.ndarray:
    """Every number as a `Fraction`."""
    array = np.asarray(array, dtype=np.float64)
    return np.array([Fraction(float(v)) for v in array.ravel()], dtype=object).reshape(array.shape)


@dataclass(frozen=True)
class Exact:
    """Rational arithmetic."""

    def lift(self, array: Any) -> np.ndarray:
        return rational(array)

    def affine(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        y = x @ weight.T
        return y if bias is None else y + bias

    def normalised(self, x: np.ndarray, *rest: Any) -> np.ndarray:
        raise NotImplementedError("a square root is not rational")


@dataclass(frozen=True)
class Float32:
    """IEEE float32 with every sum in an order drawn anew, products fused or not."""

    rng: np.random.Generator

    def lift(self, array: Any) -> np.ndarray:
        return np.asarray(array, dtype=np.float32)

    def affine(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        order = self.rng.permutation(weight.shape[1])
        x, weight = x[:, order], weight[:, order]
        start = np.zeros(len(weight), np.float32) if bias is None else bias
        kind = self.rng.integers(4)
        if kind == 0:
            return _fused(x, weight, start)
        terms = x[:, None, :] * weight
        place = 0 if kind == 1 else terms.shape[-1]
        terms = np.insert(terms, place, np.broadcast_to(start, terms.shape[:2]), axis=-1)
        return _pairwise(terms) if kind == 3 else _in_turn(terms)

    def normalised(
        self, x: np.ndarray, scale: Any, bias: Any, mean: Any, var: Any, eps: float
    ) -> np.ndarray:
        root = np.sqrt(var + np.float32(eps))
        if self.rng.integers(2):
            return (x - mean) / root * scale + bias
        factor = scale / root
        return x * factor + (bias - mean * factor)


def _fused(x: np.ndarray, weight: np.ndarray, start: np.ndarray) -> np.ndarray:
    total = np.broadcast_to(start, (len(x), len(weight))).astype(np.float32)
    for j in range(weight.shape[1]):
        exact = x[:, j, None].astype(np.float64) * weight[:, j]  # 48 bits: no rounding
        total = (exact + total).astype(np.float32)
    return total


def _in_turn(terms: np.ndarray) -> np.ndarray:
    total = terms[..., 0]
    for j in range(1, terms.shape[-1]):
        total = total + terms[..., j]
    return total


def _pairwise(terms: np.ndarray) -> np.ndarray:
    while terms.shape[-1] > 1:
        if terms.shape[-1] % 2:
            terms = np.concatenate([terms, np.zeros_like(terms[..., :1])], -1)
        terms = terms[..., ::2] + terms[..., 1::2]
    return terms[..., 0]


Arithmetic = Exact | Float32
SIMPLE: dict[str, Callable[..., np.ndarray]] = {
    "add": lambda n, x, y: x + y,
    "sub": lambda n, x, y: x - y,
    "mul": lambda n, x, y: x * y,
    "div": lambda n, x, y: x / y,
    "neg": lambda n, x: -x,
    "abs": lambda n, x: abs(x),
    "square": lambda n, x: x * x,
    "reciprocal": lambda n, x: (x * 0 + 1) / x,
    "relu": lambda n, x: np.maximum(x, x * 0),
    "leaky_relu": lambda n, x: np.maximum(x, x * _like(x, n.attrs["alpha"])),
    "maximum": lambda n, x, y: np.maximum(x, y),
    "minimum": lambda n, x, y: np.minimum(x, y),
    "reshape": lambda n, x: x.reshape(len(x), *n.shape),
    "transpose": lambda n, x: x.transpose(
        *range(x.ndim - len(n.attrs["perm"])), *(x.ndim + p for p in n.attrs["perm"])
    ),
    "concat": lambda n, *parts: np.concatenate(parts, n.attrs["axis"]),
    "slice": lambda n, x: _sliced(n, x),
    "gather": lambda n, x: np.take(x, n.attrs["indices"], n.attrs["axis"]),
    "reduce_max": lambda n, x: x.max(n.attrs["axes"], keepdims=n.attrs["keepdims"]),
    "reduce_sum": lambda n, x: _summed(n, x),
    "cumsum": lambda n, x: np.cumsum(x, n.attrs["axis"]),
}


def _like(x: np.ndarray, number: float) -> Any:
    return Fraction(number) if x.dtype == object else x.dtype.type(number)


def _summed(node: Node, x: np.ndarray) -> np.ndarray:
    return np.sum(x, axis=node.attrs["axes"], keepdims=node.attrs["keepdims"])


def _sliced(node: Node, x: np.ndarray) -> np.ndarray:
    index = [slice(None)] * x.ndim
    for parts in zip(*(node.attrs[k] for k in ("axes", "starts", "ends", "steps")), strict=True):
        index[parts[0]] = slice(*parts[1:])
    return x[tuple(index)]


def exact_values(graph: Graph, *points: np.ndarray) -> dict[str, np.ndarray]:
    """Every node at points ``(P, *shape)``, one array per input, as fractions."""
    return values(graph, Exact(), *points)


def values(graph: Graph, arithmetic: Arithmetic, *points: np.ndarray) -> dict[str, np.ndarray]:
    """Every node's value ``(P, *shape)`` by name.

    Raises:
        KeyError: an operator this file does not know.
    """
    given, found = iter(points), {}
    for node in graph.nodes:
        if node.op == INPUT:
            found[node.name] = arithmetic.lift(next(given))
            continue
        operands = [found.get(name, graph.constants.get(name)) for name in node.inputs]
        constant = [name in graph.constants for name in node.inputs]
        if node.op in PRODUCTS:
            weight, bias = _matrix(graph, node)
            x = operands[0].reshape(len(operands[0]), -1)
            y = arithmetic.affine(
                x, arithmetic.lift(weight), None if bias is None else arithmetic.lift(bias)
            )
            found[node.name] = y.reshape(len(x), *node.shape)
            continue
        lifted = [arithmetic.lift(v) if c else v for v, c in zip(operands, constant, strict=True)]
        if node.op == "batch_norm":
            wide = [v.reshape(-1, *(1,) * (len(node.shape) - 2)) for v in lifted[1:]]
            found[node.name] = arithmetic.normalised(lifted[0], *wide, node.attrs["eps"])
        else:
            found[node.name] = SIMPLE[node.op](node, *lifted)
    return found


def _matrix(graph: Graph, node: Node) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights ``(outputs, inputs)`` and bias of a convolution or dense layer, all flat."""
    shape = graph.by_name[node.inputs[0]].shape
    size, op = math.prod(shape), REGISTRY.ops[node.op]
    weight, bias = (
        torch.as_tensor(np.asarray(graph.constants[name])) if name else None
        for name in node.inputs[1:3]
    )
    assert weight is not None
    shapes = (shape, tuple(weight.shape), () if bias is None else tuple(bias.shape))
    site = Site(node.name, node.attrs, shapes, (True, False, False), node.shape)
    units = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    matrix = op.forward(site, units, weight.double(), None).reshape(size, -1).T.numpy()
    if bias is None:
        return matrix, None
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    return matrix, op.forward(site, zero, weight.double(), bias.double()).reshape(-1).numpy()
