"""Stack, split, chunk, unbind, select: small graphs of concat, slice and reshape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from certify.core.errors import BadInput
from certify.ops.arguments import axis_of, integers, listed
from certify.ops.builder import Builder, Call, Value
from certify.ops.joins import joined, sliced
from certify.ops.moves import reshaped
from certify.ops.record import REGISTRY, Composite

MOST_PARTS = 2**16


def _stack(b: Builder, call: Call) -> Value:
    values = listed(call, call.inputs[0])
    axis = axis_of(call, call.arg(1, 0), values[0].rank + 1)
    place = values[0].rank + 1 + axis
    grown = [reshaped(b, v, (*v.shape[:place], 1, *v.shape[place:])) for v in values]
    return joined(b, grown, axis, call.name)


def _hstack(b: Builder, call: Call) -> Value:
    values = listed(call, call.inputs[0])
    return joined(b, values, -max(values[0].rank - 1, 1), call.name)


def _vstack(b: Builder, call: Call) -> Value:
    values = [
        v if v.rank > 1 else reshaped(b, v, (1, *v.shape)) for v in listed(call, call.inputs[0])
    ]
    return joined(b, values, -values[0].rank, call.name)


def _narrow(b: Builder, call: Call) -> Value:
    x = call.inputs[0]
    axis, start = axis_of(call, call.inputs[1], x.rank), int(call.static(2))
    start = start + x.shape[axis] if start < 0 else start
    return sliced(b, x, axis, start, start + int(call.inputs[3]), call.name)


def _select(b: Builder, call: Call) -> Value:
    x = call.inputs[0]
    return _chosen(b, call, x, axis_of(call, call.inputs[1], x.rank), int(call.static(2)))


def _chosen(b: Builder, call: Call, x: Value, axis: int, index: int) -> Value:
    size = x.shape[axis]
    if not -size <= index < size:
        raise BadInput(
            f"{call.where or call.name}: index {index} is outside an axis of size {size}"
        )
    index %= size
    place = x.rank + axis
    part = sliced(b, x, axis, index, index + 1)
    return reshaped(b, part, (*x.shape[:place], *x.shape[place + 1 :]), call.name)


def _unbind(b: Builder, call: Call) -> tuple[Value, ...]:
    x = call.inputs[0]
    axis = axis_of(call, call.arg(1, 0), x.rank)
    return tuple(_chosen(b, call, x, axis, k) for k in range(x.shape[axis]))


def _parts(b: Builder, call: Call, axis: int, sizes: Sequence[int]) -> tuple[Value, ...]:
    x = call.inputs[0]
    if sum(sizes) != x.shape[axis] or any(n < 0 for n in sizes) or len(sizes) > MOST_PARTS:
        raise BadInput(
            f"{call.where or call.name}: parts {tuple(sizes)[:8]} do not make up "
            f"an axis of size {x.shape[axis]}"
        )
    ends = np.cumsum(sizes).tolist()
    return tuple(sliced(b, x, axis, end - n, end) for n, end in zip(sizes, ends, strict=True))


def _even(size: int, step: int) -> list[int]:
    """``size`` cut into steps, the last one shorter."""
    return [min(step, size - k) for k in range(0, size, max(step, 1))] or [0]


def _onnx_split(b: Builder, call: Call) -> tuple[Value, ...]:
    x = call.inputs[0]
    axis = axis_of(call, call.attr("axis", 0), x.rank)
    sizes = list(integers(call.static(1, call.attr("split"))))
    if not sizes:
        count, size = int(call.attr("num_outputs", call.outputs)), x.shape[axis]
        if not 1 <= count <= MOST_PARTS:
            raise BadInput(f"{call.where or call.name}: a split into {count} parts")
        sizes = _even(size, -(-size // count))
        sizes += [0] * (count - len(sizes))
    return _parts(b, call, axis, sizes)


def _split(b: Builder, call: Call) -> tuple[Value, ...]:
    x = call.inputs[0]
    axis = axis_of(call, call.arg(2, 0), x.rank)
    sizes = call.inputs[1]
    even = _even(x.shape[axis], int(sizes)) if isinstance(sizes, int) else list(integers(sizes))
    return _parts(b, call, axis, even)


def _chunk(b: Builder, call: Call) -> tuple[Value, ...]:
    x = call.inputs[0]
    axis = axis_of(call, call.arg(2, 0), x.rank)
    size, count = x.shape[axis], int(call.inputs[1])
    return _parts(b, call, axis, _even(size, -(-size // count)))


def _tensor_split(b: Builder, call: Call) -> tuple[Value, ...]:
    x = call.inputs[0]
    axis = axis_of(call, call.arg(2, 0), x.rank)
    size, wanted = x.shape[axis], call.inputs[1]
    if isinstance(wanted, int):
        sizes = [size // wanted + (k < size % wanted) for k in range(wanted)]
    else:
        cuts = [0, *(slice(None, c).indices(size)[1] for c in integers(wanted)), size]
        sizes = [max(0, after - before) for before, after in zip(cuts, cuts[1:], strict=False)]
    return _parts(b, call, axis, sizes)


REGISTRY.add(
    Composite(
        "parts",
        onnx={"Split": _onnx_split},
        aten={
            "aten.stack.default": _stack,
            "aten.hstack.default": _hstack,
            "aten.vstack.default": _vstack,
            "aten.narrow.default": _narrow,
            "aten.select.int": _select,
            "aten.unbind.int": _unbind,
            "aten.split.Tensor": _split,
            "aten.split.sizes": _split,
            "aten.split_with_sizes.default": _split,
            "aten.unsafe_split.Tensor": _split,
            "aten.chunk.default": _chunk,
            "aten.unsafe_chunk.default": _chunk,
            "aten.tensor_split.sections": _tensor_split,
            "aten.tensor_split.indices": _tensor_split,
        },
        summary="stack: concat; split, chunk, unbind, select: slice",
    )
)
