"""Max pooling of any stride, padding, dilation and overlap: windows gathered, then reduced.

A tap that falls on padding repeats a valid element of the same window, so padding never wins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from certify.core.errors import BadInput, Unsupported
from certify.core.graph import Shape
from certify.ops.arguments import integers, spread
from certify.ops.builder import Builder, Call, Value
from certify.ops.record import REGISTRY, Composite, Translate


@dataclass(frozen=True)
class Axis:
    """A pooling window along one axis.

    Attributes:
        size: input length; kernel, stride, dilation: of the window; before, after: padding.
        ceil: round the number of windows up, but start none beyond the input and ``before``.
    """

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    ceil: bool

    @property
    def reach(self) -> int:
        """Elements a window spans."""
        return (self.kernel - 1) * self.dilation + 1

    def windows(self) -> list[list[int]]:
        """The input positions under each window, padding repeating the first valid one.

        Raises:
            ValueError: a setting is not positive, or a window sees padding only.
        """
        if min(self.kernel, self.stride, self.dilation) < 1 or min(self.before, self.after) < 0:
            raise ValueError("kernel, stride and dilation must be positive, padding not negative")
        room = self.size + self.before + self.after - self.reach
        if room < 0:
            raise ValueError(f"a window of {self.reach} does not fit {self.size} elements")
        count = (-(-room // self.stride) if self.ceil else room // self.stride) + 1
        if self.ceil and (count - 1) * self.stride >= self.size + self.before:
            count -= 1
        return [self._taps(k * self.stride - self.before) for k in range(count)]

    def _taps(self, start: int) -> list[int]:
        taps = [start + j * self.dilation for j in range(self.kernel)]
        valid = [t for t in taps if 0 <= t < self.size]
        if not valid:
            raise ValueError("a window sees padding only")
        return [t if 0 <= t < self.size else valid[0] for t in taps]


def pool(b: Builder, call: Call, x: Value, windows: Sequence[Sequence[Sequence[int]]]) -> Value:
    """The maximum over windows given per trailing axis as lists of input positions.

    Windows of one axis may differ in size: shorter ones repeat their first position.
    """
    rank = len(windows)
    spatial, lead = x.shape[x.rank - rank :], x.shape[: x.rank - rank]
    index = np.zeros((1, 1), dtype=np.int64)
    for size, taps in zip(spatial, windows, strict=True):
        longest = max(len(t) for t in taps)
        table = np.array([[*t, *([t[0]] * (longest - len(t)))] for t in taps], dtype=np.int64)
        grown = index[:, None, :, None] * size + table[None, :, None, :]
        index = grown.reshape(index.shape[0] * table.shape[0], -1)
    flat = b.add("reshape", x, shape=(*lead, math.prod(spatial)))
    taken = b.add("gather", flat, indices=index, axis=-1)
    best = b.add("reduce_max", taken, axes=(-1,), keepdims=False)
    return b.add("reshape", best, shape=(*lead, *(len(t) for t in windows)), name=call.name)


def _sliding(b: Builder, call: Call, x: Value, axes: Sequence[Axis]) -> Value:
    try:
        windows = [axis.windows() for axis in axes]
    except ValueError as problem:
        raise BadInput(
            f"{call.where or call.name}: {call.kind} over {x.shape}: {problem}"
        ) from None
    return pool(b, call, x, windows)


def same_padding(size: int, reach: int, stride: int, upper: bool) -> tuple[int, int]:
    """ONNX ``SAME_UPPER`` / ``SAME_LOWER`` padding, for ``ceil(size / stride)`` windows."""
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return (total // 2, total - total // 2) if upper else (total - total // 2, total // 2)


def _onnx_max_pool(b: Builder, call: Call) -> Value:
    if call.outputs > 1:
        raise Unsupported(
            f"{call.where or call.name}: MaxPool with its Indices output; use the values only"
        )
    x, kernel = call.arg(0), integers(call.attr("kernel_shape"))
    rank = len(kernel)
    if not kernel or rank >= x.rank:
        raise BadInput(
            f"{call.where or call.name}: kernel_shape {kernel} over a tensor of shape {x.shape}"
        )
    strides = spread(call.attr("strides"), rank, 1)
    dilations = spread(call.attr("dilations"), rank, 1)
    pads = spread(call.attr("pads"), 2 * rank, 0)
    mode = _text(call.attr("auto_pad", "NOTSET"))
    ceil = bool(call.attr("ceil_mode", 0))
    axes = []
    for k, size in enumerate(x.shape[-rank:]):
        before, after = pads[k], pads[k + rank]
        if mode == "VALID":
            before = after = 0
        elif mode.startswith("SAME"):
            reach = (kernel[k] - 1) * dilations[k] + 1
            before, after = same_padding(size, reach, strides[k], mode == "SAME_UPPER")
        axes.append(Axis(size, kernel[k], strides[k], dilations[k], before, after, ceil))
    return _sliding(b, call, x, axes)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _global(b: Builder, call: Call) -> Value:
    x = call.arg(0)
    axes = tuple(range(2 - x.rank, 0))
    return b.add("reduce_max", x, axes=axes, keepdims=True, name=call.name)


def _aten_pool(rank: int) -> dict[str, Translate]:
    def sliding(b: Builder, call: Call) -> Value:
        x, kernel = call.arg(0), spread(call.arg(1), rank, 1)
        strides = spread(call.arg(2), rank, 1) if integers(call.arg(2)) else kernel
        pads, dilations = spread(call.arg(3), rank, 0), spread(call.arg(4), rank, 1)
        ceil = bool(call.arg(5, False))
        axes = [
            Axis(size, kernel[k], strides[k], dilations[k], pads[k], pads[k], ceil)
            for k, size in enumerate(x.shape[x.rank - rank :])
        ]
        return _sliding(b, call, x, axes)

    def adaptive(b: Builder, call: Call) -> tuple[Value, ...]:
        x = call.arg(0)
        sizes: Shape = x.shape[x.rank - rank :]
        wanted = spread(call.arg(1), rank, 1)
        windows = [
            [list(range(i * n // m, -(-(i + 1) * n // m))) for i in range(m)]
            for n, m in zip(sizes, wanted, strict=True)
        ]
        return (pool(b, call, x, windows),)

    def with_indices(b: Builder, call: Call) -> tuple[Value, ...]:
        return (sliding(b, call),)

    return {
        f"aten.max_pool{rank}d.default": sliding,
        f"aten.max_pool{rank}d_with_indices.default": with_indices,
        f"aten.adaptive_max_pool{rank}d.default": adaptive,
    }


REGISTRY.add(
    Composite(
        "max_pool",
        onnx={"MaxPool": _onnx_max_pool, "GlobalMaxPool": _global},
        aten={**_aten_pool(1), **_aten_pool(2), **_aten_pool(3)},
        summary="max pooling, as gathered windows and reduce_max",
    )
)
