"""Small random networks of many shapes, for every test of a bound method.

A *body* grows a network from a flat value of n elements, each roughly in [-1, 1]; `over` puts it
behind an input of any shape and range. All weights are float32 numbers (kept in float64 arrays), so
that one network has one meaning in either precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from certify import ops
from certify.core.graph import Graph
from certify.core.region import Product, Region
from certify.ops.builder import Builder, Value

REGISTRY = ops.load()
Body = Callable[[Builder, Value, np.random.Generator], Value]


def single(array: Any) -> np.ndarray:
    """The nearest float32 numbers, as float64."""
    return np.asarray(array, dtype=np.float32).astype(np.float64)


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random weights of the usual size for ``(out, in, ...)``."""
    return single(rng.normal(size=shape) * math.sqrt(2 / max(1, math.prod(shape[1:]))))


def dense(b: Builder, x: Value, weight: np.ndarray, bias: np.ndarray | None = None) -> Value:
    return b.add("linear", x, b.constant(weight), None if bias is None else b.constant(bias))


def layer(b: Builder, x: Value, width: int, rng: np.random.Generator) -> Value:
    """A dense layer with random weights and bias."""
    return dense(b, x, weights(rng, width, x.shape[-1]), single(0.3 * rng.normal(size=width)))


def flat(b: Builder, x: Value) -> Value:
    return b.add("reshape", x, shape=(math.prod(x.shape),))


# -- bodies ---------------------------------------------------------------------------------------


def mlp(widths: Sequence[int] = (7, 6, 3), activation: str = "relu", attrs: Any = None) -> Body:
    def body(b: Builder, x: Value, rng: np.random.Generator) -> Value:
        for width in widths[:-1]:
            x = b.add(activation, layer(b, x, width, rng), **dict(attrs or {}))
        return layer(b, x, widths[-1], rng)

    return body


def elementwise() -> dict[str, Body]:
    """A body for every elementwise operator in the registry, over its own range of arguments."""
    found: dict[str, Body] = {}
    for name, op in REGISTRY.ops.items():
        example = op.examples[0]
        operand = example.operands[0]
        if op.relaxed is None or len(example.operands) != 1:
            continue
        if tuple(op.shape(example.attrs, operand)) != operand or name == "softmax":
            continue
        found[name] = _bend(name, example)
    return found


def _bend(name: str, example: Any) -> Body:
    middle, reach = (example.low + example.high) / 2, (example.high - example.low) / 2

    def body(b: Builder, x: Value, rng: np.random.Generator) -> Value:
        weight = weights(rng, 6, x.shape[-1])
        weight *= 2.0 ** -math.ceil(math.log2(np.abs(weight).sum(1).max()))  # stays within [-1, 1]
        z = dense(b, x, single(reach * weight), single(np.full(6, middle)))
        return layer(b, b.add(name, z, **example.attrs), 3, rng)

    return body


def convolutional(b: Builder, x: Value, rng: np.random.Generator) -> Value:
    """Convolution, batch norm, overlapping max pooling, strided convolution, mean pooling."""
    z = x if len(x.shape) == 4 else b.add("reshape", layer(b, x, 72, rng), shape=(1, 2, 6, 6))
    z = b.add(
        "conv",
        z,
        b.constant(weights(rng, 3, z.shape[1], 3, 3)),
        b.constant(single(0.2 * rng.normal(size=3))),
        pads=(1, 0, 1, 0),
        strides=(1, 1),
    )
    statistics = [single(rng.uniform(0.5, 1.5, size=3)) for _ in range(2)]
    scale, shift = single(rng.normal(size=3)), single(0.2 * rng.normal(size=3))
    mean, var = single(0.1 * statistics[0]), statistics[1]
    z = b.add("batch_norm", z, *(b.constant(c) for c in (scale, shift, mean, var)), eps=1e-5)
    z = b.add("relu", z)
    z = b.add(
        "conv",
        z,
        b.constant(weights(rng, 4, 3, 3, 3)),
        b.constant(single(0.2 * rng.normal(size=4))),
        pads=(1, 1, 1, 1),
        strides=(1, 1),
    )
    z = b.add("relu", z)
    z = b.add(
        "conv", z, b.constant(weights(rng, 2, 4, 2, 2)), None, pads=(0, 1, 1, 0), strides=(2, 1)
    )
    z = _max_pool(b, b.add("relu", z))
    z = b.add("average_pool", z, kernel=(2, 2), strides=(1, 2))
    return layer(b, flat(b, z), 3, rng)


