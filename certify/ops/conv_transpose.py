"""Transposed convolution: the adjoint of `conv` as an operator of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.errors import BadInput, Unsupported
from certify.core.graph import Shape
from certify.ops.arguments import integers, spread
from certify.ops.builder import Builder, Call, Value
from certify.ops.conv import (
    bordered,
    check_weight,
    flat_batch,
    run_conv,
    run_conv_transpose,
    with_bias,
)
from certify.ops.families import affine
from certify.ops.record import REGISTRY, Composite, Example, Site
from certify.ops.windows import Window, aten_window, check_pads, products, window_of

if TYPE_CHECKING:
    from torch import Tensor


def _sizes(size: Shape, kernel: Shape, window: Window, attrs: Any) -> Shape:
    extra = spread(attrs.get("output_padding"), window.rank, 0)
    found = tuple(
        (n - 1) * s + r - p - q + e
        for n, s, r, p, q, e in zip(
            size,
            window.strides,
            window.reach(kernel),
            window.begins,
            window.ends,
            extra,
            strict=True,
        )
    )
    if min(extra) < 0 or min(found) < 1 or min(size) < 1:
        raise ValueError(f"pads or output_padding leave a result of size {found}")
    return found


def _shape(attrs: Any, x: Shape, weight: Shape, bias: Shape = ()) -> Shape:
    groups, rank = attrs.get("groups", 1), len(weight) - 2
    channels = weight[1] * groups if rank > 0 else 0
    check_weight(x, weight, bias, channels, groups)
    if x[-rank - 1] != weight[0]:
        raise ValueError(f"{x[-rank - 1]} channels meet a weight for {weight[0]}")
    return (
        *x[: -rank - 1],
        channels,
        *_sizes(x[-rank:], weight[2:], window_of(attrs, rank), attrs),
    )


def _forward(site: Site, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rank = weight.dim() - 2
    window, groups = window_of(site.attrs, rank), site.attrs.get("groups", 1)
    y = run_conv_transpose(flat_batch(x, rank + 1), weight, window, groups, site.shape[-rank:])
    if bias is not None:
        y = y + bias.reshape((-1, *(1,) * rank))
    return y.reshape((*x.shape[: x.dim() - rank - 1], *y.shape[1:]))


def _transpose(site: Site, A: Tensor, x: Any, weight: Tensor, bias: Any) -> tuple[Any, ...]:
    rank = weight.dim() - 2
    window, groups = window_of(site.attrs, rank), site.attrs.get("groups", 1)
    extra = spread(site.attrs.get("output_padding"), rank, 0)
    # What output_padding appends lies beyond every window unless padding had cut it off.
    ends = tuple(q - e for q, e in zip(window.ends, extra, strict=True))
    bare = replace(window, begins=(0,) * rank, ends=(0,) * rank)
    flat = flat_batch(A, rank + 1)
    if window.symmetric and not any(extra):
        g = run_conv(flat, weight, None, window, groups)
    else:
        g = run_conv(bordered(flat, window.begins, ends), weight, None, bare, groups)
    return g.reshape((*A.shape[: A.dim() - rank - 1], *g.shape[1:])), None, None


def _summands(site: Site) -> tuple[int, int]:
    weight, groups = site.shapes[1], site.attrs.get("groups", 1)
    rank = len(weight) - 2
    window = window_of(site.attrs, rank)
    under, over = products(site.shape[-rank:], site.shapes[0][-rank:], weight[2:], window)
    return weight[0] // groups * over + 1, weight[1] * under


def _onnx(b: Builder, call: Call) -> Value:
    x, weight = call.inputs[:2]
    kernel = weight.shape[2:]
    if weight.rank != x.rank or x.rank < 3:
        raise BadInput(
            f"{call.where or call.name}: a weight of shape {weight.shape} does not fit {x.shape}"
        )
    attrs = _onnx_window(call, x.shape[2:], kernel)
    return with_bias(b, call, "conv_transpose", (x, weight, call.arg(2)), attrs)


def _check_missing(call: Call, missing: Sequence[int], limits: Sequence[int]) -> None:
    """Raises Unsupported where the result is to be longer than runtimes agree on."""
    if any(m >= limit for m, limit in zip(missing, limits, strict=True)):
        raise Unsupported(
            f"{call.where or call.name}: output_shape or auto_pad ask for {tuple(missing)} more "
            f"elements than the windows reach; give pads instead"
        )


def _onnx_window(call: Call, size: Shape, kernel: Shape) -> dict[str, Any]:
    """Strides, pads, dilations, output_padding; ``output_shape`` and ``auto_pad`` resolved."""
    rank = len(kernel)
    strides = spread(call.attr("strides"), rank, 1)
    dilations = spread(call.attr("dilations"), rank, 1)
    extra = spread(call.attr("output_padding"), rank, 0)
    pads = integers(call.attr("pads")) or (0,) * (2 * rank)
    mode = call.attr("auto_pad", "NOTSET") or "NOTSET"
    wanted = integers(call.attr("output_shape"))[-rank:]
    stated = bool(wanted)
    if any(len(v) != rank for v in (strides, dilations, extra, wanted or strides, size)):
        raise BadInput(
            f"{call.where or call.name}: settings need one number for each of {rank} axes"
        )
    if mode in ("SAME_UPPER", "SAME_LOWER") and not wanted:
        wanted = tuple(n * s for n, s in zip(size, strides, strict=True))
    if wanted:
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        full = [(n - 1) * s + r + e for n, s, r, e in zip(size, strides, reach, extra, strict=True)]
        missing = tuple(max(w - f, 0) for f, w in zip(full, wanted, strict=True))
        _check_missing(call, missing, strides if stated else (1,) * rank)
        totals = [max(f - w, 0) for f, w in zip(full, wanted, strict=True)]
        small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
        extra = tuple(e + m for e, m in zip(extra, missing, strict=True))
        pads = small + large if mode == "SAME_UPPER" else large + small
    elif mode == "VALID":
        pads = (0,) * (2 * rank)
    check_pads(call, pads)
    return {
        "strides": strides,
        "pads": pads,
        "dilations": dilations,
        "output_padding": extra,
        "groups": call.attr("group", 1),
    }


def _aten(b: Builder, call: Call) -> Value:
    x, weight, bias, stride, padding, extra, groups, dilation = call.inputs[:8]
    rank = weight.rank - 2
    attrs = aten_window(call, rank, stride, padding, dilation)
    attrs |= {"output_padding": spread(extra, rank, 0), "groups": int(groups)}
    return with_bias(b, call, "conv_transpose", (x, weight, bias), attrs)


def _convolution(b: Builder, call: Call) -> Value:
    """``aten.convolution``: both directions in one call."""
    x, weight, bias, stride, padding, dilation, transposed, extra, groups = call.inputs[:9]
    rank = weight.rank - 2
    attrs = aten_window(call, rank, stride, padding, dilation) | {"groups": int(groups)}
    if transposed:
        attrs["output_padding"] = spread(extra, rank, 0)
    return with_bias(b, call, "conv_transpose" if transposed else "conv", (x, weight, bias), attrs)


_W = np.linspace(-1, 1, 2 * 2 * 3 * 2).reshape(2, 2, 3, 2)

affine(
    "conv_transpose",
    _forward,
    shape=_shape,
    weights=(1,),
    biases=(2,),
    transpose=_transpose,
    summands=_summands,
    examples=(
        Example(
            ((1, 2, 3, 2), _W, np.array([0.5, -1.0])),
            {"strides": (2, 1), "pads": (1, 0, 1, 0), "output_padding": (1, 0), "groups": 1},
        ),
        Example(((2, 3, 3), _W, None), {"strides": (2, 2), "pads": (0, 1, 1, 0), "groups": 1}),
        Example(
            ((1, 2, 2, 3), _W, np.zeros(4)),
            {"dilations": (2, 1), "output_padding": (1, 0), "groups": 2},
        ),
        Example(
            ((1, 2, 4), _W[..., 0], None), {"strides": (3,), "pads": (0, 0), "output_padding": (2,)}
        ),
        Example(((1, 2, 2, 2, 1), _W[:, :, None], None), {"strides": (1, 2, 1)}),
    ),
    onnx={"ConvTranspose": _onnx},
    aten={
        "aten.conv_transpose1d.default": _aten,
        "aten.conv_transpose2d.input": _aten,
        "aten.conv_transpose3d.input": _aten,
    },
    float32_roundings=0,
    summary="transposed convolution over one to three axes",
)

REGISTRY.add(
    Composite(
        "convolution",
        aten={"aten.convolution.default": _convolution},
        summary="aten.convolution: conv or conv_transpose",
    )
)
