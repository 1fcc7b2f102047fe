"""Concatenation and slicing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.errors import BadInput
from certify.core.graph import Shape
from certify.ops.arguments import axis_of, integers, listed
from certify.ops.builder import Builder, Call, Value
from certify.ops.families import affine
from certify.ops.moves import lead_of
from certify.ops.record import REGISTRY, AffineRule, Example, Op, Site

if TYPE_CHECKING:
    from torch import Tensor


def _concat(site: Site, *parts: Tensor) -> Tensor:
    import torch

    leads = [lead_of(p, s) for p, s in zip(parts, site.shapes, strict=True)]
    lead = np.broadcast_shapes(*leads)
    whole = [p.expand((*lead, *s)) for p, s in zip(parts, site.shapes, strict=True)]
    return torch.cat(whole, dim=site.attrs["axis"])


def _concat_linear(site: Site, *parts: Any) -> Tensor:
    like = next(p for p, varies in zip(parts, site.varies, strict=True) if varies)
    zeroed = [
        p if varies else like.new_zeros(shape)
        for p, varies, shape in zip(parts, site.varies, site.shapes, strict=True)
    ]
    return _concat(site, *zeroed)


def _concat_shape(attrs: Any, *parts: Shape) -> Shape:
    axis, first = attrs["axis"], parts[0]
    if not -len(first) <= axis < 0:
        raise ValueError(f"axis {axis} is outside rank {len(first)}")
    for part in parts[1:]:
        if len(part) != len(first) or any(
            a != b
            for k, (a, b) in enumerate(zip(part, first, strict=True))
            if k - len(first) != axis
        ):
            raise ValueError(f"shapes {first} and {part} differ beside axis {axis}")
    shape = list(first)
    shape[axis] = sum(p[axis] for p in parts)
    return tuple(shape)


def _concat_back(site: Site, A: Tensor, *parts: Any) -> tuple[Tensor | None, ...]:
    axis, start = site.attrs["axis"], 0
    found: list[Tensor | None] = []
    for shape, varies in zip(site.shapes, site.varies, strict=True):
        found.append(A.narrow(axis, start, shape[axis]) if varies else None)
        start += shape[axis]
    return tuple(found)


def _windows(site: Site) -> list[tuple[int, int, int, int]]:
    """Per sliced axis: (axis, start, stop, step), all resolved and non-negative."""
    return [
        (axis, *slice(start, end, step).indices(site.shapes[0][axis]))
        for axis, start, end, step in zip(*_slice_attrs(site.attrs), strict=True)
    ]


def _slice_attrs(attrs: Any) -> tuple[Sequence[int], ...]:
    axes = attrs["axes"]
    return axes, attrs["starts"], attrs["ends"], attrs.get("steps") or (1,) * len(axes)


def _index(site: Site) -> tuple[Any, ...]:
    index: list[Any] = [slice(None)] * len(site.shapes[0])
    for axis, start, stop, step in _windows(site):
        index[axis] = slice(start, max(start, stop), step)
    return (..., *index)


def _slice(site: Site, x: Tensor) -> Tensor:
    return x[_index(site)]


def _slice_shape(attrs: Any, x: Shape) -> Shape:
    shape = list(x)
    for axis, start, end, step in zip(*_slice_attrs(attrs), strict=True):
        if step < 1:
            raise ValueError(f"step {step} is not positive")
        if not -len(x) <= axis < 0:
            raise ValueError(f"axis {axis} is outside rank {len(x)}")
        shape[axis] = len(range(*slice(start, end, step).indices(x[axis])))
    return tuple(shape)


def _slice_back(site: Site, A: Tensor, x: Any) -> tuple[Tensor]:
    from torch.nn.functional import pad

    shape, windows = site.shapes[0], _windows(site)
    if all(step == 1 for *_, step in windows):
        edges = [0] * (2 * len(shape))
        for axis, start, stop, _ in windows:
            edges[2 * (-axis - 1)] = start
            edges[2 * (-axis - 1) + 1] = shape[axis] - max(start, stop)
        return (pad(A, edges),)
    whole = A.new_zeros((*lead_of(A, site.shape), *shape))
    whole[_index(site)] = A
    return (whole,)


def sliced(b: Builder, x: Value, axis: int, start: int, end: int, name: str | None = None) -> Value:
    """``x[start:end]`` along one axis; ``x`` itself where that is everything."""
    if start == 0 and end >= x.shape[axis]:
        return x
    axis = axis - x.rank if axis >= 0 else axis
    return b.add("slice", x, name=name, axes=(axis,), starts=(start,), ends=(end,), steps=(1,))


def joined(b: Builder, values: Sequence[Value], axis: int, name: str | None = None) -> Value:
    """Values one after the other along a negative axis."""
    return values[0] if len(values) == 1 else b.add("concat", *values, name=name, axis=axis)


def _onnx_concat(b: Builder, call: Call) -> Value:
    values = listed(call, call.inputs)
    return joined(b, values, axis_of(call, call.attr("axis", 1), values[0].rank), call.name)


def _cat(b: Builder, call: Call) -> Value:
    values = listed(call, call.inputs[0])
    kept = [v for v in values if v.shape != (0,)] or list(values)
    return joined(b, kept, axis_of(call, call.arg(1, 0), kept[0].rank), call.name)


def _onnx_slice(b: Builder, call: Call) -> Value:
    x = call.inputs[0]
    starts = integers(call.static(1, call.attr("starts")))
    ends = integers(call.static(2, call.attr("ends")))
    axes = integers(call.static(3, call.attr("axes"))) or tuple(range(len(starts)))
    steps = integers(call.static(4)) or (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise BadInput(f"{call.where or call.name}: starts, ends, axes and steps differ in length")
    placed = [axis_of(call, a, x.rank) for a in axes]
    return _stepped(b, call, list(zip(placed, starts, ends, steps, strict=True)))


def _stepped(b: Builder, call: Call, parts: Sequence[tuple[int, int, int, int]]) -> Value:
    """A slice from (axis, start, end, step) parts; axes with a negative step are gathered."""
    x: Value = call.inputs[0]
    for axis, start, end, step in parts:
        if step == 0:
            raise BadInput(f"{call.where or call.name}: a slice with step 0")
        if step < 0:
            size = x.shape[axis]
            # ONNX clamps a start below the first element, and an end there means "to the first".
            reach = slice(max(start, -size), None if end < -size else end, step)
            indices = np.asarray(range(size)[reach], dtype=np.int64)
            x = b.add("gather", x, indices=indices, axis=axis)
    forward = [part for part in parts if part[3] > 0]
    if not forward:
        return x
    names = ("axes", "starts", "ends", "steps")
    attrs = dict(zip(names, zip(*forward, strict=True), strict=True))
    return b.add("slice", x, name=call.name, **attrs)


def _aten_slice(b: Builder, call: Call) -> Value:
    x = call.inputs[0]
    axis = axis_of(call, call.arg(1, 0), x.rank)
    start, end = int(call.arg(2, 0)), int(call.arg(3, x.shape[axis]))
    return _stepped(b, call, [(axis, start, end, int(call.arg(4, 1)))])


REGISTRY.add(
    Op(
        "concat",
        _concat,
        _concat_shape,
        (
            Example(((2, 3), (2, 1)), {"axis": -1}),
            Example(((2, 3), np.linspace(-1, 1, 6).reshape(2, 3), (2, 3)), {"axis": -2}),
            Example((np.ones((1, 2, 2)), (3, 2, 2)), {"axis": -3}),
        ),
        affine=AffineRule(
            _concat_linear, _concat_linear, _concat_back, lambda site: (0, 0), monotone=True
        ),
        onnx={"Concat": _onnx_concat},
        aten={
            name: _cat
            for name in ("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
        },
        float32_roundings=0,
        summary="operands one after the other along an axis; any may be constant",
    )
)

affine(
    "slice",
    _slice,
    shape=_slice_shape,
    transpose=_slice_back,
    summands=lambda site: (0, 0),
    monotone=True,
    examples=(
        Example(
            ((4, 6),), {"axes": (-1, -2), "starts": (1, -3), "ends": (6, 2**40), "steps": (2, 1)}
        ),
        Example(((5,),), {"axes": (-1,), "starts": (0,), "ends": (-1,)}),
    ),
    onnx={"Slice": _onnx_slice},
    aten={"aten.slice.Tensor": _aten_slice},
    float32_roundings=0,
    summary="a regular part of each axis",
)
