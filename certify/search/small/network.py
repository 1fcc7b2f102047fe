"""Graphs of affine steps and ReLU as layers in flat arrays; which graphs qualify."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from certify.core.arrays import is_tensor
from certify.core.graph import INPUT, Graph, Node
from certify.core.spec import Rows
from certify.search.small.affine_form import (
    Form,
    added,
    constant,
    mapped,
    negated,
    picked,
    stacked,
    variable,
)

WIDEST = 1024  # variables of one layer
_LARGEST = 2**20  # weights of all layers
_LANES = 4  # layers are padded to whole vectors


@dataclass(frozen=True, eq=False)
class Layers:
    """``z_k = W_k a_(k-1) + b_k``, ``a_k = max(z_k, leak_k z_k)``; the last layer gives the rows.

    Everything flat, layer after layer, for the kernels. Exact weights lie within ``spread`` of
    ``weights``, exact biases within ``slack`` of ``biases``.

    Attributes:
        widths: ``(L + 2,)`` int64: inputs, L layers padded to whole vectors, rows of the spec.
        inward: weights, input-major: layer k is ``(widths[k - 1], widths[k])``.
        outward: the same, output-major.
        spread: as ``inward``; empty when every weight is exact.
        biases, slack, leak: one number per neuron of layers 1..L+1 (leak of the rows is 1).
    """

    widths: np.ndarray
    inward: np.ndarray
    outward: np.ndarray
    spread: np.ndarray
    biases: np.ndarray
    slack: np.ndarray
    leak: np.ndarray

    @property
    def rough(self) -> np.ndarray:
        """Which layers have weights that are not exact: uint8 ``(L + 1,)``."""
        sizes = self.widths[:-1] * self.widths[1:]
        if not self.spread.size:
            return np.zeros(len(sizes), dtype=np.uint8)
        return np.add.reduceat(self.spread > 0, np.cumsum(sizes) - sizes).astype(bool).astype("u1")

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What kernels take first."""
        return (
            self.widths,
            self.inward,
            self.outward,
            self.spread,
            self.biases,
            self.slack,
            self.leak,
        )


@dataclass(frozen=True, eq=False)
class _Lowering:
    """A graph half way: forms of all tensors, and the blocks of variables by level."""

    forms: dict[str, Form]
    levels: dict[str, int]
    sizes: dict[str, int]
    leaks: dict[str, float]
    before: dict[str, Form]  # a block's values before its activation


def enabled() -> bool:
    """Whether compiled kernels may be used: installed, and not turned off."""
    if os.environ.get("CERTIFY_KERNELS") == "off":
        return False
    from importlib.util import find_spec

    return find_spec("numba") is not None


def lower(graph: Graph, rows: Rows) -> Layers | None:
    """The network with the rows behind it, or None where it is not of the kind.

    Args:
        rows: batch 1; layer L + 1 computes ``y . Y + x . X - bound`` of each.
    """
    found = _forms(graph)
    if found is None:
        return None
    output = found.forms[graph.output]
    y = np.ascontiguousarray(rows.y[0], dtype=np.float64)
    if len(y) > 2 * len(output.constant):
        output = _as_block(found, "", output, 1.0)
    parts = [mapped(y, output, (len(y),)), constant(-rows.bound, (len(y),))]
    if rows.x is not None:
        names = [node.name for node in graph.inputs]
        shapes = ((found.sizes[name],) for name in names)
        every = stacked(
            [variable(n, s) for n, s in zip(names, shapes, strict=True)],
            (sum(found.sizes[n] for n in names),),
            found.sizes,
        )
        parts.append(mapped(np.ascontiguousarray(rows.x[0]), every, (len(y),)))
    last = parts[0]
    for part in parts[1:]:
        last = added(last, part)
    return _layers(found, last, [node.name for node in graph.inputs])


def _forms(graph: Graph) -> _Lowering | None:
    found = _Lowering({}, {}, {}, {}, {})
    for node in graph.live():
        if node.op == INPUT:
            found.forms[node.name] = variable(node.name, node.shape)
            found.levels[node.name], found.sizes[node.name] = 0, math.prod(node.shape)
            continue
        rule = _RULES.get(node.op)
        if rule is None or math.prod(node.shape) > WIDEST:
            return None
        form = rule(graph, found, node)
        if form is None:
            return None
        found.forms[node.name] = form
    return found