def _max_pool(b: Builder, x: Value) -> Value:
    """2x2 windows at stride 1, as the importers write it: gathered, then reduced."""
    C, H, W = x.shape[-3:]
    corner = (np.arange(H - 1)[:, None] * W + np.arange(W - 1)).reshape(-1, 1)
    taken = b.add(
        "gather",
        b.add("reshape", x, shape=(C, H * W)),
        indices=corner + np.array([0, 1, W, W + 1]),
        axis=-1,
    )
    best = b.add("reduce_max", taken, axes=(-1,), keepdims=False)
    return b.add("reshape", best, shape=(C, H - 1, W - 1))


def strided(b: Builder, x: Value, rng: np.random.Generator) -> Value:
    """Two convolutions with nothing between them: windows through strides and over edges."""
    z = b.add("relu", layer(b, x, 81, rng))
    z = b.add("reshape", z, shape=(1, 1, 9, 9))
    first, second = weights(rng, 2, 1, 3, 3), weights(rng, 2, 2, 2, 2)
    z = b.add("conv", z, b.constant(first), None, pads=(1, 0, 0, 1), strides=(2, 2))
    z = b.add("conv", z, b.constant(second), None, pads=(1, 0, 0, 1), strides=(1, 1))
    return layer(b, flat(b, b.add("relu", z)), 3, rng)


def upsampling(b: Builder, x: Value, rng: np.random.Generator) -> Value:
    """Transposed convolution with padding and stride."""
    z = b.add("reshape", layer(b, x, 18, rng), shape=(2, 3, 3))
    z = b.add(
        "conv_transpose",
        z,
        b.constant(weights(rng, 2, 2, 3, 3)),
        b.constant(single(0.2 * rng.normal(size=2))),
        strides=(2, 1),
        pads=(1, 0, 0, 1),
    )
    z = b.add("relu", z)
    z = b.add(
        "conv_transpose",
        z,
        b.constant(weights(rng, 2, 1, 2, 2)),
        None,
        strides=(1, 1),
        pads=(0, 1, 1, 0),
    )
    return layer(b, flat(b, b.add("relu", z)), 3, rng)


def residual(b: Builder, x: Value, rng: np.random.Generator) -> Value:
    """Two skip connections, one of them around a convolution pair."""
    z = b.add("reshape", layer(b, x, 32, rng), shape=(2, 4, 4))
    for _ in range(2):
        inner = z
        for _ in range(2):
            kernel = b.constant(weights(rng, 2, 2, 3, 3))
            inner = b.add("relu", inner)
            inner = b.add(
                "conv",
                inner,
                kernel,
                b.constant(single(0.1 * rng.normal(size=2))),
                pads=(1, 1, 1, 1),
                strides=(1, 1),
            )
        z = b.add("add", z, inner)
    return layer(b, flat(b, b.add("relu", z)), 3, rng)


def branched(b: Builder, x: Value, rng: np.random.Generator) -> Value:
    """Slices, a concatenation, a subtraction, a transpose and a cumulative sum that meet again."""
    z = layer(b, x, 12, rng)
    left = b.add("slice", z, axes=(-1,), starts=(0,), ends=(8,), steps=(1,))
    right = b.add("slice", z, axes=(-1,), starts=(0,), ends=(12,), steps=(3,))
    right = b.add("gather", right, indices=np.array([3, 2, 1, 0, 0, 1, 2, 3]), axis=-1)
    left, right = b.add("relu", left), b.add("abs", b.add("neg", right))
    joined = b.add("concat", left, b.add("sub", left, right), axis=-1)
    turned = b.add("transpose", b.add("reshape", joined, shape=(4, 4)), perm=(-1, -2))
    summed = b.add("cumsum", turned, axis=-1, exclusive=False, reverse=False)
    mixed = b.add("leaky_relu", layer(b, flat(b, summed), 6, rng), alpha=0.125)
    return layer(b, b.add("concat", mixed, right, axis=-1), 3, rng)


