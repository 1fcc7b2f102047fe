"""Small generated networks as graphs, and their exact evaluation."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from certify.core.graph import Graph, Node


class _Maker:
    def __init__(self, n):
        self.nodes = [Node("x", "input", (), {}, (1, n))]
        self.constants = {}

    def add(self, op, inputs, shape, attrs=None):
        name = f"{op}{len(self.nodes)}"
        self.nodes.append(Node(name, op, tuple(inputs), attrs or {}, shape))
        return name

    def constant(self, value):
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype=np.float32)
        return name

    def graph(self, output):
        return Graph(tuple(self.nodes), self.constants, output, {"dtype": "float32"})


def chain(widths, rng, scale=1.0):
    """Linear, ReLU, ..., linear; one layer leaky, one as matmul and add."""
    make = _Maker(widths[0])
    at = make.add(
        "sub", ["x", make.constant(rng.normal(size=(1, widths[0])) * scale)], (1, widths[0])
    )
    for k in range(1, len(widths)):
        n, m = int(widths[k - 1]), int(widths[k])
        weight = rng.normal(size=(m, n)) / (scale if k == 1 else 1.0)
        if k % 2:
            at = make.add(
                "linear", [at, make.constant(weight), make.constant(rng.normal(size=m))], (1, m)
            )
        else:
            at = make.add("matmul", [at, make.constant(weight.T)], (1, m))
            at = make.add("add", [at, make.constant(rng.normal(size=(1, m)))], (1, m))
        if k + 1 < len(widths):
            leaky = k == 2
            at = make.add(
                "leaky_relu" if leaky else "relu", [at], (1, m), {"alpha": 0.125} if leaky else {}
            )
    return make.graph(at)


def ladder_net(widths, rng, scale=1.0):
    """A chain whose output also adds a linear function of the inputs and of the first layer."""
    make = _Maker(widths[0])
    n, out = int(widths[0]), int(widths[-1])
    at, first, size = "x", None, n
    for width in widths[1:-1]:
        weight = rng.normal(size=(int(width), size)) / (scale if first is None else 1.0)
        at = make.add(
            "linear",
            [at, make.constant(weight), make.constant(rng.normal(size=width))],
            (1, int(width)),
        )
        at = make.add("relu", [at], (1, int(width)))
        first, size = first or at, int(width)
    ends = [(at, size), (first, int(widths[1])), ("x", n)]
    total = None
    for name, count in ends:
        weight = rng.normal(size=(out, count)) / (scale if name == "x" else 1.0)
        part = make.add("linear", [name, make.constant(weight)], (1, out))
        total = part if total is None else make.add("add", [total, part], (1, out))
    return make.graph(total)


def run(graph, x):
    """The graph's output at a rational point, exactly: a list of fractions."""
    values = {"x": list(x)}

    def operand(name):
        return values.get(name, graph.constants.get(name))

    def flat(value):
        if isinstance(value, list):
            return value
        return [Fraction(float(v)) for v in np.asarray(value).reshape(-1)]

    for node in graph.nodes[1:]:
        a = values[node.inputs[0]]
        if node.op in ("add", "sub"):
            b, sign = flat(operand(node.inputs[1])), 1 if node.op == "add" else -1
            found = [u + sign * v for u, v in zip(a, b, strict=True)]
        elif node.op in ("linear", "matmul"):
            weight = graph.constants[node.inputs[1]]
            weight = weight if node.op == "linear" else weight.T
            found = [
                sum((Fraction(float(w)) * v for w, v in zip(row, a, strict=True)), Fraction(0))
                for row in weight
            ]
            if len(node.inputs) > 2:
                found = [u + v for u, v in zip(found, flat(operand(node.inputs[2])), strict=True)]
        else:
            slope = Fraction(float(node.attrs.get("alpha", 0.0)))
            found = [v if v > 0 else slope * v for v in a]
        values[node.name] = found
    return values[graph.output]
