"""Sums, means and running sums over axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from certify.core.errors import BadInput
from certify.core.graph import Shape
from certify.ops.arguments import axes_of, axis_of, integers, number_of
from certify.ops.builder import Builder, Call, Value
from certify.ops.families import affine
from certify.ops.record import REGISTRY, Composite, Example, Site

if TYPE_CHECKING:
    from torch import Tensor


def reduced_shape(attrs: Any, x: Shape) -> Shape:
    """``x`` with the axes in ``attrs["axes"]`` of size 1, or gone without ``keepdims``."""
    axes = {a % len(x) if -len(x) <= a < 0 else -1 for a in attrs["axes"]}
    if -1 in axes:
        raise ValueError(f"axes {attrs['axes']} do not fit rank {len(x)}")
    if attrs.get("keepdims", True):
        return tuple(1 if k in axes else n for k, n in enumerate(x))
    return tuple(n for k, n in enumerate(x) if k not in axes)


def _terms(site: Site) -> int:
    return math.prod(site.shapes[0][a] for a in site.attrs["axes"])


def _sum(site: Site, x: Tensor) -> Tensor:
    axes = tuple(site.attrs["axes"])
    return x.sum(dim=axes, keepdim=site.attrs.get("keepdims", True)) if axes else x


def _mean(site: Site, x: Tensor) -> Tensor:
    return _sum(site, x) / max(_terms(site), 1)


def _spread_back(site: Site, A: Tensor, x: Any) -> tuple[Tensor]:
    shape, axes = site.shapes[0], {a % len(site.shapes[0]) for a in site.attrs["axes"]}
    lead = A.shape[: A.dim() - len(site.shape)]
    kept = tuple(1 if k in axes else n for k, n in enumerate(shape))
    return (A.reshape((*lead, *kept)).expand((*lead, *shape)),)


def _mean_back(site: Site, A: Tensor, x: Any) -> tuple[Tensor]:
    return _spread_back(site, A / max(_terms(site), 1), x)


def _sum_summands(site: Site) -> tuple[int, int]:
    count = _terms(site)
    return (count + 1 if count > 1 else 0), 0


def _mean_summands(site: Site) -> tuple[int, int]:
    return _terms(site) + 1, 1


def _cumsum(site: Site, x: Tensor) -> Tensor:
    return _running(
        x, site.attrs["axis"], site.attrs.get("exclusive", False), site.attrs.get("reverse", False)
    )


def _running(x: Tensor, axis: int, exclusive: bool, reverse: bool) -> Tensor:
    import torch

    x = x.flip(axis) if reverse else x
    y = x.cumsum(axis)
    if exclusive and y.shape[axis]:  # shifted, not subtracted: a difference would be rounded
        y = torch.cat(
            (torch.zeros_like(y.narrow(axis, 0, 1)), y.narrow(axis, 0, y.shape[axis] - 1)), axis
        )
    return y.flip(axis) if reverse else y


def _cumsum_back(site: Site, A: Tensor, x: Any) -> tuple[Tensor]:
    attrs = site.attrs
    return (
        _running(A, attrs["axis"], attrs.get("exclusive", False), not attrs.get("reverse", False)),
    )


def _cumsum_shape(attrs: Any, x: Shape) -> Shape:
    if not -len(x) <= attrs["axis"] < 0:
        raise ValueError(f"axis {attrs['axis']} is outside rank {len(x)}")
    return x


def _cumsum_summands(site: Site) -> tuple[int, int]:
    count = site.shapes[0][site.attrs["axis"]] + 1
    return count, count


def _onnx_reduce(op: str, input_since: int) -> Callable[[Builder, Call], Value]:
    """Axes are an attribute before opset ``input_since``, an operand from there on."""

    def translate(b: Builder, call: Call) -> Value:
        x: Value = call.inputs[0]
        given = call.static(1) if call.opset >= input_since else call.attr("axes")
        if not integers(given) and call.attr("noop_with_empty_axes", 0):
            return x
        keep = bool(call.attr("keepdims", 1))
        return b.add(op, x, name=call.name, axes=axes_of(call, given, x.rank), keepdims=keep)

    return translate


def _aten_all(op: str) -> Callable[[Builder, Call], Value]:
    def translate(b: Builder, call: Call) -> Value:
        x: Value = call.inputs[0]
        return b.add(op, x, name=call.name, axes=axes_of(call, None, x.rank), keepdims=False)

    return translate


def _aten_over(op: str) -> Callable[[Builder, Call], Value]:
    def translate(b: Builder, call: Call) -> Value:
        x: Value = call.inputs[0]
        axes = axes_of(call, call.arg(1), x.rank)
        return b.add(op, x, name=call.name, axes=axes, keepdims=bool(call.arg(2, False)))

    return translate


def _global_average(b: Builder, call: Call) -> Value:
    x: Value = call.inputs[0]
    if x.rank < 3:
        raise BadInput(
            f"{call.where or call.name}: a global pool over shape {x.shape} has no axes to pool"
        )
    return b.add("reduce_mean", x, name=call.name, axes=tuple(range(2 - x.rank, 0)), keepdims=True)


def _onnx_cumsum(b: Builder, call: Call) -> Value:
    x: Value = call.inputs[0]
    axis = axis_of(call, number_of(call, 1), x.rank)
    return b.add(
        "cumsum",
        x,
        name=call.name,
        axis=axis,
        exclusive=bool(call.attr("exclusive", 0)),
        reverse=bool(call.attr("reverse", 0)),
    )


def _aten_cumsum(b: Builder, call: Call) -> Value:
    x: Value = call.inputs[0]
    if x.rank == 0:
        return x
    return b.add(
        "cumsum",
        x,
        name=call.name,
        axis=axis_of(call, call.inputs[1], x.rank),
        exclusive=False,
        reverse=False,
    )


_EXAMPLES = (
    Example(((2, 3, 4),), {"axes": (-1, -3), "keepdims": True}),
    Example(((2, 3),), {"axes": (-2,), "keepdims": False}),
    Example(((2, 3),), {"axes": (-2, -1), "keepdims": False}),
    Example(((2, 1),), {"axes": (-1,), "keepdims": False}),
)

affine(
    "reduce_sum",
    _sum,
    shape=reduced_shape,
    transpose=_spread_back,
    summands=_sum_summands,
    monotone=True,
    examples=_EXAMPLES,
    onnx={"ReduceSum": _onnx_reduce("reduce_sum", 13)},
    aten={
        "aten.sum.default": _aten_all("reduce_sum"),
        "aten.sum.dim_IntList": _aten_over("reduce_sum"),
    },
    float32_roundings=0,
    summary="sum over axes",
)

affine(
    "reduce_mean",
    _mean,
    shape=reduced_shape,
    transpose=_mean_back,
    summands=_mean_summands,
    monotone=True,
    roundings=1,
    examples=_EXAMPLES,
    onnx={"ReduceMean": _onnx_reduce("reduce_mean", 18)},
    aten={
        "aten.mean.default": _aten_all("reduce_mean"),
        "aten.mean.dim": _aten_over("reduce_mean"),
    },
    float32_roundings=0,
    summary="mean over axes",
)

affine(
    "cumsum",
    _cumsum,
    shape=_cumsum_shape,
    transpose=_cumsum_back,
    summands=_cumsum_summands,
    monotone=True,
    examples=(
        Example(((2, 4),), {"axis": -1, "exclusive": False, "reverse": False}),
        Example(((3, 2),), {"axis": -2, "exclusive": True, "reverse": False}),
        Example(((3,),), {"axis": -1, "exclusive": True, "reverse": True}),
    ),
    onnx={"CumSum": _onnx_cumsum},
    aten={"aten.cumsum.default": _aten_cumsum},
    float32_roundings=0,
    summary="running sum along an axis",
)

REGISTRY.add(
    Composite(
        "global_average",
        onnx={"GlobalAveragePool": _global_average},
        summary="mean over all spatial axes: reduce_mean",
    )
)
