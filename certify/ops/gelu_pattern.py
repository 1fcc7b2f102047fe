"""Recognises activations that a model spells out, and puts the operator itself in their place.

``x * 0.5 * (1 + erf(x / sqrt 2))`` bounded step by step multiplies two factors as if they were
unrelated; as one scalar function it gets the tightest lines. The match is algebraic, so the order
of operands and where the constants stand do not matter, and it is **exact in the stored
constants**: with rational arithmetic a written activation is ``n h(a x) / d`` for an ideal h.

What is claimed: a, n and d are used only if they are floating-point numbers without rounding, so
the new graph computes the same real function. The exceptions are the two GELU forms. In the erf
form ``a = sqrt(2) s`` and ``n = sqrt(2) k / s`` are irrational for rational s and k; both are
rounded once, which moves the result by at most ``2^-50 |k x|``. In the tanh form with two stored
constants, which has an operator of its own (`tanh_gate`), their product is rounded once. The
records allow 16 and 20 units in the last place of the operand for the evaluation of the function,
several times what that evaluation and these roundings need together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from math import inf, isqrt
from types import MappingProxyType
from typing import Any

import numpy as np

from certify.core.graph import Array, Graph, Node
from certify.ops.forms import GATES, STEPS, Form, Gate, Poly, form
from certify.ops.short_pattern import short_match
from certify.ops.tanh_gate import near_gelu

ROOT2 = Fraction(isqrt(2 << 400), 1 << 200)
REACH = 24  # nodes looked at around one candidate
ROOTS = ("mul", "div", "add", "sub")


@dataclass(frozen=True)
class Match:
    """``factor * op(scale * base) / divisor``."""

    op: str
    base: str
    scale: float
    factor: float
    divisor: float = 1.0
    attrs: dict[str, Any] = field(default_factory=dict)


def match_gelu(graph: Graph) -> Graph:
    """``graph`` with spelled-out GELU (erf and tanh), SiLU, Mish, HardSwish, Softsign and
    LogSigmoid as single operators.

    Node names are kept; nodes nobody needs any more are dropped. A graph without any match is
    returned as it is.
    """
    found = {node.name: match for node in graph.nodes if (match := _match(graph, node))}
    if not found:
        return graph
    nodes: list[Node] = []
    constants: dict[str, Array] = dict(graph.constants)
    for node in graph.nodes:
        match = found.get(node.name)
        nodes.extend([node] if match is None else _written(node, match, constants))
    whole = Graph(tuple(nodes), constants, graph.output, graph.source)
    live = tuple(whole.live())
    used = {name for node in live for name in node.inputs}
    kept = {name: array for name, array in constants.items() if name in used}
    return Graph(live, MappingProxyType(kept), graph.output, graph.source)


def _written(node: Node, match: Match, constants: dict[str, Array]) -> Iterator[Node]:
    """The nodes of one match; the last one has the name of the node it stands for."""
    steps = [
        ("mul", {}, match.scale), (match.op, match.attrs, None),
        ("mul", {}, match.factor), ("div", {}, match.divisor),
    ]  # fmt: skip
    steps = [(op, attrs, by) for op, attrs, by in steps if by is None or by != 1.0]
    operand = match.base
    for k, (op, attrs, by) in enumerate(steps):
        name = node.name if k == len(steps) - 1 else f"{node.name}/{match.op}.{k}"
        inputs: tuple[str, ...] = (operand,)
        if by is not None:
            constants[f"{node.name}/{match.op}.by{k}"] = np.float64(by)
            inputs = (operand, f"{node.name}/{match.op}.by{k}")
        yield Node(name, op, inputs, MappingProxyType(dict(attrs)), node.shape, node.where)
        operand = name


def _match(graph: Graph, node: Node) -> Match | None:
    short = short_match(graph, node)
    if short is not None:
        return Match(*short, scale=1.0, factor=1.0)
    if node.op not in ROOTS:
        return None
    bases, gated = _around(graph, node)
    if not gated:
        return None
    for base in bases:
        if graph.by_name[base].shape != node.shape:
            continue
        whole = form(graph, node.name, base, {}, {node.name, *bases})
        match = None if whole is None else _recognised(whole, base)
        if match is not None:
            return match
    return None


def _around(graph: Graph, root: Node) -> tuple[list[str], bool]:
    """Nodes that may be the x of a pattern ending in ``root``, nearest first; is there a gate?"""
    seen, gated = {root.name: None}, False
    for name in _growing(seen):
        node = graph.by_name[name]
        gated = gated or node.op in GATES
        if node.op in STEPS and len(seen) < REACH:
            seen.update((n, None) for n in node.inputs if n in graph.by_name)
    return list(seen)[1:], gated


def _growing(names: dict[str, None]) -> Iterator[str]:
    """The keys of a dictionary that grows while it is being walked."""
    k = 0
    while k < len(names):
        yield list(names)[k]
        k += 1


def _recognised(whole: Form, base: str) -> Match | None:
    gate, gated, plain = whole.gate, whole.gated, whole.plain
    if gate is None or len(gated) != 2 or gated[0] != 0:
        return None
    k = gated[1]
    if gate.op in ("erf", "tanh"):
        if plain == tuple(-c for c in gated):  # both are odd: 1 - tanh(p) is 1 + tanh(-p)
            k, gate = -k, Gate(gate.op, tuple(-c for c in gate.argument), gate.attrs)
        elif plain != gated:
            return None
        return _erf(gate.argument, k, base) if gate.op == "erf" else _tanh(gate.argument, k, base)
    if plain:
        return None
    if gate.op == "sigmoid":
        return _sigmoid(gate.argument, k, base)
    if gate.op == "tanh_softplus":
        return _mish(gate, k, base)
    return _hard_swish(gate, k, base)


def _linear(argument: Poly, offset: Fraction = Fraction(0)) -> Fraction | None:
    """s where ``argument`` is ``offset + s x``."""
    return argument[1] if len(argument) == 2 and argument[0] == offset else None


def _exact(
    op: str, base: str, parts: tuple[Fraction, Fraction, Fraction], **attrs: Any
) -> Match | None:
    """A match if all of scale, factor and divisor are floating-point numbers."""
    floats = [float(p) for p in parts]
    if any(Fraction(f) != p for f, p in zip(floats, parts, strict=True)):
        return None
    scale, factor, divisor = floats
    if factor == divisor:
        factor = divisor = 1.0
    return Match(op, base, scale, factor, divisor, attrs)


def _erf(argument: Poly, k: Fraction, base: str) -> Match | None:
    """``k x (1 + erf(s x)) = (sqrt 2 k / s) gelu(sqrt 2 s x)``."""
    s = _linear(argument)
    return None if s is None else Match("gelu", base, float(ROOT2 * s), float(ROOT2 * k / s))


def _tanh(argument: Poly, k: Fraction, base: str) -> Match | None:
    """``k x (1 + tanh p) = 2 k x sigmoid(2 p)``."""
    return _sigmoid(tuple(2 * c for c in argument), 2 * k, base)


def _sigmoid(argument: Poly, k: Fraction, base: str) -> Match | None:
    """``k x sigmoid(s x) = k silu(s x) / s``, or with a cubic term the tanh form of GELU."""
    s = _linear(argument)
    if s is not None:
        return _exact("silu", base, (s, k, s))
    if len(argument) != 4 or argument[0] != 0 or argument[2] != 0:
        return None
    linear, cubic = float(argument[1]), float(argument[3])
    if not near_gelu(linear, cubic):
        return None
    one = Fraction(1)
    return _exact("tanh_gate", base, (one, k, one), linear=linear, cubic=cubic)


def _mish(gate: Gate, k: Fraction, base: str) -> Match | None:
    """``k x tanh(softplus(s x)) = k mish(s x) / s``; tanh is 1 past a threshold of 20."""
    s, attrs = _linear(gate.argument), dict(gate.attrs)
    if s is None or attrs.get("beta", 1.0) != 1.0 or attrs.get("threshold", inf) < 20:
        return None
    return _exact("mish", base, (s, k, s))


def _hard_swish(gate: Gate, k: Fraction, base: str) -> Match | None:
    """``k x clip(s x + 3, 0, 6) = 6 k hard_swish(s x) / s``, or a hard sigmoid, a sixth of that."""
    attrs = dict(gate.attrs)
    if gate.op == "clip" and (attrs.get("min"), attrs.get("max")) == (0.0, 6.0):
        s, k = _linear(gate.argument, Fraction(3)), 6 * k
    elif gate.op == "clip" and (attrs.get("min"), attrs.get("max")) == (0.0, 1.0):
        s = _linear(gate.argument, Fraction(1, 2))
        s = None if s is None else 6 * s
    elif gate.op == "hard_sigmoid" and attrs.get("beta") == 0.5:
        alpha = attrs["alpha"]
        sixth = Fraction(1, 6) if alpha == 1 / 6 else Fraction(float(alpha))
        s = _linear(gate.argument)
        s = None if s is None else 6 * sixth * s
    else:
        return None
    return None if not s else _exact("hard_swish", base, (s, k, s))
