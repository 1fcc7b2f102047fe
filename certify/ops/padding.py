"""Padding with a value, or by repeating what is inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.errors import BadInput, LimitExceeded, Unsupported
from certify.core.graph import Shape
from certify.ops.arguments import axis_of, integers
from certify.ops.builder import LARGEST_TENSOR, Builder, Call, Value
from certify.ops.families import affine_rule
from certify.ops.record import REGISTRY, Composite, Example, Op, Site

if TYPE_CHECKING:
    from torch import Tensor

_MODES = {
    "constant": "constant",
    "reflect": "reflect",
    "edge": "edge",
    "replicate": "edge",
    "wrap": "wrap",
    "circular": "wrap",
}


def _pairs(attrs: Any) -> list[tuple[int, int, int]]:
    """(axis, begin, end) of every padded axis; ``pads`` speaks of the last axes."""
    pads = attrs["pads"]
    k = len(pads) // 2
    return [(i - k, pads[i], pads[i + k]) for i in range(k) if pads[i] or pads[i + k]]


def _shape(attrs: Any, x: Shape) -> Shape:
    if len(attrs["pads"]) % 2 or len(attrs["pads"]) > 2 * len(x):
        raise ValueError(f"{len(attrs['pads'])} pads for a tensor of rank {len(x)}")
    shape, mode = list(x), attrs.get("mode", "constant")
    for axis, begin, end in _pairs(attrs):
        n, worst = x[axis], max(begin, end)
        if mode != "constant" and (
            min(begin, end) < 0 or n == 0 or (mode == "reflect" and worst >= n)
        ):
            raise ValueError(f"pads {begin}, {end} do not fit mode {mode!r} on an axis of size {n}")
        if n + begin + end < 0 or n + min(begin, end) < 0:
            raise ValueError(f"pads {begin}, {end} remove more than an axis of size {n} has")
        shape[axis] = n + begin + end
    return tuple(shape)


def sources(n: int, begin: int, end: int, mode: str) -> np.ndarray:
    """Which element of an axis of size ``n`` each element of the padded axis repeats."""
    places = np.arange(-begin, n + end)
    if mode == "wrap":
        return places % n
    if mode == "edge":
        return np.clip(places, 0, n - 1)
    period = max(2 * (n - 1), 1)
    folded = places % period
    return np.minimum(folded, period - folded) if n > 1 else np.zeros_like(places)


def _edges(attrs: Any, sign: int = 1) -> list[int]:
    """``pads`` in the order of `torch.nn.functional.pad`: last axis first."""
    pads = attrs["pads"]
    k = len(pads) // 2
    return [sign * p for i in reversed(range(k)) for p in (pads[i], pads[i + k])]


def _padded(site: Site, x: Tensor, value: float) -> Tensor:
    import torch
    from torch.nn.functional import pad

    mode = site.attrs.get("mode", "constant")
    if mode == "constant":
        return pad(x, _edges(site.attrs), value=value)
    for axis, begin, end in _pairs(site.attrs):
        index = torch.from_numpy(sources(x.shape[axis], begin, end, mode)).to(x.device)
        x = x.index_select(x.dim() + axis, index)
    return x


def _forward(site: Site, x: Tensor) -> Tensor:
    return _padded(site, x, site.attrs.get("value", 0.0))


def _linear(site: Site, x: Tensor) -> Tensor:
    return _padded(site, x, 0.0)


def _transpose(site: Site, A: Tensor, x: Any) -> tuple[Tensor]:
    import torch
    from torch.nn.functional import pad

    mode = site.attrs.get("mode", "constant")
    if mode == "constant":
        return (pad(A, _edges(site.attrs, -1)),)
    for axis, begin, end in _pairs(site.attrs):
        sizes = list(A.shape)
        sizes[axis] = site.shapes[0][axis]
        index = torch.from_numpy(sources(sizes[axis], begin, end, mode)).to(A.device)
        A = A.new_zeros(sizes).index_add(A.dim() + axis, index, A)
    return (A,)


def _summands(site: Site) -> tuple[int, int]:
    mode, most = site.attrs.get("mode", "constant"), 1
    if mode == "constant":
        return 0, 0
    for axis, begin, end in _pairs(site.attrs):
        most *= int(np.bincount(sources(site.shapes[0][axis], begin, end, mode)).max())
    return 0, most if most > 1 else 0


def padded(
    b: Builder,
    call: Call,
    x: Value,
    pads: tuple[int, ...],
    mode: str = "constant",
    value: float = 0.0,
) -> Value:
    """``x`` with ``pads`` (begin..., end... of its last axes); ``x`` itself where all are 0.

    Raises:
        LimitExceeded: a pad is larger than any tensor may be.
        Unsupported: a mode there is no rule for.
    """
    if any(abs(p) > LARGEST_TENSOR for p in pads):
        raise LimitExceeded(f"{call.where or call.name}: pads {pads} are beyond {LARGEST_TENSOR}")
    if mode not in _MODES:
        raise Unsupported(
            f"{call.where or call.name}: padding mode {mode!r}; use one of {sorted(_MODES)}"
        )
    if not any(pads):
        return x
    return b.add("pad", x, name=call.name, pads=pads, mode=_MODES[mode], value=float(value))


def _onnx_pad(b: Builder, call: Call) -> Value:
    x = call.inputs[0]
    pads = integers(call.static(1, call.attr("pads", call.attr("paddings"))))
    value = np.asarray(call.static(2, call.attr("value", 0.0)), dtype=np.float64)
    axes = integers(call.static(3)) or tuple(range(x.rank))
    if len(pads) != 2 * len(axes) or value.size > 1:
        raise BadInput(f"{call.where or call.name}: {len(pads)} pads for {len(axes)} axes")
    whole = [0] * (2 * x.rank)
    for k, axis in enumerate(axes):
        place = axis_of(call, axis, x.rank) + x.rank
        whole[place], whole[x.rank + place] = pads[k], pads[k + len(axes)]
    number = float(value.reshape(-1)[0]) if value.size else 0.0
    return padded(b, call, x, tuple(whole), call.attr("mode", "constant"), number)


def _last_first(given: tuple[int, ...]) -> tuple[int, ...]:
    """torch's pairs, last axis first, as begins then ends."""
    return given[-2::-2] + given[-1::-2]


