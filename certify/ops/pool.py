"""Average pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.errors import BadInput, Unsupported
from certify.core.graph import Shape
from certify.ops.arguments import integers, spread
from certify.ops.builder import Builder, Call, Value
from certify.ops.conv import bordered
from certify.ops.families import affine
from certify.ops.moves import permuted
from certify.ops.record import REGISTRY, Composite, Example, Site
from certify.ops.windows import Window, aten_window, onnx_window, products, window_of

if TYPE_CHECKING:
    from torch import Tensor


def _counts_of_windows(attrs: Any, size: Shape, kernel: Shape, window: Window) -> Shape:
    """Windows per axis; rounding up starts none beyond the input and its left padding."""
    found = []
    for n, r, s, p, q in zip(
        size, window.reach(kernel), window.strides, window.begins, window.ends, strict=True
    ):
        room = n + p + q - r
        count = (-(-room // s) if attrs.get("ceil_mode") else room // s) + 1
        if attrs.get("ceil_mode") and (count - 1) * s >= n + p:
            count -= 1
        if count < 1:
            raise ValueError(
                f"a kernel that spans {r} does not fit into {n} elements with pads {p} and {q}"
            )
        found.append(count)
    return tuple(found)


def _shape(attrs: Any, x: Shape) -> Shape:
    kernel = tuple(attrs["kernel"])
    rank = len(kernel)
    if not kernel or min(kernel) < 1 or len(x) < rank:
        raise ValueError(f"kernel {kernel} over a tensor of shape {x}")
    window = window_of(attrs, rank)
    return (*x[: len(x) - rank], *_counts_of_windows(attrs, x[-rank:], kernel, window))


def _divisors(site: Site, window: Window) -> np.ndarray:
    """How many elements each window is averaged over, ``(*output size)``."""
    kernel, rank = site.attrs["kernel"], window.rank
    if site.attrs.get("divisor"):
        return np.full((1,) * rank, float(site.attrs["divisor"]))
    whole = np.ones((1,) * rank)
    for k, (n, m) in enumerate(zip(site.shapes[0][-rank:], site.shape[-rank:], strict=True)):
        begin, end = window.begins[k], window.ends[k]
        taps = np.arange(m)[:, None] * window.strides[k] - begin
        taps = taps + np.arange(kernel[k])[None, :] * window.dilations[k]
        low, high = (-begin, n + end) if site.attrs.get("count_include_pad") else (0, n)
        counts = ((taps >= low) & (taps < high)).sum(1)
        whole = whole * np.maximum(counts, 1).reshape((-1, *(1,) * (rank - k - 1)))
    return whole


def _divided(site: Site, y: Tensor, window: Window) -> Tensor:
    import torch

    return y / torch.as_tensor(_divisors(site, window), dtype=y.dtype, device=y.device)


def _forward(site: Site, x: Tensor) -> Tensor:
    """Sums along one axis after the other, then one division."""
    kernel = site.attrs["kernel"]
    rank = len(kernel)
    window = window_of(site.attrs, rank)
    reach = window.reach(kernel)
    sizes = zip(
        site.shapes[0][-rank:],
        site.shape[-rank:],
        window.strides,
        window.begins,
        reach,
        strict=True,
    )
    ends = tuple((m - 1) * s + r - p - n for n, m, s, p, r in sizes)  # negative: never looked at
    y = bordered(x, window.begins, ends)
    for k in range(rank):
        axis = y.dim() - rank + k
        y = y.unfold(axis, reach[k], window.strides[k])[..., :: window.dilations[k]].sum(-1)
    return _divided(site, y, window)


def _transpose(site: Site, A: Tensor, x: Any) -> tuple[Tensor]:
    import torch

    kernel = site.attrs["kernel"]
    rank = len(kernel)
    window = window_of(site.attrs, rank)
    size = site.shapes[0][-rank:]
    y = _divided(site, A, window)
    for k in range(rank):
        axis, n, begin = y.dim() - rank + k, size[k], window.begins[k]
        places = torch.arange(y.shape[axis], device=A.device) * window.strides[k]
        shape = list(y.shape)
        shape[axis] = (y.shape[axis] - 1) * window.strides[k] + window.reach(kernel)[k]
        shape[axis] = max(shape[axis], n + begin)
        whole = y.new_zeros(shape)
        for tap in range(kernel[k]):
            whole = whole.index_add(axis, places + tap * window.dilations[k], y)
        y = whole.narrow(axis, begin, n)
    return (y,)


def _summands(site: Site) -> tuple[int, int]:
    kernel = site.attrs["kernel"]
    rank = len(kernel)
    window = window_of(site.attrs, rank)
    under, over = products(site.shapes[0][-rank:], site.shape[-rank:], kernel, window)
    return under + 1, over + 1


def _onnx_average(b: Builder, call: Call) -> Value:
    x, kernel = call.inputs[0], integers(call.attr("kernel_shape"))
    if not kernel or x.rank != len(kernel) + 2:
        raise BadInput(
            f"{call.where or call.name}: kernel_shape {kernel} over a tensor of shape {x.shape}"
        )
    if (
        call.attr("auto_pad", "").startswith("SAME")
        and max(integers(call.attr("dilations")) or (1,)) > 1
    ):
        raise Unsupported(
            f"{call.where or call.name}: auto_pad together with dilations; runtimes disagree "
            f"on what it means, give pads instead"
        )
    window = onnx_window(call, x.shape[2:], kernel)
    return b.add(
        "average_pool",
        x,
        name=call.name,
        kernel=kernel,
        **window,
        ceil_mode=bool(call.attr("ceil_mode", 0)),
        count_include_pad=bool(call.attr("count_include_pad", 0)),
    )


def _aten_average(rank: int) -> Any:
    def translate(b: Builder, call: Call) -> Value:
        kernel = spread(call.inputs[1], rank, 1)
        stride = integers(call.arg(2)) or kernel
        window = aten_window(call, rank, stride, call.arg(3, 0), 1)
        return b.add(
            "average_pool",
            call.inputs[0],
            name=call.name,
            kernel=kernel,
            **window,
            ceil_mode=bool(call.arg(4, False)),
            count_include_pad=bool(call.arg(5, True)),
            divisor=call.arg(6),
        )

    return translate


def _adaptive(rank: int) -> Any:
    """Windows from ``floor(i n / m)`` to ``ceil((i + 1) n / m)``, one axis after the other."""

    def translate(b: Builder, call: Call) -> Value:
        x: Value = call.inputs[0]
        given = call.inputs[1]
        wanted = tuple(given) if isinstance(given, (list, tuple)) else (given,) * rank
        wanted = wanted * rank if len(wanted) == 1 else wanted
        sizes = [n if m is None else int(m) for n, m in zip(x.shape[-rank:], wanted, strict=True)]
        if all(m > 0 and n % m == 0 for n, m in zip(x.shape[-rank:], sizes, strict=True)):
            steps = tuple(n // m for n, m in zip(x.shape[-rank:], sizes, strict=True))
            return b.add("average_pool", x, name=call.name, kernel=steps, strides=steps)
        for k, m in enumerate(sizes):
            x = _adapted(b, x, k - rank, m)
        return x

    return translate


def _adapted(b: Builder, x: Value, axis: int, out: int) -> Value:
    """One axis pooled to ``out`` windows of unequal length: a 0/1 matrix, then a division."""
    n = x.shape[axis]
    mask = np.zeros((out, n))
    for i in range(out):
        mask[i, i * n // out : -(-(i + 1) * n // out)] = 1.0
    if out == n:
        return x
    order = [k for k in range(-x.rank, 0) if k != axis] + [axis]
    y = b.add("linear", permuted(b, x, order), b.constant(mask), None)
    y = b.add("div", y, b.constant(mask.sum(1)))
    return permuted(b, y, np.argsort([k + x.rank for k in order]).tolist())


affine(
    "average_pool",
    _forward,
    shape=_shape,
    transpose=_transpose,
    summands=_summands,
    monotone=True,
    roundings=1,
    examples=(
        Example(((1, 2, 4, 4),), {"kernel": (2, 2), "strides": (2, 2)}),
        Example(
            ((2, 5, 4),),
            {"kernel": (3, 2), "strides": (2, 1), "pads": (1, 0, 0, 1), "count_include_pad": True},
        ),
        Example(
            ((1, 1, 5, 5),),
            {"kernel": (2, 3), "strides": (2, 2), "pads": (0, 1, 0, 1), "ceil_mode": True},
        ),
        Example(((2, 7),), {"kernel": (3,), "dilations": (2,), "strides": (1,), "divisor": 2}),
    ),
    onnx={"AveragePool": _onnx_average},
    aten={f"aten.avg_pool{k}d.default": _aten_average(k) for k in (1, 2, 3)},
    float32_roundings=0,
    summary="mean over sliding windows",
)

REGISTRY.add(
    Composite(
        "adaptive_average",
        aten={
            name: _adaptive(k)
            for k in (1, 2, 3)
            for name in (
                f"aten.adaptive_avg_pool{k}d.default",
                f"aten._adaptive_avg_pool{k}d.default",
            )
            if not (k == 1 and "_adaptive" in name.split(".")[1][:9])
        },
        summary="average pooling to a given size",
    )
)
