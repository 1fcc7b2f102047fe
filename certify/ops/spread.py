"""Repeating values: expand, tile, repeat_interleave."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.errors import BadInput
from certify.core.graph import Shape
from certify.ops.arguments import axis_of, broadcast_shape, integers, repeats
from certify.ops.builder import Builder, Call, Value
from certify.ops.families import affine, to_operand
from certify.ops.moves import lead_of
from certify.ops.record import REGISTRY, Composite, Example, Site
from certify.ops.select import taken

if TYPE_CHECKING:
    from torch import Tensor


def _expand(site: Site, x: Tensor) -> Tensor:
    return x.expand((*lead_of(x, site.shapes[0]), *site.shape))


def _expand_shape(attrs: Any, x: Shape) -> Shape:
    shape = tuple(attrs["shape"])
    if len(shape) != len(x) or any(n not in (1, m) for n, m in zip(x, shape, strict=True)):
        raise ValueError(f"shape {x} does not broadcast to {shape}")
    return shape


def _expand_back(site: Site, A: Tensor, x: Any) -> tuple[Tensor]:
    return (to_operand(A, site.shapes[0], len(site.shape)),)


def _copies(site: Site) -> tuple[int, int]:
    count = repeats(site.shapes[0], site.shape)
    return 0, count if count > 1 else 0


def _tile(site: Site, x: Tensor) -> Tensor:
    return x.repeat(*(1,) * (x.dim() - len(site.shape)), *site.attrs["repeats"])


def _tile_shape(attrs: Any, x: Shape) -> Shape:
    if len(attrs["repeats"]) != len(x):
        raise ValueError(f"{len(attrs['repeats'])} repeats for a tensor of rank {len(x)}")
    return tuple(n * r for n, r in zip(x, attrs["repeats"], strict=True))


def _tile_back(site: Site, A: Tensor, x: Any) -> tuple[Tensor]:
    sizes = [n for pair in zip(site.attrs["repeats"], site.shapes[0], strict=True) for n in pair]
    grid = A.reshape((*lead_of(A, site.shape), *sizes))
    if not sizes:
        return (grid,)
    return (grid.sum(dim=tuple(range(-len(sizes), 0, 2))),)


def expanded(b: Builder, x: Value, shape: Shape, name: str | None = None) -> Value:
    """``x`` broadcast to ``shape``; ``x`` itself where it has that shape."""
    if x.shape == shape:
        return x
    grown = (
        b.add("reshape", x, shape=(1,) * (len(shape) - x.rank) + x.shape)
        if x.rank < len(shape)
        else x
    )
    return grown if grown.shape == shape else b.add("expand", grown, name=name, shape=shape)


def _broadcast(call: Call, x: Value, shape: Shape) -> Shape:
    try:
        return broadcast_shape(x.shape, shape)
    except ValueError as problem:
        raise BadInput(f"{call.where or call.name}: {problem}") from None


def _onnx_expand(b: Builder, call: Call) -> Value:
    x = call.inputs[0]
    return expanded(b, x, _broadcast(call, x, integers(call.static(1))), call.name)


def _aten_expand(b: Builder, call: Call) -> Value:
    x, sizes = call.inputs[0], integers(call.inputs[1])
    grown = (1,) * (len(sizes) - x.rank) + x.shape
    shape = tuple(m if n == -1 else n for n, m in zip(sizes, grown, strict=True))
    return expanded(b, x, shape, call.name)


def _expand_as(b: Builder, call: Call) -> Value:
    return expanded(b, call.inputs[0], call.inputs[1].shape, call.name)


def _onnx_tile(b: Builder, call: Call) -> Value:
    return _tiled(b, call, integers(call.static(1)))


def _repeat(b: Builder, call: Call) -> Value:
    return _tiled(b, call, integers(call.inputs[1]))


def _tiled(b: Builder, call: Call, times: tuple[int, ...]) -> Value:
    """Tile; the shorter of shape and repeats is filled up with leading ones."""
    x = call.inputs[0]
    if any(n < 0 for n in times):
        raise BadInput(f"{call.where or call.name}: negative repeats {times}")
    if x.rank < len(times):
        x = b.add("reshape", x, shape=(1,) * (len(times) - x.rank) + x.shape)
    times = (1,) * (x.rank - len(times)) + times
    return x if math.prod(times) == 1 else b.add("tile", x, name=call.name, repeats=times)


def _interleave(b: Builder, call: Call) -> Value:
    x, times = call.inputs[0], int(call.inputs[1])
    if call.arg(2) is None:
        x = b.add("reshape", x, shape=(math.prod(x.shape),))
    axis = axis_of(call, call.arg(2, 0), x.rank)
    return taken(b, call, x, axis, np.repeat(np.arange(x.shape[axis]), times))


affine(
    "expand",
    _expand,
    shape=_expand_shape,
    transpose=_expand_back,
    summands=_copies,
    monotone=True,
    examples=(Example(((1, 3, 1),), {"shape": (2, 3, 4)}), Example(((2, 1),), {"shape": (2, 1)})),
    onnx={"Expand": _onnx_expand},
    aten={"aten.expand.default": _aten_expand, "aten.broadcast_to.default": _aten_expand},
    float32_roundings=0,
    summary="axes of size 1 repeated",
)

affine(
    "tile",
    _tile,
    shape=_tile_shape,
    transpose=_tile_back,
    summands=_copies,
    monotone=True,
    examples=(Example(((2, 3),), {"repeats": (2, 1)}), Example(((2, 2),), {"repeats": (3, 2)})),
    onnx={"Tile": _onnx_tile},
    aten={"aten.repeat.default": _repeat, "aten.tile.default": _repeat},
    float32_roundings=0,
    summary="the whole tensor repeated along axes",
)

REGISTRY.add(
    Composite(
        "copies",
        aten={
            "aten.expand_as.default": _expand_as,
            "aten.repeat_interleave.self_int": _interleave,
        },
        summary="expand_as: expand; repeat_interleave: gather",
    )
)
