"""Choosing elements by constant indices: gather along an axis, and what expands to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.errors import BadInput
from certify.core.graph import Shape
from certify.ops.arguments import axes_of, axis_of, integers, spread
from certify.ops.builder import Builder, Call, Value
from certify.ops.families import affine
from certify.ops.moves import lead_of, reshaped
from certify.ops.record import REGISTRY, Composite, Example, Site

if TYPE_CHECKING:
    from torch import Tensor


def _indices(site: Site, like: Tensor) -> Tensor:
    import torch

    flat = np.asarray(site.attrs["indices"]).reshape(-1)
    return torch.tensor(flat, dtype=torch.int64, device=like.device)


def _gather(site: Site, x: Tensor) -> Tensor:
    found = x.index_select(x.dim() + site.attrs["axis"], _indices(site, x))
    return found.reshape((*lead_of(x, site.shapes[0]), *site.shape))


def _gather_shape(attrs: Any, x: Shape) -> Shape:
    axis, indices = attrs["axis"], np.asarray(attrs["indices"])
    if not -len(x) <= axis < 0:
        raise ValueError(f"axis {axis} is outside rank {len(x)}")
    if indices.size and not 0 <= indices.min() <= indices.max() < x[axis]:
        raise ValueError(f"an index is outside an axis of size {x[axis]}")
    return (*x[: len(x) + axis], *indices.shape, *x[len(x) + axis + 1 :])


def _gather_back(site: Site, A: Tensor, x: Any) -> tuple[Tensor]:
    axis, shape = site.attrs["axis"], site.shapes[0]
    place, index = len(shape) + axis, _indices(site, A)
    lead = lead_of(A, site.shape)
    flat = A.reshape((*lead, *shape[:place], index.numel(), *shape[place + 1 :]))
    whole = A.new_zeros((*lead, *shape))
    return (whole.index_add(whole.dim() + axis, index, flat),)


def _gather_summands(site: Site) -> tuple[int, int]:
    indices = np.asarray(site.attrs["indices"]).reshape(-1)
    most = int(np.bincount(indices).max()) if indices.size else 0
    return 0, most if most > 1 else 0


def taken(b: Builder, call: Call, x: Value, axis: int, indices: Any) -> Value:
    """``x`` at constant integer ``indices`` of any shape along a negative axis.

    Raises:
        BadInput: an index is outside the axis, or not an integer.
    """
    chosen, size = np.asarray(indices), x.shape[axis]
    if chosen.dtype.kind not in "iu":
        raise BadInput(f"{call.where or call.name}: indices must be integers, not {chosen.dtype}")
    if chosen.size and not -size <= chosen.min() <= chosen.max() < size:
        raise BadInput(f"{call.where or call.name}: an index is outside an axis of size {size}")
    positive = np.where(chosen < 0, chosen + size, chosen).astype(np.int64)
    return b.add("gather", x, name=call.name, indices=positive, axis=axis)


def moved(b: Builder, call: Call, x: Value, move: Callable[[np.ndarray], np.ndarray]) -> Value:
    """``x`` rearranged as ``move`` rearranges an array of the flat positions of ``x``.

    Raises:
        BadInput: ``move`` refuses (an index out of range, shapes that do not fit).
    """
    positions = np.arange(math.prod(x.shape), dtype=np.int64).reshape(x.shape)
    try:
        found = move(positions)
    except (IndexError, ValueError) as problem:
        raise BadInput(f"{call.where or call.name}: {problem}") from None
    flat = reshaped(b, x, (positions.size,))
    return b.add("gather", flat, name=call.name, indices=np.ascontiguousarray(found), axis=-1)


def _onnx_gather(b: Builder, call: Call) -> Value:
    x: Value = call.inputs[0]
    return taken(b, call, x, axis_of(call, call.attr("axis", 0), x.rank), call.static(1))


def _index_select(b: Builder, call: Call) -> Value:
    x: Value = call.inputs[0]
    return taken(b, call, x, axis_of(call, call.inputs[1], x.rank), np.atleast_1d(call.static(2)))


def _embedding(b: Builder, call: Call) -> Value:
    return taken(b, call, call.inputs[0], -2, call.static(1))


def _aten_index(b: Builder, call: Call) -> Value:
    x: Value = call.inputs[0]
    index: list[Any] = []
    for given in call.inputs[1]:
        if isinstance(given, Value) and given.constant is None:
            raise BadInput(f"{call.where or call.name}: indices must be constants")
        index.append(None if given is None else Call("", "", (given,), {}).static(0))
    used = [k for k, given in enumerate(index) if given is not None]
    if len(used) == 1 and index[used[0]].dtype.kind in "iu":
        return taken(b, call, x, used[0] - x.rank, index[used[0]])
    chosen = tuple(slice(None) if given is None else given for given in index)
    return moved(b, call, x, lambda positions: positions[chosen])


def _gather_elements(b: Builder, call: Call) -> Value:
    x, indices = call.inputs[0], np.asarray(call.static(1))
    axis = axis_of(call, call.attr("axis", 0), x.rank)
    return _along(b, call, x, indices, axis)


def _aten_gather(b: Builder, call: Call) -> Value:
    x: Value = call.inputs[0]
    return _along(b, call, x, np.asarray(call.static(2)), axis_of(call, call.inputs[1], x.rank))


def _along(b: Builder, call: Call, x: Value, indices: np.ndarray, axis: int) -> Value:
    """Elementwise gather; other axes of ``indices`` may be shorter than those of ``x``."""
    if indices.ndim != x.rank:
        raise BadInput(
            f"{call.where or call.name}: indices of shape {indices.shape} do not fit {x.shape}"
        )

    def move(positions: np.ndarray) -> np.ndarray:
        place = x.rank + axis
        cut = tuple(slice(None) if k == place else slice(n) for k, n in enumerate(indices.shape))
        return np.asarray(np.take_along_axis(positions[cut], indices, axis))

    return moved(b, call, x, move)


def _take_along(b: Builder, call: Call) -> Value:
    x, indices = call.inputs[0], np.asarray(call.static(1))
    if call.arg(2) is None:
        return moved(b, call, x, lambda positions: positions.reshape(-1)[indices.reshape(-1)])
    axis = axis_of(call, call.inputs[2], x.rank)
    return moved(b, call, x, lambda positions: np.take_along_axis(positions, indices, axis))


def _take(b: Builder, call: Call) -> Value:
    indices = np.asarray(call.static(1))
    return moved(b, call, call.inputs[0], lambda positions: positions.reshape(-1)[indices])


def _gather_nd(b: Builder, call: Call) -> Value:
    x, indices = call.inputs[0], np.asarray(call.static(1))
    batch = int(call.attr("batch_dims", 0))
    if not 0 <= batch < min(x.rank, indices.ndim):
        raise BadInput(f"{call.where or call.name}: batch_dims {batch} for shape {x.shape}")

    def move(positions: np.ndarray) -> np.ndarray:
        grid = np.indices(indices.shape[:batch]).reshape(
            batch, *indices.shape[:batch], *(1,) * (indices.ndim - 1 - batch)
        )
        return np.asarray(positions[(*grid, *np.moveaxis(indices, -1, 0))])

    return moved(b, call, x, move)


def _flip(b: Builder, call: Call) -> Value:
    x: Value = call.inputs[0]
    for axis in axes_of(call, call.inputs[1], x.rank) if integers(call.inputs[1]) else ():
        x = b.add("gather", x, indices=np.arange(x.shape[axis])[::-1].copy(), axis=axis)
    return x


def _roll(b: Builder, call: Call) -> Value:
    x: Value = call.inputs[0]
    shifts, axes = integers(call.inputs[1]), integers(call.arg(2))
    if not axes:
        return moved(b, call, x, lambda positions: np.roll(positions, shifts[0]))
    for shift, axis in zip(spread(shifts, len(axes), 0), axes, strict=True):
        negative = axis_of(call, axis, x.rank)
        x = b.add("gather", x, indices=np.roll(np.arange(x.shape[negative]), shift), axis=negative)
    return x


def _rot90(b: Builder, call: Call) -> Value:
    turns, (one, two) = int(call.arg(1, 1)), integers(call.arg(2, (0, 1)))
    return moved(b, call, call.inputs[0], lambda positions: np.rot90(positions, turns, (one, two)))


def _diagonal(b: Builder, call: Call) -> Value:
    offset, one, two = (int(call.arg(k, d)) for k, d in ((1, 0), (2, 0), (3, 1)))
    return moved(
        b, call, call.inputs[0], lambda positions: np.diagonal(positions, offset, one, two)
    )


def _unfold(b: Builder, call: Call) -> Value:
    """``aten.unfold``: windows of ``size`` every ``step``, on a new last axis."""
    x: Value = call.inputs[0]
    axis = axis_of(call, call.inputs[1], x.rank)
    size, step = int(call.inputs[2]), int(call.inputs[3])

    def move(positions: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(positions, size, axis)
        return np.moveaxis(np.moveaxis(windows, axis - 1, 0)[::step], 0, axis - 1)

    return moved(b, call, x, move)


affine(
    "gather",
    _gather,
    shape=_gather_shape,
    transpose=_gather_back,
    summands=_gather_summands,
    monotone=True,
    examples=(
        Example(((2, 4),), {"indices": np.array([3, 0, 0]), "axis": -1}),
        Example(((3, 2, 2),), {"indices": np.array([[2, 1, 0], [1, 0, 0]]), "axis": -3}),
        Example(((2, 3),), {"indices": np.array(1), "axis": -1}),
    ),
    onnx={"Gather": _onnx_gather},
    aten={"aten.index_select.default": _index_select},
    float32_roundings=0,
    summary="elements at constant indices of one axis",
)

REGISTRY.add(
    Composite(
        "picks",
        onnx={"GatherElements": _gather_elements, "GatherND": _gather_nd},
        aten={
            "aten.index.Tensor": _aten_index,
            "aten.embedding.default": _embedding,
            "aten.gather.default": _aten_gather,
            "aten.take.default": _take,
            "aten.take_along_dim.default": _take_along,
            "aten.flip.default": _flip,
            "aten.roll.default": _roll,
            "aten.rot90.default": _rot90,
            "aten.diagonal.default": _diagonal,
            "aten.unfold.default": _unfold,
        },
        summary="constant indexing of any form, flip, roll, diagonal, windows: gather",
    )
)
