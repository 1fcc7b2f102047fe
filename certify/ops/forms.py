"""Exact algebra over small parts of a graph: polynomials in one node, times at most one gate.

``Form`` stands for ``plain(x) + gated(x) * gate(argument(x))`` with rational coefficients, which
floating-point constants are exactly. `form` reads a node as one in terms of another node.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from certify.core.graph import Graph, Node
from certify.ops.builder import as_numpy

Poly = tuple[Fraction, ...]  # coefficients from degree 0 up, the last one nonzero
X: Poly = (Fraction(0), Fraction(1))
ONE: Poly = (Fraction(1),)
MOST_DEGREE = 6
GATES = ("erf", "tanh", "sigmoid", "softplus", "clip", "hard_sigmoid")
STEPS = ("add", "sub", "neg", "mul", "div", "square", "pow", *GATES)


@dataclass(frozen=True)
class Gate:
    """A function of a polynomial: ``op(argument)`` with the settings of ``op``."""

    op: str
    argument: Poly
    attrs: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Form:
    """``plain + gated * gate``."""

    plain: Poly
    gate: Gate | None = None
    gated: Poly = ()


def trimmed(coefficients: list[Fraction]) -> Poly:
    """The polynomial without leading zeros; the list is used up."""
    while coefficients and coefficients[-1] == 0:
        coefficients.pop()
    return tuple(coefficients)


def added(a: Poly, b: Poly, sign: int = 1) -> Poly:
    """``a + sign * b``."""
    size = max(len(a), len(b))
    wide = [(*p, *([Fraction(0)] * (size - len(p)))) for p in (a, b)]
    return trimmed([p + sign * q for p, q in zip(*wide, strict=True)])


def multiplied(a: Poly, b: Poly) -> Poly:
    """``a * b``."""
    found = [Fraction(0)] * max(len(a) + len(b) - 1, 0)
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            found[i + j] += p * q
    return trimmed(found)


def scalar_constant(graph: Graph, name: str) -> Fraction | None:
    """The exact value of a constant with one element; None for anything else.

    A trainable constant is no constant: it will change.
    """
    array = graph.constants.get(name)
    if array is None or getattr(array, "requires_grad", False):
        return None
    flat = as_numpy(array).reshape(-1)
    if flat.size != 1 or not np.isfinite(flat[0]):
        return None
    return Fraction(float(flat[0]))


def form(
    graph: Graph, name: str, base: str, known: dict[str, Form | None], within: set[str]
) -> Form | None:
    """The node ``name`` in terms of the node ``base``; None where it is not of that kind.

    ``known`` remembers what was found; only nodes in ``within`` are read, which bounds the work.
    """
    if name == base:
        return Form(X)
    if name not in known:
        known[name] = None
        if name in graph.constants:
            value = scalar_constant(graph, name)
            known[name] = None if value is None else Form(trimmed([value]))
        elif name in within and graph.by_name[name].op in STEPS:
            node = graph.by_name[name]
            operands = [form(graph, operand, base, known, within) for operand in node.inputs]
            found = [f for f in operands if f is not None]
            if len(found) == len(operands) and node.shape == graph.by_name[base].shape:
                known[name] = _combined(node, found)
    return known[name]


def _combined(node: Node, f: list[Form]) -> Form | None:
    if node.op in ("add", "sub"):
        return _sum(f[0], f[1], 1 if node.op == "add" else -1)
    if node.op == "neg":
        return _sum(Form(()), f[0], -1)
    if node.op == "mul":
        return _product(f[0], f[1])
    if node.op == "div":
        plain = f[1].gate is None and len(f[1].plain) == 1
        return _product(f[0], Form((1 / f[1].plain[0],))) if plain else None
    if node.op == "square":
        return _product(f[0], f[0])
    if node.op == "pow":
        return _power(f[0], float(node.attrs["exponent"]))
    return _gated(node, f[0])


def _power(f: Form, exponent: float) -> Form | None:
    if f.gate is not None or exponent not in (1.0, 2.0, 3.0, 4.0):
        return None
    found: Form | None = f
    for _ in range(int(exponent) - 1):
        found = None if found is None else _product(found, f)
    return found


def _gated(node: Node, f: Form) -> Form | None:
    attrs = tuple(sorted(node.attrs.items()))
    if f.gate is None:
        return Form((), Gate(node.op, f.plain, attrs), ONE)
    if node.op == "tanh" and f.gate.op == "softplus" and not f.plain and f.gated == ONE:
        return Form((), Gate("tanh_softplus", f.gate.argument, f.gate.attrs), ONE)
    return None


def _sum(a: Form, b: Form, sign: int) -> Form | None:
    if a.gate is not None and b.gate is not None and a.gate != b.gate:
        return None
    return Form(added(a.plain, b.plain, sign), a.gate or b.gate, added(a.gated, b.gated, sign))


def _product(a: Form, b: Form) -> Form | None:
    if a.gate is not None:
        a, b = b, a
    if a.gate is not None or len(a.plain) + max(len(b.plain), len(b.gated)) > MOST_DEGREE + 1:
        return None
    return Form(multiplied(a.plain, b.plain), b.gate, multiplied(a.plain, b.gated))
