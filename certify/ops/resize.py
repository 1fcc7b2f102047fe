"""Resizing: nearest neighbour picks elements, linear interpolation averages two per axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from certify.core.errors import BadInput, LimitExceeded, Unsupported
from certify.core.graph import Shape
from certify.ops.arguments import axis_of, integers
from certify.ops.builder import LARGEST_TENSOR, Builder, Call, Value
from certify.ops.families import affine
from certify.ops.record import Example, Site

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST_AXIS = 2**12  # a linear resize holds an (out, in) matrix per axis
_PLACES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
)
_ROUNDINGS = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")


class Method(NamedTuple):
    """How values are found: ONNX Resize's mode, coordinate transformation and nearest mode."""

    mode: str
    place: str
    rounding: str = "floor"


class Axis(NamedTuple):
    """One resized axis: ``scale`` is what the model states, or None for ``out / size``."""

    size: int
    out: int
    scale: float | None


def _place(i: int, axis: Axis, place: str, number: Callable[..., Any]) -> Any:
    """Where result element ``i`` lies on the source axis (ONNX Resize), computed in ``number``."""
    scale = number(axis.scale) if axis.scale is not None else number(axis.out) / number(axis.size)
    half = number(1) / number(2)
    if place == "align_corners":
        if axis.out == 1:
            return number(0)
        return number(i) * number(axis.size - 1) / number(axis.out - 1)
    if place == "asymmetric":
        return number(i) / scale
    if place == "pytorch_half_pixel" and axis.out == 1:
        return number(0)
    found = (number(i) + half) / scale - half
    if place == "half_pixel_symmetric":
        adjustment = number(axis.out) / (scale * number(axis.size))
        found = found + number(axis.size) / number(2) * (number(1) - adjustment)
    return found


@lru_cache(maxsize=256)
def matrix(axis: Axis, place: str) -> np.ndarray:
    """``(out, size)`` weights of linear interpolation, exact up to one rounding each."""
    found = np.zeros((axis.out, axis.size))
    for i in range(axis.out):
        x = min(max(_place(i, axis, place, Fraction), Fraction(0)), Fraction(axis.size - 1))
        low = math.floor(x)
        found[i, low] += float(1 - (x - low))
        if low + 1 < axis.size:
            found[i, low + 1] += float(x - low)
    found.setflags(write=False)
    return found


def nearest(axis: Axis, place: str, rounding: str) -> np.ndarray:
    """The source element of each result element, by the float32 arithmetic of the runtimes."""
    found = []
    for i in range(axis.out):
        x = float(_place(i, axis, place, np.float32))
        if x.is_integer():
            chosen = int(x)
        elif rounding == "floor":
            chosen = math.floor(x)
        elif rounding == "ceil":
            chosen = math.ceil(x)
        else:
            below, half = math.floor(x), x - math.floor(x)
            up = half > 0.5 or (half == 0.5 and rounding == "round_prefer_ceil")
            chosen = below + up
        found.append(min(max(chosen, 0), axis.size - 1))
    return np.asarray(found, dtype=np.int64)


def _axes(site: Site) -> list[tuple[int, Axis]]:
    attrs = site.attrs
    scales = attrs.get("scales") or (None,) * len(attrs["axes"])
    return [
        (axis, Axis(site.shapes[0][axis], out, scale))
        for axis, out, scale in zip(attrs["axes"], attrs["sizes"], scales, strict=True)
    ]


def _applied(site: Site, x: Tensor, back: bool) -> Tensor:
    import torch

    for axis, settings in _axes(site):
        weights = np.array(matrix(settings, site.attrs.get("place", "half_pixel")))
        held = torch.as_tensor(weights, dtype=x.dtype, device=x.device)
        moved = x.movedim(axis, -1)
        x = (moved @ (held if back else held.T)).movedim(-1, axis)
    return x


def _shape(attrs: Any, x: Shape) -> Shape:
    shape = list(x)
    for axis, out in zip(attrs["axes"], attrs["sizes"], strict=True):
        if not -len(x) <= axis < 0 or x[axis] < 1 or out < 1:
            raise ValueError(f"an axis of shape {x} cannot take {out} elements")
        if max(out, x[axis]) > _LONGEST_AXIS:
            raise ValueError(
                f"linear resizing from {x[axis]} to {out} elements is beyond {_LONGEST_AXIS}"
            )
        shape[axis] = out
    if len(attrs["axes"]) > 4:
        raise ValueError("linear resizing of more than four axes")
    return tuple(shape)


