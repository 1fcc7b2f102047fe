"""Convolution over one, two or three axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.errors import BadInput, Unsupported
from certify.core.graph import Shape
from certify.ops.arguments import integers
from certify.ops.builder import Builder, Call, Value
from certify.ops.families import affine
from certify.ops.moves import reshaped
from certify.ops.phases import phases_pay, transpose_by_phases
from certify.ops.record import Example, Site
from certify.ops.windows import Window, aten_window, onnx_window, products, slid, window_of

if TYPE_CHECKING:
    from torch import Tensor


def flat_batch(x: Tensor, kept: int) -> Tensor:
    """All but the last ``kept`` axes as one, which is there even where there was none."""
    return x.reshape((math.prod(x.shape[: x.dim() - kept]), *x.shape[x.dim() - kept :]))


def bordered(x: Tensor, begins: tuple[int, ...], ends: tuple[int, ...]) -> Tensor:
    """Zeros around the last axes; negative numbers cut away."""
    from torch.nn.functional import pad

    edges = [n for pair in reversed(list(zip(begins, ends, strict=True))) for n in pair]
    if max(edges) > 0:  # grown first, so that one side may cut into what the other adds
        x = pad(x, [max(n, 0) for n in edges])
    return pad(x, [min(n, 0) for n in edges]) if min(edges) < 0 else x


def run_conv(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int) -> Tensor:
    """Convolution of ``(N, C, *size)``; asymmetric padding is written out first."""
    from torch.nn import functional as F

    call = (F.conv1d, F.conv2d, F.conv3d)[window.rank - 1]
    padding = window.begins
    if not window.symmetric:
        x, padding = bordered(x, window.begins, window.ends), (0,) * window.rank
    return call(x, weight, bias, window.strides, padding, window.dilations, groups)


_MANY = 32  # examples from which a change of memory order pays


def channels_last(x: Tensor) -> Tensor:
    """``x`` with channels last in memory: strided transposed convolutions run twice as fast."""
    from torch import channels_last as order

    return x.contiguous(memory_format=order)


def points_pay(x: Tensor, weight: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether `transpose_by_points` is possible and faster."""
    single = set(weight.shape[2:]) == {1} and max(strides) > 1
    return single and x.device.type == "cpu" and len(x) >= _MANY