def _operand(graph: Graph, found: _Lowering, name: str) -> Form | np.ndarray | None:
    if name in found.forms:
        return found.forms[name]
    value = graph.constants.get(name)
    if value is None or is_tensor(value) or np.asarray(value).dtype.kind not in "fiu":
        return None
    array = np.asarray(value)
    exact = array.astype(np.float64)
    if not np.isfinite(exact).all() or (array.dtype.kind in "iu" and abs(exact).max() > 2**53):
        return None
    return exact


def _as_block(found: _Lowering, name: str, form: Form, leak: float) -> Form:
    found.levels[name] = form.level(found.levels) + 1
    found.sizes[name], found.leaks[name], found.before[name] = len(form.constant), leak, form
    return variable(name, form.shape)


def _relu(graph: Graph, found: _Lowering, node: Node) -> Form | None:
    form = found.forms.get(node.inputs[0])
    leak = float(node.attrs["alpha"]) if node.op == "leaky_relu" else 0.0
    if form is None or not 0.0 <= leak <= 1.0:
        return None
    return _as_block(found, node.name, form, leak)


def _sum(graph: Graph, found: _Lowering, node: Node) -> Form | None:
    sides = []
    for name in node.inputs:
        value = _operand(graph, found, name)
        if value is None:
            return None
        if isinstance(value, Form):
            index = np.arange(len(value.constant)).reshape(value.shape)
            sides.append(picked(value, np.broadcast_to(index, node.shape), node.shape))
        else:
            sides.append(constant(value, node.shape))
    return added(sides[0], negated(sides[1]) if node.op == "sub" else sides[1])


def _matmul(graph: Graph, found: _Lowering, node: Node) -> Form | None:
    left, right = (_operand(graph, found, name) for name in node.inputs[:2])
    if isinstance(left, Form) and isinstance(right, np.ndarray):
        weight = right.T if node.op == "linear" else right
        if weight.ndim <= max(2, len(left.shape)):
            return _mapped(left, lambda x: x @ weight, node)
    if isinstance(right, Form) and isinstance(left, np.ndarray):
        fits = len(right.shape) >= 2 and left.ndim <= len(right.shape)
        return _mapped(right, lambda x: left @ x, node) if fits else None
    return None


def _linear(graph: Graph, found: _Lowering, node: Node) -> Form | None:
    product = _matmul(graph, found, node)
    if product is None or len(node.inputs) < 3:
        return product
    bias = _operand(graph, found, node.inputs[2])
    return added(product, constant(bias, node.shape)) if isinstance(bias, np.ndarray) else None


def _mul(graph: Graph, found: _Lowering, node: Node) -> Form | None:
    left, right = (_operand(graph, found, name) for name in node.inputs[:2])
    if isinstance(left, np.ndarray):
        left, right = right, left
    if not isinstance(left, Form) or not isinstance(right, np.ndarray):
        return None
    return _mapped(left, lambda x: x * right, node) if right.ndim <= len(left.shape) else None


def _mapped(form: Form, function: Callable[[np.ndarray], np.ndarray], node: Node) -> Form | None:
    """A linear function of a form, by its matrix: products with 0 and 1 only, so exact."""
    n = len(form.constant)
    found = function(np.eye(n).reshape(n, *form.shape))
    if found.shape != (n, *node.shape):
        return None
    return mapped(np.ascontiguousarray(found.reshape(n, -1).T), form, node.shape)


def _move(graph: Graph, found: _Lowering, node: Node) -> Form | None:
    form = found.forms.get(node.inputs[0])
    if form is None:
        return None
    index = np.arange(len(form.constant)).reshape(form.shape)
    if node.op == "transpose":
        index = index.transpose([p % index.ndim for p in node.attrs["perm"]])
    return picked(form, index, node.shape)


def _negative(graph: Graph, found: _Lowering, node: Node) -> Form | None:
    form = found.forms.get(node.inputs[0])
    return None if form is None else negated(form)


_RULES: dict[str, Callable[[Graph, _Lowering, Node], Form | None]] = {
    "relu": _relu,
    "leaky_relu": _relu,
    "add": _sum,
    "sub": _sum,
    "neg": _negative,
    "mul": _mul,
    "matmul": _matmul,
    "linear": _linear,
    "reshape": _move,
    "transpose": _move,
}