def _summands(site: Site) -> tuple[int, int]:
    under = over = 1
    for _, settings in _axes(site):
        used = matrix(settings, site.attrs.get("place", "half_pixel")) != 0
        under, over = under * int(used.sum(1).max()), over * int(used.sum(0).max())
    return under + 1, over + 1


def resized(b: Builder, call: Call, axes: dict[int, Axis], method: Method) -> Value:
    """The first operand resized along ``axes``; nearest neighbours become gathers.

    Raises:
        Unsupported: a mode, coordinate or rounding there is no rule for.
        LimitExceeded: the result would be too large.
    """
    where = call.where or call.name
    x: Value = call.inputs[0]
    mode, place, rounding = method
    if mode not in ("nearest", "linear"):
        raise Unsupported(f"{where}: resize mode {mode!r}; use nearest or linear")
    # In this combination ties depend on the order of float operations.
    ties = place == "half_pixel_symmetric" and mode == "nearest"
    if place not in _PLACES or rounding not in _ROUNDINGS or ties:
        raise Unsupported(f"{where}: resize with {place!r}, {rounding!r}")
    if any(a.out < 1 or a.size < 1 for a in axes.values()):
        raise BadInput(f"{where}: resize of shape {x.shape} to an empty tensor")
    if math.prod(x.shape) * math.prod(a.out / a.size for a in axes.values()) > LARGEST_TENSOR:
        raise LimitExceeded(f"{where}: resize makes more than {LARGEST_TENSOR} elements")
    if mode == "nearest":
        for axis, settings in axes.items():
            indices = nearest(settings, place, rounding)
            if not np.array_equal(indices, np.arange(settings.size)):
                x = b.add("gather", x, indices=indices, axis=axis)
        return x
    # An axis whose interpolation matrix is the identity is left alone.
    kept = {k: a for k, a in axes.items() if a.out != a.size or a.scale not in (None, 1.0)}
    if not kept:
        return x
    return b.add(
        "resize",
        x,
        name=call.name,
        axes=tuple(kept),
        sizes=tuple(a.out for a in kept.values()),
        scales=tuple(a.scale for a in kept.values()),
        place=place,
    )