def transpose_by_points(x: Tensor, weight: Tensor, window: Window, size: tuple[int, ...]) -> Tensor:
    """The adjoint of a strided 1 x 1 convolution: one matrix product, put where the strides lead.

    The result is ``(N, C, *size)``, channels last in memory.
    """
    (sy, sx), (top, left), (height, width) = window.strides, window.begins, size
    kept_y = slice(-(-top // sy), min(x.shape[2], -(-(height + top) // sy)))
    kept_x = slice(-(-left // sx), min(x.shape[3], -(-(width + left) // sx)))
    points = x.permute(0, 2, 3, 1)[:, kept_y, kept_x] @ weight[:, :, 0, 0]
    whole = points.new_zeros(len(x), height, width, weight.shape[1])
    whole[:, kept_y.start * sy - top :: sy, kept_x.start * sx - left :: sx][
        :, : points.shape[1], : points.shape[2]
    ] = points
    return whole.permute(0, 3, 1, 2)


def run_conv_transpose(
    x: Tensor, weight: Tensor, window: Window, groups: int, size: tuple[int, ...]
) -> Tensor:
    """The adjoint of `run_conv`: ``(N, O, *out)`` to ``(N, C, *size)``."""
    from torch.nn import functional as F

    call = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[window.rank - 1]
    if window.rank == 2 and x.device.type == "cpu" and len(x) >= _MANY:
        x, weight = channels_last(x), channels_last(weight)
    reach = window.reach(weight.shape[2:])
    full = [(n - 1) * s + r for n, s, r in zip(x.shape[2:], window.strides, reach, strict=True)]
    extra = [
        n - (f - p - q) for n, f, p, q in zip(size, full, window.begins, window.ends, strict=True)
    ]
    plain = window.rank == 2 and groups == 1 and min(window.begins) >= 0
    if plain and phases_pay(x, weight, window.strides, window.dilations):
        (top, left), (height, width) = window.begins, size
        return transpose_by_phases(x, weight, window.strides[0], (top, left), (height, width))
    if plain and points_pay(x, weight, window.strides):
        return transpose_by_points(x, weight, window, size)
    room = [max(s, d) for s, d in zip(window.strides, window.dilations, strict=True)]
    fits = window.symmetric and all(0 <= e < r for e, r in zip(extra, room, strict=True))
    if fits:
        return call(
            x, weight, None, window.strides, window.begins, tuple(extra), groups, window.dilations
        )
    whole = call(x, weight, None, window.strides, 0, 0, groups, window.dilations)
    ends = tuple(e - q for e, q in zip(extra, window.ends, strict=True))
    return bordered(whole, tuple(-p for p in window.begins), ends)


def check_weight(x: Shape, weight: Shape, bias: Shape, channels: int, groups: int) -> None:
    """Raises ValueError where input, weight, bias and groups do not belong together."""
    rank = len(weight) - 2
    if not 1 <= rank <= 3 or len(x) not in (rank + 1, rank + 2):
        raise ValueError(
            f"a weight of rank {len(weight)} over a tensor of rank {len(x)}; "
            f"one to three axes are possible"
        )
    if groups < 1 or weight[0] % groups or x[-rank - 1] % groups:
        raise ValueError(
            f"group {groups} does not divide {x[-rank - 1]} channels and {weight[0]} filters"
        )
    if bias and bias != (channels,):
        raise ValueError(f"a bias of shape {bias} for {channels} channels")


def _shape(attrs: Any, x: Shape, weight: Shape, bias: Shape = ()) -> Shape:
    groups, rank = attrs.get("groups", 1), len(weight) - 2
    check_weight(x, weight, bias, weight[0] if weight else 0, groups)
    if x[-rank - 1] != weight[1] * groups:
        raise ValueError(
            f"{x[-rank - 1]} channels meet a weight for group {groups} times {weight[1]}"
        )
    return (*x[: -rank - 1], weight[0], *slid(x[-rank:], weight[2:], window_of(attrs, rank)))


def _forward(site: Site, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rank = weight.dim() - 2
    flat = flat_batch(x, rank + 1)
    y = run_conv(flat, weight, bias, window_of(site.attrs, rank), site.attrs.get("groups", 1))
    return y.reshape((*x.shape[: x.dim() - rank - 1], *y.shape[1:]))


def _transpose(site: Site, A: Tensor, x: Any, weight: Tensor, bias: Any) -> tuple[Any, ...]:
    rank, size = weight.dim() - 2, site.shapes[0]
    window, groups = window_of(site.attrs, rank), site.attrs.get("groups", 1)
    g = run_conv_transpose(flat_batch(A, rank + 1), weight, window, groups, size[-rank:])
    return g.reshape((*A.shape[: A.dim() - rank - 1], *g.shape[1:])), None, None


def _summands(site: Site) -> tuple[int, int]:
    weight, groups = site.shapes[1], site.attrs.get("groups", 1)
    rank = len(weight) - 2
    window = window_of(site.attrs, rank)
    under, over = products(site.shapes[0][-rank:], site.shape[-rank:], weight[2:], window)
    return weight[1] * under + 1, weight[0] // groups * over


def constant_weight(call: Call, weight: Value) -> None:
    """Raises Unsupported where the filter depends on the model's input."""
    if weight.constant is None:
        raise Unsupported(
            f"{call.where or call.name}: a convolution whose filter depends on the input; "
            f"only constant filters can be bounded"
        )


def with_bias(
    b: Builder,
    call: Call,
    op: str,
    operands: tuple[Value, Value, Value | None],
    attrs: dict[str, Any],
) -> Value:
    """Convolve; a bias that depends on the model's input is added afterwards."""
    x, weight, bias = operands
    constant_weight(call, weight)
    if bias is None or bias.constant is not None:
        return b.add(op, x, weight, bias, name=call.name, **attrs)
    y = b.add(op, x, weight, None, **attrs)
    column = reshaped(b, bias, (bias.shape[0], *(1,) * (weight.rank - 2)))
    return b.add("add", y, b.align(column, y.rank), name=call.name)


def _onnx_conv(b: Builder, call: Call) -> Value:
    x, weight = call.inputs[:2]
    kernel = weight.shape[2:]
    if weight.rank != x.rank or x.rank < 3:
        raise BadInput(
            f"{call.where or call.name}: a weight of shape {weight.shape} does not fit {x.shape}"
        )
    if integers(call.attr("kernel_shape")) not in ((), kernel):
        raise BadInput(
            f"{call.where or call.name}: kernel_shape is not that of the weight, {kernel}"
        )
    attrs = onnx_window(call, x.shape[2:], kernel)
    return with_bias(
        b, call, "conv", (x, weight, call.arg(2)), {**attrs, "groups": call.attr("group", 1)}
    )


def _aten_conv(b: Builder, call: Call) -> Value:
    x, weight, bias, stride, padding, dilation, groups = call.inputs[:7]
    rank = weight.rank - 2
    if isinstance(padding, str):
        return _named_padding(b, call)
    attrs = aten_window(call, rank, stride, padding, dilation)
    return with_bias(b, call, "conv", (x, weight, bias), {**attrs, "groups": int(groups)})


def _named_padding(b: Builder, call: Call) -> Value:
    """``padding="same"`` or ``"valid"``; the odd element goes to the end."""
    x, weight, bias, stride, padding, dilation, groups = call.inputs[:7]
    attrs = aten_window(call, weight.rank - 2, stride, 0, dilation)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(attrs["dilations"], weight.shape[2:], strict=True)]
        attrs["pads"] = (*(t // 2 for t in totals), *(t - t // 2 for t in totals))
    return with_bias(b, call, "conv", (x, weight, bias), {**attrs, "groups": int(groups)})


_W = np.linspace(-1, 1, 2 * 2 * 3 * 3).reshape(2, 2, 3, 3)

affine(
    "conv",
    _forward,
    shape=_shape,
    weights=(1,),
    biases=(2,),
    transpose=_transpose,
    summands=_summands,
    examples=(
        Example(
            ((1, 2, 5, 4), _W, np.array([0.5, -1.0])),
            {"strides": (2, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 1},
        ),
        Example(
            ((2, 6, 5), _W, None),
            {"strides": (2, 2), "pads": (0, 2, 1, 1), "dilations": (1, 1), "groups": 1},
        ),
        Example(
            ((1, 4, 5, 5), _W, None),
            {"strides": (1, 1), "pads": (2, 2, 2, 2), "dilations": (2, 2), "groups": 2},
        ),
        Example(
            ((1, 2, 6), _W[..., 0], np.zeros(2)),
            {"strides": (3,), "pads": (1, 1), "dilations": (1,), "groups": 1},
        ),
        Example(((1, 2, 3, 3, 3), _W[:, :, None], None), {"pads": (0, 0, 0, 1, 0, 0), "groups": 1}),
    ),
    onnx={"Conv": _onnx_conv},
    aten={
        name: _aten_conv
        for k in (1, 2, 3)
        for name in (f"aten.conv{k}d.default", f"aten.conv{k}d.padding")
    },
    float32_roundings=0,
    summary="convolution over one to three axes",
)
