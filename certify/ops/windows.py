"""Sliding windows: paddings, output sizes, and how many products meet in one element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from certify.core.errors import BadInput, LimitExceeded
from certify.core.graph import Shape
from certify.ops.arguments import integers, spread
from certify.ops.builder import LARGEST_TENSOR, Call

_COUNTED = 2**22  # window positions that are counted one by one


@dataclass(frozen=True)
class Window:
    """Static settings of a sliding window over the last axes, one entry per axis."""

    strides: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    dilations: tuple[int, ...]

    @property
    def rank(self) -> int:
        """How many axes it slides over."""
        return len(self.strides)

    @property
    def symmetric(self) -> bool:
        """Every axis is padded alike on both sides."""
        return self.begins == self.ends

    def reach(self, kernel: Sequence[int]) -> tuple[int, ...]:
        """Elements a window spans, per axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(kernel, self.dilations, strict=True))


def window_of(attrs: Any, rank: int) -> Window:
    """The window of a record's attributes; absent ones are neutral.

    Raises:
        ValueError: a setting has the wrong length or sign; the message names it.
    """
    pads = tuple(attrs.get("pads") or (0,) * (2 * rank))
    strides = tuple(attrs.get("strides") or (1,) * rank)
    dilations = tuple(attrs.get("dilations") or (1,) * rank)
    if len(pads) != 2 * rank or min(pads, default=0) < 0:
        raise ValueError(f"pads {pads} must be {2 * rank} numbers >= 0")
    for name, found in (("strides", strides), ("dilations", dilations)):
        if len(found) != rank or min(found, default=1) < 1:
            raise ValueError(f"{name} {found} must be {rank} numbers >= 1")
    return Window(strides, pads[:rank], pads[rank:], dilations)


def slid(size: Shape, kernel: Sequence[int], window: Window) -> Shape:
    """Positions of the window per axis.

    Raises:
        ValueError: the window does not fit into the padded input.
    """
    found = []
    reach = window.reach(kernel)
    for n, r, s, p, q in zip(size, reach, window.strides, window.begins, window.ends, strict=True):
        if r > n + p + q:
            raise ValueError(
                f"a kernel that spans {r} does not fit into {n} elements with pads {p} and {q}"
            )
        found.append((n + p + q - r) // s + 1)
    return tuple(found)


@lru_cache(maxsize=1024)
def overlaps(
    size: int, out: int, kernel: int, stride: int, dilation: int, begin: int
) -> tuple[int, int]:
    """The most input elements under one window, and the most windows over one input element."""
    if out * kernel > _COUNTED:
        return kernel, min(kernel, out)
    places = np.arange(out)[:, None] * stride - begin + np.arange(kernel)[None, :] * dilation
    inside = (places >= 0) & (places < size)
    if not inside.any():
        return 0, 0
    return int(inside.sum(1).max()), int(np.bincount(places[inside]).max())


def products(size: Shape, out: Shape, kernel: Sequence[int], window: Window) -> tuple[int, int]:
    """`overlaps` multiplied over the axes."""
    under = over = 1
    settings = zip(size, out, kernel, window.strides, window.dilations, window.begins, strict=True)
    for n, m, k, s, d, p in settings:
        one, other = overlaps(n, m, k, s, d, p)
        under, over = under * one, over * other
    return under, over


def same_pads(
    size: Shape, reach: Sequence[int], strides: Sequence[int], upper: bool
) -> tuple[int, ...]:
    """ONNX's SAME_UPPER and SAME_LOWER: the result has ``ceil(size / stride)`` elements."""
    totals = [
        max((-(-n // s) - 1) * s + r - n, 0) for n, r, s in zip(size, reach, strides, strict=True)
    ]
    small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
    return small + large if upper else large + small


def onnx_window(call: Call, size: Shape, kernel: Sequence[int]) -> dict[str, Any]:
    """``strides``, ``pads`` and ``dilations`` of an ONNX node, ``auto_pad`` resolved."""
    rank = len(kernel)
    strides = spread(call.attr("strides"), rank, 1)
    dilations = spread(call.attr("dilations"), rank, 1)
    pads = integers(call.attr("pads")) or (0,) * (2 * rank)
    mode = call.attr("auto_pad", "NOTSET") or "NOTSET"
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        pads = same_pads(size, reach, strides, mode == "SAME_UPPER")
    elif mode == "VALID":
        pads = (0,) * (2 * rank)
    elif mode != "NOTSET":
        raise BadInput(f"{call.where or call.name}: auto_pad {mode!r} is not known")
    check_pads(call, pads)
    return {"strides": strides, "pads": pads, "dilations": dilations}


def check_pads(call: Call, pads: Sequence[int]) -> None:
    """Raises `LimitExceeded` for a pad larger than any tensor may be."""
    if any(abs(p) > LARGEST_TENSOR for p in pads):
        raise LimitExceeded(
            f"{call.where or call.name}: pads {tuple(pads)} are beyond {LARGEST_TENSOR}"
        )


def aten_window(call: Call, rank: int, stride: Any, padding: Any, dilation: Any) -> dict[str, Any]:
    """``strides``, ``pads`` and ``dilations`` from ATen's lists, which may have one entry."""
    around = spread(padding, rank, 0)
    check_pads(call, around)
    return {
        "strides": spread(stride, rank, 1),
        "pads": around + around,
        "dilations": spread(dilation, rank, 1),
    }
