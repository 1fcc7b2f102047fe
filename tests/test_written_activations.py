"""Activations that models spell out, recognised and replaced exactly."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch

from certify import ops
from certify.core.graph import Graph
from certify.ops.builder import Builder, Value
from certify.ops.gelu_pattern import match_gelu
from tests.graph_values import run

ops.load()

HALF, TANH = np.float32(0.5), np.float32(math.sqrt(2 / math.pi))


def _chain(kind: str) -> Graph:
    """A written activation of a linear map of the input, as exporters emit it."""
    b = Builder()
    x = b.add("mul", b.input("x", (4,)), b.constant(np.float64([1.0, -2.0, 0.5, 3.0])))

    def times(u: Value, v: Any) -> Value:
        return b.add("mul", u, v if isinstance(v, Value) else b.constant(np.asarray(v)))

    def plus(u: Value, v: Any) -> Value:
        return b.add("add", u, v if isinstance(v, Value) else b.constant(np.asarray(v)))

    one, root = np.float32(1), np.float32(math.sqrt(2))
    if kind.startswith("erf"):
        gate = plus(b.add("erf", b.add("div", x, b.constant(np.asarray(root)))), one)
        forms = {
            "erf-1": lambda: times(times(x, HALF), gate),
            "erf-2": lambda: times(times(x, gate), HALF),
            "erf-3": lambda: times(x, times(gate, HALF)),
            "erf-4": lambda: plus(
                times(x, HALF),
                times(times(x, HALF), b.add("erf", times(x, np.float32(math.sqrt(0.5))))),
            ),
        }
        return b.finish(forms[kind]())
    if kind.startswith("tanh"):
        cube = b.add("pow", x, exponent=3.0) if kind == "tanh-1" else times(b.add("square", x), x)
        inner = times(plus(x, times(cube, np.float32(0.044715))), TANH)
        return b.finish(times(times(x, HALF), plus(b.add("tanh", inner), one)))
    if kind == "silu":
        return b.finish(times(x, b.add("sigmoid", x)))
    if kind == "quick":
        return b.finish(times(x, b.add("sigmoid", times(x, np.float32(1.702)))))
    if kind == "mish":
        return b.finish(times(x, b.add("tanh", b.add("softplus", x, beta=1.0, threshold=20.0))))
    if kind == "hard-1":
        clipped = b.add("clip", plus(x, np.float32(3)), min=0.0, max=6.0)
        return b.finish(b.add("div", times(x, clipped), b.constant(np.asarray(np.float32(6)))))
    return b.finish(times(x, b.add("hard_sigmoid", x, alpha=1 / 6, beta=0.5)))


WRITTEN = {
    "erf-1": "gelu", "erf-2": "gelu", "erf-3": "gelu", "erf-4": "gelu", "tanh-1": "tanh_gate",
    "tanh-2": "tanh_gate", "silu": "silu", "quick": "silu", "mish": "mish",
    "hard-1": "hard_swish", "hard-2": "hard_swish", "softsign-1": "softsign",
    "softsign-2": "softsign", "log-sigmoid": "log_sigmoid",
}  # fmt: skip


def _short(kind: str) -> Graph:
    """An activation written in two or three calls."""
    b = Builder()
    x = b.add("mul", b.input("x", (4,)), b.constant(np.float64([1.0, -2.0, 0.5, 3.0])))
    if kind == "log-sigmoid":
        return b.finish(b.add("log", b.add("sigmoid", x)))
    parts = [b.add("abs", x), b.constant(np.float64(1))]
    size = b.add("add", *(parts if kind == "softsign-1" else parts[::-1]))
    factors = [x, b.add("reciprocal", size)]
    return b.finish(b.add("mul", *(factors if kind == "softsign-1" else factors[::-1])))


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_written_activation_becomes_its_operator(kind: str) -> None:
    graph = _short(kind) if kind[:3] in ("sof", "log") else _chain(kind)
    matched = match_gelu(graph)
    used = [n.op for n in matched.nodes]
    assert WRITTEN[kind] in used
    assert not {
        "erf",
        "tanh",
        "sigmoid",
        "softplus",
        "clip",
        "hard_sigmoid",
        "pow",
        "square",
        "abs",
        "reciprocal",
        "log",
    } & set(used)
    assert matched.output == graph.output and set(matched.constants) <= {
        name for node in matched.nodes for name in node.inputs
    }
    x = torch.linspace(-6, 6, 400).double()[:, None].expand(-1, 4)
    torch.testing.assert_close(run(matched, x), run(graph, x), rtol=1e-13, atol=1e-14)


def test_a_matched_gelu_is_the_written_one_within_its_allowance() -> None:
    """At 50 digits, with the constants as stored: off by at most 2^-50 |x|."""
    graph = match_gelu(_chain("erf-1"))
    scale, factor = (float(graph.constants[n.inputs[1]]) for n in graph.nodes[2:] if n.op == "mul")
    root = mpmath.mpf(float(np.float32(math.sqrt(2))))
    with mpmath.workdps(50):
        for x in np.linspace(-8, 8, 401):
            written = mpmath.mpf(x) * 0.5 * (1 + mpmath.erf(mpmath.mpf(x) / root))
            z = scale * mpmath.mpf(x)
            matched = factor * z * mpmath.ncdf(z)
            assert abs(written - matched) <= mpmath.mpf(2) ** -51 * abs(x)


@pytest.mark.parametrize("change", ["two", "shape", "trainable", "other"])
def test_what_is_not_an_activation_is_left_alone(change: str) -> None:
    b = Builder()
    x = b.input("x", (3,))
    two = torch.tensor(2.0, requires_grad=True) if change == "trainable" else np.float64(2)
    inner = b.add("mul", x, b.constant(two)) if change != "other" else b.input("w", (3,))
    one = np.ones(3) if change == "shape" else np.float64(1.5 if change == "two" else 1.0)
    gate = b.add("add", b.add("erf", inner), b.constant(one))
    graph = b.finish(b.add("mul", x, gate))
    assert match_gelu(graph) is graph


@pytest.mark.parametrize("change", ["two", "base", "shape"])
def test_what_is_not_a_softsign_is_left_alone(change: str) -> None:
    b = Builder()
    x = b.input("x", (1, 3))
    base = b.input("w", (1, 3)) if change == "base" else x
    if change == "shape":
        base = b.add("reduce_sum", x, axes=(-1,), keepdims=True)
    size = b.add("add", b.add("abs", base), b.constant(np.float64(2.0 if change == "two" else 1.0)))
    graph = b.finish(b.add("mul", x, b.add("reciprocal", size)))
    assert match_gelu(graph) is graph
