"""Functions of a network's output (and input) appended to it: specifications that are not linear.

Qin et al. 2019 relax such specifications one by one; here each is a graph of ordinary operators, so
every bound method applies, and what is left to say is a linear specification of the new output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from certify.core.errors import BadInput, one_line
from certify.core.graph import Graph, renamed
from certify.core.registry import enter
from certify.ops import load
from certify.ops.builder import Builder, Value

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Output:
    """One function.

    Attributes:
        name: as users write it.
        build: adds the nodes: ``(builder, inputs, output, settings) -> result``; the output is
            flat, ``(n,)``.
        settings: names of the settings it needs.
        summary: one line.
        copies: how many times the network itself occurs, each with its own input.
    """

    name: str
    build: Callable[[Builder, tuple[Value, ...], tuple[Value, ...], Settings], Value]
    settings: tuple[str, ...]
    summary: str
    copies: int = 1


OUTPUTS: dict[str, Output] = {}
"""Every function by name."""


def register(output: Output) -> Output:
    """Enter a function.

    Raises:
        ValueError: the name is taken.
    """
    return enter(OUTPUTS, output.name, output, "output")


def appended(graph: Graph, kind: str, settings: Settings) -> Graph:
    """``graph`` followed by the function ``kind``; its inputs stay the inputs.

    Raises:
        BadInput: an unknown function, or settings that are missing, too many or of the wrong size.
    """
    if kind not in OUTPUTS:
        raise BadInput(f"there is no output {one_line(kind, 40)!r}; choose from "
                       f"{', '.join(OUTPUTS)}")
    chosen = OUTPUTS[kind]
    if set(settings) != set(chosen.settings):
        wanted = ", ".join(chosen.settings) or "no settings"
        raise BadInput(f"output {kind!r} takes {wanted}; got {', '.join(settings) or 'none'}")
    load()
    parts = [graph, *(renamed(graph, f"copy{i}/") for i in range(2, chosen.copies + 1))]
    b = Builder()
    b.prefix = kind
    results = [b.include(part) for part in parts]
    inputs = tuple(Value(n.name, n.shape) for part in parts for n in part.inputs)
    outputs = tuple(
        b.add("reshape", value, shape=(math.prod(value.shape),)) for value in results)
    result = chosen.build(b, inputs, outputs, settings)
    nodes = [n for n in b.nodes if n.op == "input"] + [n for n in b.nodes if n.op != "input"]
    return Graph(tuple(nodes), b.constants, result.name, {})


def _vector(settings: Settings, name: str, size: int) -> np.ndarray:
    found = np.asarray(settings[name], dtype=np.float64).reshape(-1)
    if found.size != size or not np.isfinite(found).all():
        raise BadInput(f"{name} must be {size} finite numbers, got {found.size}")
    return found


def _weighted(b: Builder, x: Value, weights: np.ndarray) -> Value:
    """``weights . x``, ``(1,)``."""
    return b.add("linear", x, b.constant(weights[None]), None)


def _softmax(b: Builder, inputs: tuple[Value, ...], outputs: tuple[Value, ...],
             settings: Settings) -> Value:
    return b.add("softmax", outputs[0], axis=-1)


def _distance(b: Builder, inputs: tuple[Value, ...], outputs: tuple[Value, ...],
              settings: Settings) -> Value:
    probabilities = b.add("softmax", outputs[0], axis=-1)
    return _weighted(b, probabilities, _vector(settings, "distances", outputs[0].shape[0]))


def _excess(b: Builder, inputs: tuple[Value, ...], outputs: tuple[Value, ...],
            settings: Settings) -> Value:
    """``sum_j (d_j - threshold) exp(z_j - z_label)``: negative where the expectation is below."""
    (z,) = outputs
    n, label = z.shape[0], int(settings["label"])
    if not 0 <= label < n:
        raise BadInput(f"label {label} for {n} outputs")
    distances = _vector(settings, "distances", n) - float(settings["threshold"])
    differences = np.eye(n)
    differences[:, label] -= 1
    shifted = b.add("linear", z, b.constant(differences), None)
    return _weighted(b, b.add("exp", shifted), distances)


def _energy_growth(b: Builder, inputs: tuple[Value, ...], outputs: tuple[Value, ...],
                   settings: Settings) -> Value:
    """``E(y) - E(x)`` with ``E(s) = linear . s + 1/2 quadratic . s^2``."""
    (after,) = outputs
    n = after.shape[0]
    if len(inputs) != 1 or math.prod(inputs[0].shape) != n:
        raise BadInput(f"energy growth wants a network from {n} state variables to {n}")
    before = b.add("reshape", inputs[0], shape=(n,))
    linear, half = _vector(settings, "linear", n), 0.5 * _vector(settings, "quadratic", n)
    change = b.add("sub", after, before)
    total = _weighted(b, change, linear)
    # y^2 - x^2 = (y - x)(y + x) would lose that each square is convex: they stay apart.
    for state, sign in ((after, 1.0), (before, -1.0)):
        total = b.add("add", total, _weighted(b, b.add("square", state), sign * half))
    return total


def _digit_sum(b: Builder, inputs: tuple[Value, ...], outputs: tuple[Value, ...],
               settings: Settings) -> Value:
    """The distribution of the sum of two independent labels, ``(2 n - 1,)``."""
    n = outputs[0].shape[0]
    first, second = (b.add("softmax", z, axis=-1) for z in outputs)
    left = b.add("reshape", first, shape=(n, 1))
    right = b.add("reshape", second, shape=(1, n))
    pairs = b.add("reshape", b.add("mul", left, right), shape=(n * n,))
    total = np.add.outer(np.arange(n), np.arange(n)).reshape(-1)
    return b.add("linear", pairs, b.constant(np.eye(2 * n - 1)[total].T.copy()), None)


def _expected_sum(b: Builder, inputs: tuple[Value, ...], outputs: tuple[Value, ...],
                  settings: Settings) -> Value:
    """The expected sum of two independent labels, ``(1,)``."""
    labels = np.arange(float(outputs[0].shape[0]))
    first, second = (_weighted(b, b.add("softmax", z, axis=-1), labels) for z in outputs)
    return b.add("add", first, second)


register(Output("softmax", _softmax, (), "probabilities of the labels"))
register(Output("distance", _distance, ("distances",),
                "expected distance of the label drawn, sum_j d_j p_j"))
register(Output("distance-excess", _excess, ("distances", "threshold", "label"),
                "sum_j (d_j - threshold) exp(z_j - z_label): at most 0 where the expected distance "
                "is at most the threshold"))
register(Output("energy-growth", _energy_growth, ("linear", "quadratic"),
                "E(output) - E(input) with E(s) = linear . s + quadratic . s^2 / 2"))
register(Output("sum-distribution", _digit_sum, (),
                "probabilities of the sum of two labels, for two inputs", copies=2))
register(Output("expected-sum", _expected_sum, (),
                "expected sum of two labels, for two inputs", copies=2))