def _layers(found: _Lowering, last: Form, inputs: list[str]) -> Layers | None:
    """Blocks by level, with neurons that pass on what later levels still need."""
    depth = last.level(found.levels)
    if depth == 0:
        return None  # nothing nonlinear: one box of bounds is exact, any engine will do
    wanted = _wanted(found, last, depth)
    sizes = found.sizes
    before: list[tuple[str, np.ndarray]] = [(n, np.arange(sizes[n])) for n in inputs]
    blocks, leaks = [], []
    for level in range(1, depth + 1):
        own = [n for n in found.before if found.levels[n] == level]
        carried = [
            (n, columns) for (n, at), columns in wanted.items() if at == level and n not in own
        ]
        after = [(n, np.arange(sizes[n])) for n in own] + carried
        forms = [found.before[n] for n in own]
        forms += [picked(variable(n, (sizes[n],)), c, (len(c),)) for n, c in carried]
        blocks.append(_block(stacked(forms, (-1,), sizes), before))
        leaks.append(
            np.concatenate(
                [np.full(len(c), found.leaks.get(n, 1.0) if n in own else 1.0) for n, c in after]
            )
        )
        before = after
    blocks.append(_block(last, before))
    leaks.append(np.ones(len(last.constant)))
    return _flat(blocks, leaks)


def _wanted(found: _Lowering, last: Form, depth: int) -> dict[tuple[str, int], np.ndarray]:
    """Which variables must be there after which level: ``(block, level) -> elements``."""
    masks: dict[tuple[str, int], np.ndarray] = {}
    users = [(found.levels[n], form) for n, form in found.before.items()] + [(depth + 1, last)]
    for level, form in users:
        for name, part in form.parts.items():
            value, error = part.dense(found.sizes[name])
            used = value.any(axis=0) | error.any(axis=0)
            for at in range(found.levels[name] + 1, level):
                mask = masks.setdefault((name, at), np.zeros(found.sizes[name], dtype=bool))
                mask |= used
    return {key: np.flatnonzero(mask) for key, mask in masks.items() if mask.any()}


def _block(form: Form, before: list[tuple[str, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """``(W, E, b, e)`` of one layer over the variables of the layer before."""
    n = len(form.constant)
    values, errors = [], []
    for name, columns in before:
        part = form.parts.get(name)
        if part is None:
            values.append(np.zeros((n, len(columns))))
            errors.append(np.zeros((n, len(columns))))
            continue
        size = n if part.value is None else part.value.shape[1]
        value, error = part.dense(size)
        values.append(value[:, columns])
        errors.append(error[:, columns])
    return np.concatenate(values, 1), np.concatenate(errors, 1), form.constant, form.error


def _flat(blocks: list[tuple[np.ndarray, ...]], leaks: list[np.ndarray]) -> Layers | None:
    widths = [blocks[0][0].shape[1]] + [-(-len(b[2]) // _LANES) * _LANES for b in blocks]
    weights = [a * b for a, b in zip(widths[:-1], widths[1:], strict=True)]
    if max(widths) > WIDEST or sum(weights) > _LARGEST:
        return None
    inexact = any(b[1].any() for b in blocks)
    inward, outward, spread, biases, slack, leak = [], [], [], [], [], []
    for (W, E, b, e), a, width_in, width in zip(blocks, leaks, widths, widths[1:], strict=False):
        shape = (width - W.shape[0], width_in - W.shape[1])
        W, E = (np.pad(v, ((0, shape[0]), (0, shape[1]))) for v in (W, E))
        b, e = (np.pad(v, (0, shape[0])) for v in (b, e))
        inward.append(W.T.ravel())
        outward.append(W.ravel())
        spread.append(E.T.ravel() if inexact else np.empty(0))
        biases.append(b)
        slack.append(e)
        leak.append(np.pad(a, (0, shape[0])))
    arrays: list[Any] = [np.concatenate(v) for v in (inward, outward, spread, biases, slack, leak)]
    if not all(np.isfinite(v).all() for v in arrays):
        return None
    return Layers(np.array(widths, dtype=np.int64), *(np.ascontiguousarray(v) for v in arrays))
