"""Operators that only rename where values are: reshape and transpose, and what expands to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from certify.core.errors import BadInput
from certify.core.graph import Shape
from certify.ops.arguments import axes_of, axis_of, integers
from certify.ops.builder import Builder, Call, Value
from certify.ops.families import affine
from certify.ops.record import REGISTRY, Composite, Example, Site

if TYPE_CHECKING:
    from torch import Tensor


def lead_of(x: Tensor, shape: Shape) -> tuple[int, ...]:
    """The batch axes in front of an operand of ``shape``."""
    return tuple(x.shape[: x.dim() - len(shape)])


def _reshape(site: Site, x: Tensor) -> Tensor:
    return x.reshape((*lead_of(x, site.shapes[0]), *site.shape))


def _reshape_shape(attrs: Any, x: Shape) -> Shape:
    shape = tuple(attrs["shape"])
    if math.prod(shape) != math.prod(x):
        raise ValueError(f"{math.prod(x)} elements of shape {x} cannot take the shape {shape}")
    return shape


def _reshape_back(site: Site, A: Tensor, x: Any) -> tuple[Tensor]:
    return (A.reshape((*lead_of(A, site.shape), *site.shapes[0])),)


def _transpose(site: Site, x: Tensor) -> Tensor:
    return _permuted(x, site.attrs["perm"])


def _transpose_shape(attrs: Any, x: Shape) -> Shape:
    perm = attrs["perm"]
    if sorted(perm) != list(range(-len(x), 0)):
        raise ValueError(
            f"perm {tuple(perm)} is not a permutation of the axes of a rank-{len(x)} tensor"
        )
    return tuple(x[p] for p in perm)


def _transpose_back(site: Site, A: Tensor, x: Any) -> tuple[Tensor]:
    perm = site.attrs["perm"]
    inverse = [0] * len(perm)
    for k, p in enumerate(perm):
        inverse[p] = k - len(perm)
    return (_permuted(A, inverse),)


def _permuted(x: Tensor, perm: Sequence[int]) -> Tensor:
    lead = x.dim() - len(perm)
    return x.permute(*range(lead), *(x.dim() + p for p in perm))


def reshaped(b: Builder, x: Value, shape: Sequence[int], name: str | None = None) -> Value:
    """``x`` in another shape; ``x`` itself where nothing changes."""
    wanted = tuple(int(n) for n in shape)
    return x if wanted == x.shape else b.add("reshape", x, name=name, shape=wanted)


def permuted(b: Builder, x: Value, perm: Sequence[int], name: str | None = None) -> Value:
    """``x`` with axis k of the result taken from axis ``perm[k]`` (any sign)."""
    negative = tuple(p - x.rank if p >= 0 else p for p in perm)
    if negative == tuple(range(-x.rank, 0)):
        return x
    return b.add("transpose", x, name=name, perm=negative)


def _resolved(call: Call, x: Value, wanted: Sequence[int], zero_copies: bool) -> Shape:
    """The target shape with 0 (copy, ONNX only) and -1 (whatever is left) filled in."""
    sizes = list(wanted)
    for k, size in enumerate(sizes):
        if size == 0 and zero_copies:
            if k >= x.rank:
                raise BadInput(
                    f"{call.where or call.name}: shape {tuple(wanted)} copies axis {k}, "
                    f"which an operand of shape {x.shape} does not have"
                )
            sizes[k] = x.shape[k]
    if sizes.count(-1) > 1 or any(size < -1 for size in sizes):
        raise BadInput(f"{call.where or call.name}: {tuple(wanted)} is not a shape")
    if -1 in sizes:
        rest = math.prod(size for size in sizes if size != -1)
        if rest == 0 or math.prod(x.shape) % rest:
            raise BadInput(
                f"{call.where or call.name}: shape {x.shape} cannot become {tuple(wanted)}"
            )
        sizes[sizes.index(-1)] = math.prod(x.shape) // rest
    return tuple(sizes)


def _onnx_reshape(b: Builder, call: Call) -> Value:
    x: Value = call.inputs[0]
    wanted = integers(call.static(1, call.attr("shape")))
    return reshaped(b, x, _resolved(call, x, wanted, not call.attr("allowzero", 0)), call.name)


def _view(b: Builder, call: Call) -> Value:
    x: Value = call.inputs[0]
    return reshaped(b, x, _resolved(call, x, integers(call.arg(1, ())), False), call.name)


def _view_as(b: Builder, call: Call) -> Value:
    return reshaped(b, call.inputs[0], call.inputs[1].shape, call.name)


def _onnx_flatten(b: Builder, call: Call) -> Value:
    x, axis = call.inputs[0], int(call.attr("axis", 1))
    if not -x.rank <= axis <= x.rank:
        raise BadInput(
            f"{call.where or call.name}: axis {axis} is outside a tensor of rank {x.rank}"
        )
    axis = axis + x.rank if axis < 0 else axis
    return reshaped(b, x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])), call.name)


def _aten_flatten(b: Builder, call: Call) -> Value:
    x: Value = call.inputs[0]
    if x.rank == 0:
        return reshaped(b, x, (1,), call.name)
    first = axis_of(call, call.arg(1, 0), x.rank) + x.rank
    last = axis_of(call, call.arg(2, -1), x.rank) + x.rank
    middle = math.prod(x.shape[first : last + 1])
    return reshaped(b, x, (*x.shape[:first], middle, *x.shape[last + 1 :]), call.name)


def _ravel(b: Builder, call: Call) -> Value:
    return reshaped(b, call.inputs[0], (math.prod(call.inputs[0].shape),), call.name)


def _unflatten(b: Builder, call: Call) -> Value:
    x: Value = call.inputs[0]
    axis = axis_of(call, call.inputs[1], x.rank) + x.rank
    part = Value(x.name, (x.shape[axis],))
    sizes = _resolved(call, part, integers(call.inputs[2]), False)
    return reshaped(b, x, (*x.shape[:axis], *sizes, *x.shape[axis + 1 :]), call.name)


def _squeezed(b: Builder, call: Call, axes: Any, strict: bool) -> Value:
    x: Value = call.inputs[0]
    given = axes_of(call, axes, x.rank) if integers(axes) else ()
    chosen = given if given or axes is not None else tuple(range(-x.rank, 0))
    if strict and any(x.shape[a] != 1 for a in given):
        raise BadInput(
            f"{call.where or call.name}: only axes of size 1 can be squeezed, "
            f"not {given} of {x.shape}"
        )
    kept = [n for k, n in enumerate(x.shape) if not (n == 1 and k - x.rank in chosen)]
    return reshaped(b, x, kept, call.name)


def _onnx_squeeze(b: Builder, call: Call) -> Value:
    axes = call.static(1, call.attr("axes"))
    return _squeezed(b, call, axes if integers(axes) else None, True)


def _aten_squeeze(b: Builder, call: Call) -> Value:
    return _squeezed(b, call, call.arg(1), False)


def _unsqueeze(b: Builder, call: Call) -> Value:
    x: Value = call.inputs[0]
    axes = integers(call.static(1, call.attr("axes")))
    rank = x.rank + len(axes)
    placed = {axis_of(call, axis, rank) + rank for axis in axes}
    if len(placed) != len(axes):
        raise BadInput(f"{call.where or call.name}: axes {axes} repeat")
    sizes = iter(x.shape)
    return reshaped(b, x, [1 if k in placed else next(sizes) for k in range(rank)], call.name)


def _onnx_transpose(b: Builder, call: Call) -> Value:
    x: Value = call.inputs[0]
    perm = call.attr("perm")
    return permuted(b, x, tuple(range(x.rank))[::-1] if perm is None else integers(perm), call.name)


def _permute(b: Builder, call: Call) -> Value:
    return permuted(b, call.inputs[0], integers(call.inputs[1]), call.name)


def _reversed_axes(b: Builder, call: Call) -> Value:
    rank = call.inputs[0].rank
    return permuted(b, call.inputs[0], tuple(range(rank))[::-1], call.name)


def _matrix_transpose(b: Builder, call: Call) -> Value:
    return _swapped(b, call, -1, -2)


def _swap(b: Builder, call: Call) -> Value:
    return _swapped(b, call, call.inputs[1], call.inputs[2])


def _swapped(b: Builder, call: Call, one: Any, other: Any) -> Value:
    x: Value = call.inputs[0]
    perm = list(range(-x.rank, 0))
    if x.rank == 0:
        return x
    i, j = axis_of(call, one, x.rank), axis_of(call, other, x.rank)
    perm[i], perm[j] = perm[j], perm[i]
    return permuted(b, x, perm, call.name)


def _movedim(b: Builder, call: Call) -> Value:
    x: Value = call.inputs[0]
    sources = [axis_of(call, a, x.rank) + x.rank for a in integers(call.inputs[1])]
    targets = [axis_of(call, a, x.rank) + x.rank for a in integers(call.inputs[2])]
    rest = iter(k for k in range(x.rank) if k not in sources)
    placed = dict(zip(targets, sources, strict=True))
    return permuted(
        b, x, [placed[k] if k in placed else next(rest) for k in range(x.rank)], call.name
    )


affine(
    "reshape",
    _reshape,
    shape=_reshape_shape,
    transpose=_reshape_back,
    summands=lambda site: (0, 0),
    monotone=True,
    examples=(Example(((2, 6),), {"shape": (3, 4)}), Example(((),), {"shape": (1, 1)})),
    onnx={"Reshape": _onnx_reshape},
    aten={
        name: _view
        for name in ("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default")
    },
    float32_roundings=0,
    summary="the same values in another shape",
)

affine(
    "transpose",
    _transpose,
    shape=_transpose_shape,
    transpose=_transpose_back,
    summands=lambda site: (0, 0),
    monotone=True,
    examples=(
        Example(((2, 3, 4),), {"perm": (-1, -3, -2)}),
        Example(((2, 3),), {"perm": (-1, -2)}),
    ),
    onnx={"Transpose": _onnx_transpose},
    aten={"aten.permute.default": _permute},
    float32_roundings=0,
    summary="axes in another order",
)

REGISTRY.add(
    Composite(
        "views",
        onnx={"Flatten": _onnx_flatten, "Squeeze": _onnx_squeeze, "Unsqueeze": _unsqueeze},
        aten={
            "aten.flatten.using_ints": _aten_flatten,
            "aten.ravel.default": _ravel,
            "aten.unflatten.int": _unflatten,
            "aten.squeeze.default": _aten_squeeze,
            "aten.squeeze.dim": _aten_squeeze,
            "aten.squeeze.dims": _aten_squeeze,
            "aten.unsqueeze.default": _unsqueeze,
            "aten.view_as.default": _view_as,
            "aten.reshape_as.default": _view_as,
        },
        summary="flatten, squeeze, unsqueeze: reshape",
    )
)

REGISTRY.add(
    Composite(
        "axis_orders",
        aten={
            "aten.t.default": _reversed_axes,
            "aten.numpy_T.default": _reversed_axes,
            "aten.mT.default": _matrix_transpose,
            "aten.adjoint.default": _matrix_transpose,
            "aten.transpose.int": _swap,
            "aten.swapaxes.default": _swap,
            "aten.swapdims.default": _swap,
            "aten.movedim.int": _movedim,
            "aten.movedim.intlist": _movedim,
            "aten.moveaxis.int": _movedim,
            "aten.moveaxis.intlist": _movedim,
        },
        summary="swapped or moved axes: transpose",
    )
)