def attention(b: Builder, x: Value, rng: np.random.Generator) -> Value:
    """One head over three tokens: two products of variables and a softmax."""
    tokens = b.add("reshape", layer(b, x, 12, rng), shape=(3, 4))
    q, k, v = (layer(b, tokens, 4, rng) for _ in range(3))
    scores = b.add("matmul", q, b.add("transpose", k, perm=(-1, -2)))
    scores = b.add("mul", scores, b.constant(np.asarray(0.25)))
    mixed = b.add("matmul", b.add("softmax", scores, axis=-1), v)
    return layer(b, flat(b, b.add("relu", b.add("add", mixed, tokens))), 3, rng)


def arithmetic(b: Builder, x: Value, rng: np.random.Generator) -> Value:
    """Products, a square, a reciprocal, maxima and minima of variables."""
    first, second = layer(b, x, 5, rng), layer(b, x, 5, rng)
    product = b.add("mul", first, second)
    below = b.add("add", b.add("square", first), b.constant(np.asarray(1.0)))
    quotient = b.add("mul", second, b.add("reciprocal", below))
    high, low = b.add("maximum", product, quotient), b.add("minimum", first, second)
    return layer(b, b.add("concat", high, low, quotient, axis=-1), 3, rng)


def wild(b: Builder, x: Value, rng: np.random.Generator) -> Value:
    """Weights over 2^-12 .. 2^12 with columns that nearly cancel (soundness of rounding)."""
    for width in (8, 8, 3):
        weight = np.ldexp(
            rng.normal(size=(width, x.shape[-1])), rng.integers(-12, 13, size=(width, 1))
        )
        twin = rng.integers(x.shape[-1])
        weight[:, twin] = -weight[:, 0] * (1 + rng.integers(0, 3, size=width) * 2.0**-22)
        bias = np.ldexp(rng.normal(size=width), rng.integers(-12, 13, size=width))
        x = dense(b, x, single(weight), single(bias))
        if width != 3:
            x = b.add("relu", x)
    return x


BODIES: dict[str, Body] = {
    "mlp": mlp(),
    "deep": mlp((6, 6, 6, 5, 3)),
    "convolutional": convolutional,
    "strided": strided,
    "upsampling": upsampling,
    "residual": residual,
    "branched": branched,
    "attention": attention,
    "arithmetic": arithmetic,
}
ELEMENTWISE = elementwise()


# -- whole networks -------------------------------------------------------------------------------


def grow(body: Body, shape: tuple[int, ...] = (5,), seed: int = 0) -> Graph:
    """A network whose input of ``shape`` is already about [-1, 1]; a map goes in as it is."""
    b = Builder()
    x = b.input("x", shape)
    whole = x if len(shape) == 4 and body is convolutional else flat(b, x)
    return b.finish(body(b, whole, np.random.default_rng(seed)))


def over(region: Region, body: Body, seed: int = 0) -> Graph:
    """A network for ``region``: each input is first brought to about [-1, 1]."""
    b, parts = Builder(), region.parts if isinstance(region, Product) else (region,)
    values = [_brought(b, f"x{i}", part) for i, part in enumerate(parts)]
    whole = values[0] if len(values) == 1 else b.add("concat", *values, axis=-1)
    return b.finish(body(b, whole, np.random.default_rng(seed)))


def _brought(b: Builder, name: str, region: Region) -> Value:
    lower, upper = (np.asarray(e) for e in region.ends())
    low, high = lower.min(axis=0).reshape(-1), upper.max(axis=0).reshape(-1)
    middle, reach = single((low + high) / 2), (high - low) / 2
    exponent = np.frexp(np.where(reach > 0, reach, 1.0))[1]
    x = flat(b, b.input(name, region.shape))
    return b.add("mul", b.add("sub", x, b.constant(middle)), b.constant(np.ldexp(1.0, -exponent)))


def names(graph: Graph) -> list[str]:
    """The names of all nodes."""
    return [node.name for node in graph.nodes]
