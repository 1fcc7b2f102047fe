"""Gradients of rows of the output with respect to the input, as a graph.

Reverse-mode differentiation written down as nodes. At a kink the derivative is a step function, so
bounds over a region hold for the gradient almost everywhere in it, which is what makes a Lipschitz
constant: their largest dual norm over a convex region is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from certify.core.errors import BadInput, Unsupported
from certify.core.graph import Graph, Node
from certify.ops import load
from certify.ops.builder import Builder, Value

Pull = Callable[["Tape", Node, Value], None]


class Tape:
    """The forward graph, and the derivative of the output with respect to each node.

    Derivatives are ``(R, *node shape)``, one row per row of the output.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.b = graph, Builder()
        self.b.prefix = "gradient"
        self.b.include(graph)
        self.found: dict[str, Value] = {}

    def value(self, name: str) -> Value:
        """A node's or constant's own value."""
        if name in self.graph.by_name:
            return Value(name, self.graph.by_name[name].shape)
        array = self.graph.constants[name]
        return Value(name, tuple(array.shape), array)

    def send(self, name: str, gradient: Value) -> None:
        """Add to the derivative with respect to a node; constants have none."""
        if name in self.graph.by_name:
            there = self.found.get(name)
            self.found[name] = gradient if there is None else self.b.add("add", *self.b.broadcast(
                there, gradient))

    def times(self, gradient: Value, factor: Value) -> Value:
        """Elementwise; ``factor`` has the node's shape, the gradient one more axis in front."""
        b = self.b
        if factor.constant is None:
            factor = b.add("reshape", factor, shape=(1, *factor.shape))
        return b.add("mul", *b.broadcast(gradient, factor))

    def number(self, value: float) -> Value:
        """A constant."""
        return self.b.constant(np.float64(value))


def jacobian_graph(graph: Graph, rows: np.ndarray) -> Graph:
    """Gradients ``(R, *input shape)`` of ``rows (R, outputs)`` of a network with one input.

    Raises:
        BadInput: several inputs, or rows that do not fit.
        Unsupported: operators without a derivative here; all are named.
    """
    load()
    size = math.prod(graph.output_shape)
    if len(graph.inputs) != 1:
        raise BadInput(f"gradients want a network with one input, this has {len(graph.inputs)}")
    if rows.ndim != 2 or rows.shape[1] != size or not len(rows):
        raise BadInput(f"rows of shape {rows.shape} do not fit {size} outputs; give (R, {size})")
    live = list(graph.live())
    wrong = sorted({n.op for n in live if n.op != "input" and n.op not in PULLS})
    if wrong:
        raise Unsupported(f"no derivative is known for {', '.join(wrong)}; known are "
                          f"{', '.join(sorted(PULLS))}")
    tape = Tape(graph)
    tape.found[graph.output] = tape.b.constant(
        rows.reshape(len(rows), *graph.output_shape), "gradient/rows")
    for node in reversed(live):
        gradient = tape.found.get(node.name)
        if node.op != "input" and gradient is not None:
            PULLS[node.op](tape, node, gradient)
    result = tape.found.get(graph.inputs[0].name)
    if result is None or result.constant is not None:
        raise Unsupported("the gradient does not depend on the input: the network is affine, and "
                          "its rows are the gradient")
    return tape.b.finish(result)


def _linear(tape: Tape, node: Node, gradient: Value) -> None:
    weight = tape.value(node.inputs[1])
    b = tape.b
    if weight.constant is None:
        raise Unsupported(f"{node.name}: the weights vary")
    turned = b.add("transpose", weight, perm=(-1, -2))
    tape.send(node.inputs[0], b.add("linear", gradient, turned, None))


def _conv(tape: Tape, node: Node, gradient: Value) -> None:
    """The transposed convolution, row by row of the gradient as a batch."""
    b, weight = tape.b, tape.value(node.inputs[1])
    x = tape.value(node.inputs[0])
    spatial = weight.rank - 2
    attrs = node.attrs
    lead = node.shape[: len(node.shape) - spatial - 1]
    if math.prod(lead) != 1:
        raise Unsupported(f"{node.name}: a convolution over a batch")
    rows = gradient.shape[0]
    flat = b.add("reshape", gradient, shape=(rows, *node.shape[-spatial - 1:]))
    pads, sizes = tuple(attrs["pads"]), x.shape[-spatial:]
    extra = tuple(
        sizes[i] - ((node.shape[-spatial + i] - 1) * attrs["strides"][i] - pads[i]
                    - pads[spatial + i] + attrs["dilations"][i] * (weight.shape[2 + i] - 1) + 1)
        for i in range(spatial))
    back = b.add("conv_transpose", flat, weight, None, strides=tuple(attrs["strides"]), pads=pads,
                 dilations=tuple(attrs["dilations"]), groups=attrs["groups"], output_padding=extra)
    tape.send(node.inputs[0], b.add("reshape", back, shape=(rows, *x.shape)))


