"""Chosen weights as inputs: for perturbed, rounded or unknown parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from certify.core.errors import BadInput, Unsupported
from certify.core.graph import Graph, Node
from certify.ops import load
from certify.ops.builder import Builder, Value, as_numpy

Call = Callable[[Builder, Node, Sequence["Value | None"]], Value]


def freed(graph: Graph, names: Sequence[str]) -> Graph:
    """``graph`` with constants ``names`` as further inputs, after its own.

    Where a layer's weights vary, the layer becomes a product of two variables (McCormick's
    envelopes bound it) and a sum.

    Raises:
        BadInput: no such constants, or one twice.
        Unsupported: a constant in a place that must be constant; all are named.
    """
    unknown = [n for n in names if n not in graph.constants]
    if unknown or not names or len(set(names)) < len(names):
        known = ", ".join(list(graph.constants)[:8])
        what = f"no constant {unknown[0]!r}" if unknown else "name each constant once"
        raise BadInput(f"{what}; the network has {known}")
    load()
    _check(graph, names)
    b = Builder()
    values: dict[str, Value | None] = {"": None}
    for node in graph.inputs:
        values[node.name] = b.input(node.name, node.shape)
    for name in names:
        values[name] = b.input(name, tuple(int(n) for n in graph.constants[name].shape))
    for name, array in graph.constants.items():
        if name not in names:
            values[name] = b.constant(array, name)
    for node in graph.nodes:
        if node.name in values:
            continue
        operands = [values[i] for i in node.inputs]
        call = _LAYERS.get(node.op, _plain) if set(names) & set(node.inputs) else _plain
        values[node.name] = call(b, node, operands)
    output = values[graph.output]
    if output is None:
        raise BadInput("the network has no output")
    found = b.finish(output)
    live = {n for node in found.nodes for n in node.inputs}
    missing = [n for n in names if n not in live]
    if missing:
        raise BadInput(f"the output does not depend on {', '.join(missing)}")
    return replace(found, source={})


def weight_names(graph: Graph, least: int = 2) -> list[str]:
    """Constants that multiply in linear layers and convolutions, in the network's order.

    Args:
        least: axes that a weight has at least; biases have one.
    """
    found = [node.inputs[1] for node in graph.nodes
             if node.op in _LAYERS and len(node.inputs) > 1 and node.inputs[1] in graph.constants]
    return [n for n in dict.fromkeys(found) if np.ndim(as_numpy(graph.constants[n])) >= least]


def _check(graph: Graph, names: Sequence[str]) -> None:
    free = set(names)
    wrong = [f"{node.name} ({node.op})" for node in graph.nodes
             if free & set(node.inputs) and node.op not in (*_LAYERS, *_ELEMENTWISE)]
    if wrong:
        raise Unsupported("these operators need constant weights: " + ", ".join(wrong))


def _plain(b: Builder, node: Node, operands: Sequence[Value | None]) -> Value:
    given = operands
    if node.op in _ELEMENTWISE:
        given = b.broadcast(*(v for v in operands if v is not None))
    return b.add(node.op, *given, name=node.name, **node.attrs)


def _linear(b: Builder, node: Node, operands: Sequence[Value | None]) -> Value:
    x, weight, *rest = operands
    if x is None or weight is None:
        raise BadInput(f"{node.name}: an operand is missing")
    if weight.constant is not None and x.constant is None:
        y = b.add("linear", x, weight, None, name=f"{node.name}/product")
    else:
        turned = b.add("transpose", weight, perm=(-1, -2))
        left, right = b.broadcast(x, turned) if x.rank >= 2 else (
            b.add("reshape", x, shape=(1, *x.shape)), turned)
        y = b.add("matmul", left, right, name=f"{node.name}/product")
        if y.shape != node.shape:
            y = b.add("reshape", y, shape=node.shape)
    bias = rest[0] if rest else None
    return y if bias is None else b.add("add", *b.broadcast(y, bias), name=node.name)


def _conv(b: Builder, node: Node, operands: Sequence[Value | None]) -> Value:
    """A convolution as a product of patches and weights: ``(places, taps) @ (taps, channels)``."""
    x, weight, *rest = operands
    if x is None or weight is None:
        raise BadInput(f"{node.name}: an operand is missing")
    if weight.constant is not None:
        y = b.add("conv", x, weight, None, name=f"{node.name}/product", **node.attrs)
    else:
        if node.attrs["groups"] != 1:
            raise Unsupported(f"{node.name}: weights of a grouped convolution cannot be inputs")
        y = _as_product(b, node, x, weight)
    bias = rest[0] if rest else None
    if bias is None:
        return y
    shape = (bias.shape[0], *(1,) * (len(node.shape) - len(_lead(node, weight)) - 1))
    turned = b.add("reshape", bias, shape=shape)
    return b.add("add", *b.broadcast(y, turned), name=node.name)


def _lead(node: Node, weight: Value) -> tuple[int, ...]:
    """Axes in front of the channels: the model's own 1, or none."""
    return node.shape[: len(node.shape) - (weight.rank - 1)]


def _as_product(b: Builder, node: Node, x: Value, weight: Value) -> Value:
    spatial = weight.rank - 2
    pads = tuple(int(p) for p in node.attrs["pads"])
    sizes = x.shape[-spatial:]
    channels = x.shape[-spatial - 1]
    padded = tuple(n + pads[i] + pads[spatial + i] for i, n in enumerate(sizes))
    out = node.shape[-spatial:]
    taps = weight.shape[2:]
    places = [
        np.arange(o)[:, None] * s + np.arange(t)[None, :] * d
        for o, s, t, d in zip(out, node.attrs["strides"], taps, node.attrs["dilations"],
                              strict=True)]
    index = np.zeros((1,) * (2 * spatial), dtype=np.int64)
    for i, place in enumerate(places):
        shape = [1] * (2 * spatial)
        shape[i], shape[spatial + i] = place.shape
        index = index * padded[i] + place.reshape(shape)
    index = np.broadcast_to(index, (*out, *taps)).reshape(-1)
    flat = b.add("pad", x, pads=pads, mode="constant", value=0.0) if any(pads) else x
    flat = b.add("reshape", flat, shape=(channels, int(np.prod(padded))))
    patches = b.add("gather", flat, indices=index, axis=-1)
    count, size = int(np.prod(out)), int(np.prod(taps))
    patches = b.add("reshape", patches, shape=(channels, count, size))
    patches = b.add("transpose", patches, perm=(-2, -3, -1))
    patches = b.add("reshape", patches, shape=(count, channels * size))
    kernel = b.add("reshape", weight, shape=(weight.shape[0], channels * size))
    y = b.add("matmul", patches, b.add("transpose", kernel, perm=(-1, -2)))
    return b.add("reshape", b.add("transpose", y, perm=(-1, -2)), shape=node.shape)


_LAYERS: Mapping[str, Call] = {"linear": _linear, "conv": _conv}
_ELEMENTWISE = ("add", "sub", "mul", "matmul")