def _aten_pad(b: Builder, call: Call) -> Value:
    pads = _last_first(integers(call.inputs[1]))
    return padded(b, call, call.inputs[0], pads, call.arg(2, "constant"), float(call.arg(3, 0.0)))


def _constant_pad(b: Builder, call: Call) -> Value:
    return padded(
        b,
        call,
        call.inputs[0],
        _last_first(integers(call.inputs[1])),
        value=float(call.arg(2, 0.0)),
    )


def _named_pad(mode: str) -> Any:
    def translate(b: Builder, call: Call) -> Value:
        return padded(b, call, call.inputs[0], _last_first(integers(call.inputs[1])), mode)

    return translate


_RULE = affine_rule(_linear, transpose=_transpose, summands=_summands, monotone=True)

REGISTRY.add(
    Op(
        "pad",
        _forward,
        _shape,
        (
            Example(((2, 3),), {"pads": (1, 0, 0, 2), "mode": "constant", "value": 0.0}),
            Example(((2, 3),), {"pads": (1, 0, 0, 2), "mode": "constant", "value": -1.5}),
            Example(((2, 4),), {"pads": (-1, 2), "mode": "constant", "value": 0.0}),
            Example(((3, 3),), {"pads": (1, 2, 2, 0), "mode": "reflect"}),
            Example(((3, 2),), {"pads": (1, 2, 2, 0), "mode": "edge"}),
            Example(((3, 2),), {"pads": (1, 2, 2, 0), "mode": "wrap"}),
        ),
        affine=_RULE,
        onnx={"Pad": _onnx_pad},
        aten={"aten.pad.default": _aten_pad, "aten.constant_pad_nd.default": _constant_pad},
        float32_roundings=0,
        summary="padding with a value, by reflection, by the edge, or around",
    )
)

REGISTRY.add(
    Composite(
        "named_pads",
        aten={
            **{f"aten.reflection_pad{k}d.default": _named_pad("reflect") for k in (1, 2, 3)},
            **{f"aten.replication_pad{k}d.default": _named_pad("edge") for k in (1, 2, 3)},
        },
        summary="reflection and replication padding: pad",
    )
)