def _relu(tape: Tape, node: Node, gradient: Value) -> None:
    tape.send(node.inputs[0], tape.times(gradient, _step(tape, tape.value(node.inputs[0]))))


def _leaky_relu(tape: Tape, node: Node, gradient: Value) -> None:
    slope = float(node.attrs.get("alpha", node.attrs.get("slope", 0.01)))
    b = tape.b
    step = b.add("mul", _step(tape, tape.value(node.inputs[0])), tape.number(1 - slope))
    tape.send(node.inputs[0], tape.times(gradient, b.add("add", step, tape.number(slope))))


def _step(tape: Tape, x: Value) -> Value:
    """1 above 0, 0 below; at 0 its bounds are both."""
    return tape.b.add("heaviside", x, at_zero=0.5)


def _sigmoid(tape: Tape, node: Node, gradient: Value) -> None:
    """``y (1 - y)`` as ``(1 - tanh(x/2)^2) / 4``: one square of one variable, not a product."""
    b = tape.b
    half = b.add("mul", tape.value(node.inputs[0]), tape.number(0.5))
    square = b.add("square", b.add("tanh", half))
    slope = b.add("mul", b.add("sub", tape.number(1.0), square), tape.number(0.25))
    tape.send(node.inputs[0], tape.times(gradient, slope))


def _tanh(tape: Tape, node: Node, gradient: Value) -> None:
    b = tape.b
    square = b.add("square", tape.value(node.name))
    tape.send(node.inputs[0], tape.times(gradient, b.add("sub", tape.number(1.0), square)))


def _softplus(tape: Tape, node: Node, gradient: Value) -> None:
    tape.send(node.inputs[0],
              tape.times(gradient, tape.b.add("sigmoid", tape.value(node.inputs[0]))))


def _sum(tape: Tape, node: Node, gradient: Value) -> None:
    b = tape.b
    for k, name in enumerate(node.inputs):
        if name not in tape.graph.by_name:
            continue
        sent = b.add("neg", gradient) if node.op == "sub" and k == 1 else gradient
        tape.send(name, _gathered(b, sent, node.shape, tape.value(name).shape))


def _neg(tape: Tape, node: Node, gradient: Value) -> None:
    tape.send(node.inputs[0], tape.b.add("neg", gradient))


def _product(tape: Tape, node: Node, gradient: Value) -> None:
    """Of a variable and a constant; ``div`` by a constant."""
    b = tape.b
    values = [tape.value(name) for name in node.inputs]
    for mine, other in ((0, 1), (1, 0)):
        if values[mine].constant is not None:
            continue
        if node.op == "div" and mine == 1:
            raise Unsupported(f"{node.name}: a varying divisor")
        factor = values[other]
        if factor.constant is not None and node.op == "div":
            factor = b.add("reciprocal", factor)
        sent = tape.times(gradient, b.align(factor, len(node.shape)) if factor.constant is None
                          else factor)
        tape.send(node.inputs[mine], _gathered(b, sent, node.shape, values[mine].shape))


def _gathered(b: Builder, gradient: Value, shape: tuple[int, ...],
              wanted: tuple[int, ...]) -> Value:
    """Summed over the axes along which an operand was broadcast."""
    axes = tuple(k for k in range(-len(wanted), 0) if wanted[k] == 1 and shape[k] != 1)
    if axes:
        gradient = b.add("reduce_sum", gradient, axes=axes, keepdims=True)
    return gradient


def _reshape(tape: Tape, node: Node, gradient: Value) -> None:
    shape = (gradient.shape[0], *tape.value(node.inputs[0]).shape)
    tape.send(node.inputs[0], tape.b.add("reshape", gradient, shape=shape))


PULLS: Mapping[str, Pull] = {
    "linear": _linear, "conv": _conv, "relu": _relu, "leaky_relu": _leaky_relu,
    "sigmoid": _sigmoid, "tanh": _tanh, "softplus": _softplus, "add": _sum, "sub": _sum,
    "neg": _neg, "mul": _product, "div": _product, "reshape": _reshape,
}
"""How derivatives pass backward through each operator."""
