"""ATen calls that are a few of our operators: writes into a part of a tensor, norms, and others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from certify.core.errors import BadInput, Unsupported
from certify.ops.arguments import axes_of, operand
from certify.ops.builder import Builder, Call, Value, as_numpy
from certify.ops.moves import reshaped
from certify.ops.record import REGISTRY, Composite
from certify.ops.spread import expanded

Choose = Callable[[np.ndarray], np.ndarray]


def written(b: Builder, call: Call, x: Value, source: Value, choose: Choose) -> Value:
    """``x`` with ``source`` in the places that ``choose`` picks from an array like ``x``.

    Raises:
        BadInput: ``source`` does not broadcast to the places, or there are no such places.
    """
    flat = np.arange(math.prod(x.shape), dtype=np.int64)
    try:
        places = choose(flat.reshape(x.shape))
        source = expanded(b, source, places.shape)
    except (IndexError, ValueError) as problem:
        raise BadInput(f"{call.where or call.name}: {problem}") from None
    flat[places.reshape(-1)] = flat.size + np.arange(places.size)  # the last of equal places wins
    parts = (reshaped(b, v, (math.prod(v.shape),)) for v in (x, source))
    both = b.add("concat", *parts, axis=-1)
    found = b.add("gather", both, name=call.name, indices=flat, axis=-1)
    return reshaped(b, found, x.shape)


def _slice_scatter(b: Builder, call: Call) -> Value:
    x, source, axis = call.inputs[0], call.inputs[1], int(call.arg(2, 0))
    part = slice(call.arg(3), call.arg(4), call.arg(5, 1))

    def choose(places: np.ndarray) -> np.ndarray:
        return places.swapaxes(0, axis)[part].swapaxes(0, axis)

    return written(b, call, x, source, choose)


def _select_scatter(b: Builder, call: Call) -> Value:
    x, source, axis, index = call.inputs[:4]
    return written(b, call, x, source, lambda places: places.take(int(index), int(axis)))


def _index_put(b: Builder, call: Call) -> Value:
    x, indices, source = call.inputs[:3]
    if call.arg(3, False):
        raise BadInput(f"{call.where or call.name}: accumulating writes are not supported")
    chosen: list[Any] = []
    for given in indices:
        if isinstance(given, Value) and given.constant is None:
            raise BadInput(f"{call.where or call.name}: the places written to must be constants")
        chosen.append(slice(None) if given is None else as_numpy(given.constant))
    return written(b, call, x, source, lambda places: places[tuple(chosen)])


def _overwritten(b: Builder, call: Call) -> Value:
    """``fill`` and ``copy``: nothing is left of the first operand but its shape."""
    return expanded(b, operand(b, call.inputs[1]), call.inputs[0].shape, call.name)


def _norm(b: Builder, call: Call) -> Value:
    """The 1-, 2- and infinity-norm over axes."""
    x, order = call.inputs[0], call.arg(1, 2)
    axes, keep = axes_of(call, call.arg(2), x.rank), bool(call.arg(3, False))
    if order == 2:
        total = b.add("reduce_sum", b.add("square", x), axes=axes, keepdims=keep)
        return b.add("sqrt", total, name=call.name)
    if order not in (1, math.inf):
        raise Unsupported(f"{call.where or call.name}: a norm of order {order}; 1, 2, inf work")
    reduction = "reduce_sum" if order == 1 else "reduce_max"
    return b.add(reduction, b.add("abs", x), name=call.name, axes=axes, keepdims=keep)


def _soft_shrink(b: Builder, call: Call) -> Value:
    x, size = call.inputs[0], float(call.arg(1, 0.5))
    return b.add("sub", x, b.add("clip", x, min=-size, max=size), name=call.name)


def _randomised_leaky(b: Builder, call: Call) -> Value:
    """In evaluation the slope is the middle of its range."""
    if call.arg(3, False):
        raise Unsupported(f"{call.where or call.name}: rrelu in training mode is random")
    slope = (float(call.arg(1, 1 / 8)) + float(call.arg(2, 1 / 3))) / 2
    return b.add("leaky_relu", call.inputs[0], name=call.name, alpha=slope)


def _log1p(b: Builder, call: Call) -> Value:
    x = call.inputs[0]
    return b.add("log", b.add("add", x, operand(b, 1.0)), name=call.name)


def _expm1(b: Builder, call: Call) -> Value:
    x = call.inputs[0]
    return b.add("sub", b.add("exp", x), operand(b, 1.0), name=call.name)


def _erfc(b: Builder, call: Call) -> Value:
    x = call.inputs[0]
    return b.add("sub", operand(b, 1.0), b.add("erf", x), name=call.name)


REGISTRY.add(Composite(
    "norms",
    aten={
        "aten.linalg_vector_norm.default": _norm,
        "aten.norm.Scalar": _norm,
        "aten.norm.ScalarOpt_dim": _norm,
    },
    summary="1-, 2- and infinity-norm over axes: sums and a root",
))

REGISTRY.add(Composite(
    "shifted_functions",
    aten={
        "aten.softshrink.default": _soft_shrink,
        "aten.rrelu.default": _randomised_leaky,
        "aten.log1p.default": _log1p,
        "aten.expm1.default": _expm1,
        "aten.erfc.default": _erfc,
        "aten.special_erfc.default": _erfc,
    },
    summary="softshrink, rrelu in evaluation, log1p, expm1, erfc: other functions, shifted",
))

REGISTRY.add(Composite(
    "writes",
    aten={
        "aten.slice_scatter.default": _slice_scatter,
        "aten.select_scatter.default": _select_scatter,
        "aten.index_put.default": _index_put,
        "aten.fill.Scalar": _overwritten,
        "aten.fill.Tensor": _overwritten,
        "aten.copy.default": _overwritten,
    },
    summary="assignment to a slice, fill, copy: gather from what was and what is written",
))
