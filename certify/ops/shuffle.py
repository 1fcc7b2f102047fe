"""Values moved between channels and space, windows laid out side by side, parts overwritten."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from certify.core.errors import BadInput, Unsupported
from certify.ops.arguments import spread
from certify.ops.aten_extras import written
from certify.ops.builder import Builder, Call, Value
from certify.ops.moves import permuted, reshaped
from certify.ops.padding import padded
from certify.ops.record import REGISTRY, Composite
from certify.ops.select import moved


def _regrouped(
    b: Builder, call: Call, split: Sequence[int], perm: Sequence[int], shape: Sequence[int]
) -> Value:
    """Split axes, permute, merge."""
    x = call.inputs[0]
    if math.prod(split) != math.prod(x.shape) or min(split, default=1) < 1:
        raise BadInput(f"{call.where or call.name}: blocks do not divide shape {x.shape}")
    return reshaped(b, permuted(b, reshaped(b, x, split), perm), shape, call.name)


def _space(call: Call, rank: int) -> tuple[tuple[int, ...], int, int, int]:
    """Leading axes, channels, height and width of the first operand."""
    x = call.inputs[0]
    if x.rank < 3 or (rank and x.rank != rank):
        raise BadInput(
            f"{call.where or call.name}: shape {x.shape} has no channel, height and width"
        )
    return x.shape[:-3], x.shape[-3], x.shape[-2], x.shape[-1]


def _block(call: Call, size: int) -> int:
    if int(size) < 1:
        raise BadInput(f"{call.where or call.name}: a block of size {size}")
    return int(size)


def _depth_to_space(b: Builder, call: Call) -> Value:
    (n,), c, h, w = _space(call, 4)
    r = _block(call, call.attr("blocksize", 0))
    if call.attr("mode", "DCR") == "DCR":
        split, perm = (n, r, r, c // (r * r), h, w), (0, 3, 4, 1, 5, 2)
    else:
        split, perm = (n, c // (r * r), r, r, h, w), (0, 1, 4, 2, 5, 3)
    return _regrouped(b, call, split, perm, (n, c // (r * r), h * r, w * r))


def _space_to_depth(b: Builder, call: Call) -> Value:
    (n,), c, h, w = _space(call, 4)
    r = _block(call, call.attr("blocksize", 0))
    split = (n, c, h // r, r, w // r, r)
    return _regrouped(b, call, split, (0, 3, 5, 1, 2, 4), (n, c * r * r, h // r, w // r))


def _pixel_shuffle(b: Builder, call: Call) -> Value:
    lead, c, h, w = _space(call, 0)
    r, k = _block(call, call.inputs[1]), len(lead)
    split = (*lead, c // (r * r), r, r, h, w)
    perm = (*range(k), k, k + 3, k + 1, k + 4, k + 2)
    return _regrouped(b, call, split, perm, (*lead, c // (r * r), h * r, w * r))


def _pixel_unshuffle(b: Builder, call: Call) -> Value:
    lead, c, h, w = _space(call, 0)
    r, k = _block(call, call.inputs[1]), len(lead)
    split = (*lead, c, h // r, r, w // r, r)
    perm = (*range(k), k, k + 2, k + 4, k + 1, k + 3)
    return _regrouped(b, call, split, perm, (*lead, c * r * r, h // r, w // r))


def _channel_shuffle(b: Builder, call: Call) -> Value:
    x, groups = call.inputs[0], int(call.inputs[1])
    split = (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    return _regrouped(b, call, split, (0, 2, 1, *range(3, x.rank + 1)), x.shape)


def _im2col(b: Builder, call: Call) -> Value:
    """``torch.nn.Unfold``: ``(N, C, H, W)`` to ``(N, C * kernel, windows)``."""
    kernel, dilation, padding, stride = (spread(call.inputs[k], 2, 1) for k in (1, 2, 3, 4))
    x = padded(b, call, call.inputs[0], padding + padding)
    lead, c, h, w = _space(Call(call.name, call.kind, (x,), {}, where=call.where), 0)

    def taps(size: int, k: int) -> np.ndarray:
        count = (size - (kernel[k] - 1) * dilation[k] - 1) // stride[k] + 1
        return (
            np.arange(kernel[k])[:, None] * dilation[k] + np.arange(max(count, 0))[None] * stride[k]
        )

    rows, columns = taps(h, 0), taps(w, 1)

    def move(positions: np.ndarray) -> np.ndarray:
        found = positions[..., rows[:, None, :, None], columns[None, :, None, :]]
        return found.reshape(*lead, c * rows.shape[0] * columns.shape[0], -1)

    return moved(b, call, x, move)


def _scatter_nd(b: Builder, call: Call) -> Value:
    x, indices, part = call.inputs[0], np.asarray(call.static(1)), call.inputs[2]
    if call.attr("reduction", "none") != "none":
        raise Unsupported(f"{call.where or call.name}: ScatterND with a reduction")
    return written(b, call, x, part, lambda places: places[tuple(np.moveaxis(indices, -1, 0))])


REGISTRY.add(
    Composite(
        "shuffles",
        onnx={"DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth},
        aten={
            "aten.pixel_shuffle.default": _pixel_shuffle,
            "aten.pixel_unshuffle.default": _pixel_unshuffle,
            "aten.channel_shuffle.default": _channel_shuffle,
            "aten.native_channel_shuffle.default": _channel_shuffle,
            "aten.im2col.default": _im2col,
        },
        summary="between channels and space: reshape, transpose, gather",
    )
)

REGISTRY.add(
    Composite(
        "scatters",
        onnx={"ScatterND": _scatter_nd},
        summary="a constant part of a tensor overwritten: concat, gather",
    )
)