def _onnx_resize(b: Builder, call: Call) -> Value:
    """Opset 10 has (x, scales) and one meaning; from 11 on (x, roi, scales, sizes)."""
    x, early = call.inputs[0], call.opset < 11
    where = call.where or call.name
    if call.attr("antialias", 0) or call.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unsupported(f"{where}: resize with antialias or keep_aspect_ratio_policy")
    scales = call.static(1 if early else 2)
    sizes = None if early else call.static(3)
    axes = [axis_of(call, a, x.rank) for a in integers(call.attr("axes")) or range(x.rank)]
    place = "asymmetric" if early else call.attr("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if early else call.attr("nearest_mode", "round_prefer_floor")
    method = Method(_mode(call), place, rounding)
    return resized(b, call, _planned(call, x, axes, sizes, scales), method)


def _mode(call: Call) -> str:
    mode = str(call.attr("mode", "nearest"))
    return "linear" if mode in ("bilinear", "trilinear") else mode


def _upsample(b: Builder, call: Call) -> Value:
    """ONNX Upsample (opsets 7 to 9): asymmetric coordinates, rounded down."""
    x = call.inputs[0]
    scales = call.static(1, call.attr("scales"))
    axes = _planned(call, x, list(range(-x.rank, 0)), None, scales)
    return resized(b, call, axes, Method(_mode(call), "asymmetric"))


def _planned(call: Call, x: Value, axes: Sequence[int], sizes: Any, scales: Any) -> dict[int, Axis]:
    """What changes: sizes where given, else ``floor(size * scale)``, for each of ``axes``."""
    given = integers(sizes)
    factors = [
        float(s) for s in np.asarray([] if scales is None else scales, dtype=np.float64).reshape(-1)
    ]
    if len(given or factors) != len(axes) or any(not 0 < f < math.inf for f in factors):
        raise BadInput(
            f"{call.where or call.name}: resize needs one size or one positive scale per axis"
        )
    found = {}
    for k, axis in enumerate(axes):
        n = x.shape[axis]
        if given:
            found[axis] = Axis(n, given[k], None)
        else:
            # ONNX Runtime multiplies in float32: 10 * 2.3f is 23 there, 22.9999995 in real numbers.
            found[axis] = Axis(n, int(np.floor(np.float32(n) * np.float32(factors[k]))), factors[k])
    return {k: a for k, a in found.items() if a.out != a.size or a.scale not in (None, 1.0)}


def _aten_sizes(call: Call, rank: int, scales: Any, exact: bool = False) -> dict[int, Axis]:
    """torch leaves alone an axis that keeps its size, whatever its scale (not nearest-exact)."""
    x, given = call.inputs[0], integers(call.inputs[1])
    factors = [None] * rank if scales is None else [None if s is None else float(s) for s in scales]
    found = {}
    for k, (n, factor) in enumerate(zip(x.shape[-rank:], factors, strict=True)):
        out = given[k] if given else math.floor(n * (factor or 1.0))
        found[k - rank] = Axis(n, out, None if out == n and not exact else factor)
    return found


def _aten_linear(rank: int, listed: bool) -> Callable[[Builder, Call], Value]:
    """``.vec`` lists its scales; the other overload has one argument per axis."""

    def translate(b: Builder, call: Call) -> Value:
        scales = call.arg(3) if listed else call.inputs[3 : 3 + rank]
        axes = _aten_sizes(call, rank, scales)
        place = "align_corners" if call.inputs[2] else "half_pixel"
        return resized(b, call, axes, Method("linear", place))

    return translate


def _aten_nearest(rank: int, listed: bool, exact: bool) -> Callable[[Builder, Call], Value]:
    def translate(b: Builder, call: Call) -> Value:
        x: Value = call.inputs[0]
        scales = call.arg(2) if listed else call.inputs[2 : 2 + rank]
        for axis, settings in _aten_sizes(call, rank, scales, exact).items():
            x = b.add("gather", x, indices=_torch_nearest(settings, exact), axis=axis)
        return x

    return translate


def _torch_nearest(axis: Axis, exact: bool) -> np.ndarray:
    """torch multiplies by the inverse scale, in float32, except when it doubles."""
    if axis.out == 2 * axis.size and not exact:
        return np.arange(axis.out, dtype=np.int64) // 2
    ratio = (
        np.float32(1.0 / axis.scale) if axis.scale else np.float32(axis.size) / np.float32(axis.out)
    )
    places = np.arange(axis.out, dtype=np.float32)
    chosen: np.ndarray = np.floor((places + np.float32(0.5)) * ratio if exact else places * ratio)
    return np.minimum(chosen.astype(np.int64), axis.size - 1)


def _aten_names() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for rank, name in ((1, "linear1d"), (2, "bilinear2d"), (3, "trilinear3d")):
        for overload in ("vec", "default"):
            listed = overload == "vec"
            found[f"aten.upsample_{name}.{overload}"] = _aten_linear(rank, listed)
            found[f"aten.upsample_nearest{rank}d.{overload}"] = _aten_nearest(rank, listed, False)
            found[f"aten._upsample_nearest_exact{rank}d.{overload}"] = _aten_nearest(
                rank, listed, True
            )
    return found


affine(
    "resize",
    lambda site, x: _applied(site, x, False),
    shape=_shape,
    transpose=lambda site, A, x: (_applied(site, A, True),),
    summands=_summands,
    monotone=True,
    roundings=4,
    examples=(
        Example(((1, 2, 3, 3),), {"axes": (-2, -1), "sizes": (6, 5), "place": "half_pixel"}),
        Example(((2, 4),), {"axes": (-1,), "sizes": (6,), "scales": (1.6,), "place": "asymmetric"}),
        Example(((5, 2),), {"axes": (-2,), "sizes": (3,), "place": "align_corners"}),
    ),
    onnx={"Resize": _onnx_resize, "Upsample": _upsample},
    aten=_aten_names(),
    float32_roundings=0,
    summary="linear interpolation along axes; nearest neighbours are gathers",
)
