"""Normalisation by the statistics of one example: layer, group, instance and RMS norm.

All are the same small graph: subtract the mean, divide by the root of the mean square.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from certify.core.errors import BadInput, Unsupported
from certify.ops.arguments import axes_of, axis_of
from certify.ops.batch_norm import normalised
from certify.ops.builder import Builder, Call, Value
from certify.ops.moves import reshaped
from certify.ops.record import REGISTRY, Composite

_FLOAT32_EPS = float(np.finfo(np.float32).eps)


def _product(b: Builder, x: Value, factor: Value | None, name: str | None = None) -> Value:
    return x if factor is None else b.add("mul", *b.broadcast(x, factor), name=name)


def _sum(b: Builder, x: Value, offset: Value | None, name: str | None = None) -> Value:
    return x if offset is None else b.add("add", *b.broadcast(x, offset), name=name)


def standardised(
    b: Builder, x: Value, axes: Sequence[int], eps: float, centred: bool = True
) -> tuple[Value, Value, Value]:
    """``(x - mean) / sqrt(mean square + eps)`` over ``axes``, the mean, and the inverse root."""
    mean = b.add("reduce_mean", x, axes=tuple(axes), keepdims=True)
    deviation = b.add("sub", x, mean) if centred else x
    square = b.add("square", deviation)
    variance = b.add("reduce_mean", square, axes=tuple(axes), keepdims=True)
    shifted = b.add("add", variance, b.constant(np.asarray(eps, dtype=np.float64)))
    inverse = b.add("rsqrt", shifted)
    return b.add("mul", deviation, inverse), mean, inverse


def _shaped(b: Builder, v: Value | None, shape: Sequence[int]) -> Value | None:
    return None if v is None else reshaped(b, v, shape)


def _channels(b: Builder, v: Value | None, rank: int) -> Value | None:
    """A per-channel parameter, so that it broadcasts over axis 1 of ``rank`` axes."""
    return None if v is None else reshaped(b, v, (math.prod(v.shape), *(1,) * (rank - 2)))


def _layer(
    b: Builder,
    call: Call,
    axes: Sequence[int],
    parameters: tuple[Value | None, Value | None],
    eps: float,
) -> tuple[Value, Value, Value]:
    y, mean, inverse = standardised(b, call.inputs[0], axes, eps)
    scale, bias = parameters
    return _sum(b, _product(b, y, scale), bias), mean, inverse


def _onnx_layer(b: Builder, call: Call) -> Value | tuple[Value, ...]:
    x = call.inputs[0]
    first = axis_of(call, call.attr("axis", -1), x.rank)
    found = _layer(
        b, call, range(first, 0), (call.arg(1), call.arg(2)), float(call.attr("epsilon", 1e-5))
    )
    return found[: call.outputs] if call.outputs > 1 else found[0]


def _aten_layer(b: Builder, call: Call) -> Value:
    x, shape, scale, bias, eps = call.inputs[:5]
    return _layer(b, call, range(-len(shape), 0), (scale, bias), float(eps))[0]


def _native_layer(b: Builder, call: Call) -> tuple[Value, ...]:
    x, shape, scale, bias, eps = call.inputs[:5]
    return _layer(b, call, range(-len(shape), 0), (scale, bias), float(eps))


def _grouped(b: Builder, call: Call, x: Value, groups: int, eps: float) -> Value:
    if x.rank < 2 or groups < 1 or x.shape[1] % groups:
        raise BadInput(
            f"{call.where or call.name}: {groups} groups do not divide the channels "
            f"of shape {x.shape}"
        )
    inside = math.prod(x.shape[1:]) // groups
    y = standardised(b, reshaped(b, x, (x.shape[0], groups, inside)), (-1,), eps)[0]
    return reshaped(b, y, x.shape)


def _onnx_group(b: Builder, call: Call) -> Value:
    """Scale and bias are one per group before opset 21, one per channel from there on."""
    x, scale, bias = call.inputs[:3]
    groups = int(call.attr("num_groups"))
    y = _grouped(b, call, x, groups, float(call.attr("epsilon", 1e-5)))
    per_channel = [
        v if v.shape == (x.shape[1],) else _repeated(b, call, v, x.shape[1]) for v in (scale, bias)
    ]
    scale, bias = (_channels(b, v, x.rank) for v in per_channel)
    return _sum(b, _product(b, y, scale), bias, call.name)


def _repeated(b: Builder, call: Call, v: Value, channels: int) -> Value:
    if v.rank != 1 or not v.shape[0] or channels % v.shape[0]:
        raise BadInput(
            f"{call.where or call.name}: a parameter of shape {v.shape} for {channels} channels"
        )
    return b.add(
        "gather", v, indices=np.repeat(np.arange(v.shape[0]), channels // v.shape[0]), axis=-1
    )


def _aten_group(b: Builder, call: Call) -> Value:
    x, groups, scale, bias, eps = call.inputs[:5]
    y = _grouped(b, call, x, int(groups), float(eps))
    return _sum(b, _product(b, y, _channels(b, scale, x.rank)), _channels(b, bias, x.rank))


def _native_group(b: Builder, call: Call) -> tuple[Value, ...]:
    x, scale, bias = call.inputs[:3]
    groups, eps = int(call.inputs[6]), float(call.inputs[7])
    flat = reshaped(b, x, (x.shape[0], groups, math.prod(x.shape[1:]) // groups))
    y, mean, inverse = standardised(b, flat, (-1,), eps)
    y = reshaped(b, y, x.shape)
    y = _sum(b, _product(b, y, _channels(b, scale, x.rank)), _channels(b, bias, x.rank))
    pair = (x.shape[0], groups)
    return y, reshaped(b, mean, pair), reshaped(b, inverse, pair)


def _onnx_instance(b: Builder, call: Call) -> Value:
    x, scale, bias = call.inputs[:3]
    y = standardised(b, x, range(2 - x.rank, 0), float(call.attr("epsilon", 1e-5)))[0]
    return _sum(
        b, _product(b, y, _channels(b, scale, x.rank)), _channels(b, bias, x.rank), call.name
    )


def _aten_instance(b: Builder, call: Call) -> Value:
    """With ``use_input_stats`` off, stored statistics are used as in batch norm."""
    x, scale, bias, mean, var, use_input, _, eps = call.inputs[:8]
    if not use_input:
        return normalised(b, call, x, (scale, bias, mean, var), float(eps))
    if x.rank < 3:
        raise Unsupported(f"{call.where or call.name}: instance norm of shape {x.shape}")
    y = standardised(b, x, range(2 - x.rank, 0), float(eps))[0]
    return _sum(b, _product(b, y, _channels(b, scale, x.rank)), _channels(b, bias, x.rank))


def _rms(b: Builder, call: Call, axes: Sequence[int], scale: Value | None, eps: float) -> Value:
    return _product(b, standardised(b, call.inputs[0], axes, eps, centred=False)[0], scale)


def _onnx_rms(b: Builder, call: Call) -> Value:
    first = axis_of(call, call.attr("axis", -1), call.inputs[0].rank)
    return _rms(b, call, range(first, 0), call.arg(1), float(call.attr("epsilon", 1e-5)))


def _aten_rms(b: Builder, call: Call) -> Value:
    axes = range(-len(call.inputs[1]), 0)
    return _rms(b, call, axes, call.arg(2), float(call.arg(3, _FLOAT32_EPS)))


def _mean_variance(b: Builder, call: Call) -> Value:
    """ONNX divides by the standard deviation plus 1e-9, which only matters where it vanishes."""
    x = call.inputs[0]
    axes = axes_of(call, call.attr("axes", (0, 2, 3)), x.rank)
    mean = b.add("reduce_mean", x, axes=axes, keepdims=True)
    deviation = b.add("sub", x, mean)
    variance = b.add("reduce_mean", b.add("square", deviation), axes=axes, keepdims=True)
    spread = b.add("add", b.add("sqrt", variance), b.constant(np.asarray(1e-9)))
    return b.add("mul", deviation, b.add("reciprocal", spread), name=call.name)


def _variance(root: bool) -> Callable[[Builder, Call], Value]:
    """``var`` and ``std``: squares divided by the count less the correction."""

    def translate(b: Builder, call: Call) -> Value:
        x = call.inputs[0]
        kind = call.kind.rpartition(".")[2]
        dims = None if kind == "default" else call.arg(1)
        correction, keep = _correction(call, kind)
        axes = axes_of(call, dims, x.rank)
        count = math.prod(x.shape[a] for a in axes) - correction
        if count <= 0:
            raise BadInput(
                f"{call.where or call.name}: a variance over {count + correction:g} elements"
            )
        mean = b.add("reduce_mean", x, axes=axes, keepdims=True)
        square = b.add("square", b.add("sub", x, mean))
        total = b.add("reduce_sum", square, axes=axes, keepdims=keep)
        found = b.add("div", total, b.constant(np.asarray(float(count))))
        return b.add("sqrt", found, name=call.name) if root else found

    return translate


def _correction(call: Call, kind: str) -> tuple[float, bool]:
    if kind == "default":
        return float(bool(call.arg(1, True))), False
    if kind == "dim":
        return float(bool(call.arg(2, True))), bool(call.arg(3, False))
    return float(call.arg(2, 1.0)), bool(call.arg(3, False))


def _all(names: Sequence[str], translate: Any) -> dict[str, Any]:
    return {f"aten.{name}": translate for name in names}


REGISTRY.add(
    Composite(
        "layer_norm",
        onnx={"LayerNormalization": _onnx_layer},
        aten={
            "aten.layer_norm.default": _aten_layer,
            "aten.native_layer_norm.default": _native_layer,
        },
        summary="normalisation over the last axes",
    )
)
REGISTRY.add(
    Composite(
        "group_norm",
        onnx={"GroupNormalization": _onnx_group},
        aten={
            "aten.group_norm.default": _aten_group,
            "aten.native_group_norm.default": _native_group,
        },
        summary="normalisation over groups of channels",
    )
)
REGISTRY.add(
    Composite(
        "instance_norm",
        onnx={"InstanceNormalization": _onnx_instance},
        aten={"aten.instance_norm.default": _aten_instance},
        summary="normalisation of each channel over space",
    )
)
REGISTRY.add(
    Composite(
        "rms_norm",
        onnx={"RMSNormalization": _onnx_rms},
        aten={"aten.rms_norm.default": _aten_rms},
        summary="division by the root of the mean square",
    )
)
REGISTRY.add(
    Composite(
        "mean_variance_norm",
        onnx={"MeanVarianceNormalization": _mean_variance},
        summary="zero mean and unit variance over axes",
    )
)
REGISTRY.add(
    Composite(
        "variance",
        aten={
            **_all(("var.default", "var.dim", "var.correction"), _variance(False)),
            **_all(("std.default", "std.dim", "std.correction"), _variance(True)),
        },
        summary="variance and standard deviation",
    )
)

__all__ = ["standardised"]
