"""Matrix products: affine with a constant factor, sums of bilinear planes where both vary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.graph import Shape
from certify.ops.arguments import broadcast_shape
from certify.ops.builder import Builder, Call, Value
from certify.ops.families import affine_rule, per_row, to_operand
from certify.ops.outward import above, below, floor, reach
from certify.ops.products import copies, mix, share, times
from certify.ops.record import REGISTRY, Example, Interval, Op, RelaxedRule, Site, Slope

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 2**22  # products held at once while bounding sums of interval products


def _forward(site: Site, x: Tensor, y: Tensor) -> Tensor:
    return x @ y


def _shape(attrs: Any, x: Shape, y: Shape) -> Shape:
    if len(x) < 2 or len(y) < 2:
        raise ValueError("both factors need at least two axes")
    if x[-1] != y[-2]:
        raise ValueError(f"{x[-1]} columns meet {y[-2]} rows")
    return (*broadcast_shape(x[:-2], y[:-2]), x[-2], y[-1])


def _transpose(site: Site, A: Tensor, x: Any, y: Any) -> tuple[Any, ...]:
    rank = len(site.shape)
    if site.varies[0]:
        return to_operand(A @ y.mT, site.shapes[0], rank), None
    return None, to_operand(x.mT @ A, site.shapes[1], rank)


def _summands(site: Site) -> tuple[int, int]:
    left, right = site.shapes
    back, own = (right[-1], left) if site.varies[0] else (left[-2], right)
    used = math.prod(site.shape[:-2]) // math.prod(own[:-2])  # by how many of the batch of products
    return left[-1], back * used


# ---------------------------------------------------------------------------------- intervals


def _signed(x: Interval, y: Interval) -> tuple[Tensor, Tensor]:
    """The exact sums for ``x >= 0`` by four matrix products."""
    lower = x.lower @ y.lower.clamp(min=0) + x.upper @ y.lower.clamp(max=0)
    upper = x.upper @ y.upper.clamp(min=0) + x.lower @ y.upper.clamp(max=0)
    return lower, upper


def _summed(x: Interval, y: Interval) -> tuple[Tensor, Tensor]:
    """Sums over k of the interval products ``x_ik y_kj``, some k at a time."""
    import torch

    batch = broadcast_shape(tuple(x.lower.shape[:-2]), tuple(y.lower.shape[:-2]))
    per_k = math.prod(batch) * x.lower.shape[-2] * y.lower.shape[-1]
    step = max(1, CHUNK // max(per_k, 1))
    lower = upper = x.lower.new_zeros((*batch, x.lower.shape[-2], y.lower.shape[-1]))
    for k in range(0, x.lower.shape[-1], step):
        xs = [t[..., :, k : k + step].unsqueeze(-1) for t in x]
        ys = [t[..., k : k + step, :].unsqueeze(-3) for t in y]
        p, q, r, s = (times(a, b) for a in xs for b in ys)
        lower = lower + torch.minimum(torch.minimum(p, q), torch.minimum(r, s)).sum(-2)
        upper = upper + torch.maximum(torch.maximum(p, q), torch.maximum(r, s)).sum(-2)
    return lower, upper


def _interval(site: Site, x: Interval, y: Interval) -> Interval:
    """The exact range of each entry over the box (entries of one factor vary independently)."""
    import torch

    finite = all(bool(t.isfinite().all()) for t in (*x, *y))
    if finite and bool((x.lower >= 0).all()):
        low, high = _signed(x, y)
    elif finite and bool((y.lower >= 0).all()):
        turned = _signed(Interval(*(t.mT for t in y)), Interval(*(t.mT for t in x)))
        low, high = (t.mT for t in turned)
    else:
        low, high = _summed(x, y)
    size, count = times_sum(reach(*x), reach(*y)), 2 * x.lower.shape[-1] + 4
    lower, upper = below(low, size, count), above(high, size, count)
    known = bool((x.lower >= 0).all()) and bool((y.lower >= 0).all())
    return Interval(lower.clamp(min=0) if known else lower, torch.maximum(lower, upper))


def times_sum(x: Tensor, y: Tensor) -> Tensor:
    """``x @ y`` for sizes ``>= 0``; NaN (zero times infinity) becomes infinity."""
    import torch

    return (x @ y).nan_to_num(nan=torch.inf, posinf=torch.inf)


# -------------------------------------------------------------------------------------- planes


@dataclass(frozen=True)
class _Side:
    """One side's planes: ``x_ik y_kj >= (or <=) a_ikj x_ik + b_ikj y_kj + c_ikj``, never expanded.

    Each is the mean of a McCormick plane mixed by ``r`` (shape of x) and one mixed by ``s`` (shape
    of y): ``2 a = r first + (1 - r) second + pulled`` and ``2 b = s left + (1 - s) right + drawn``,
    where first, second, pulled have the shape of y; left, right, drawn that of x.
    """

    r: Tensor
    s: Tensor
    first: Tensor
    second: Tensor
    pulled: Tensor
    left: Tensor
    right: Tensor
    drawn: Tensor
    c: Tensor

    def pull(self, A: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of x and of y (still with broadcast batch axes) for ``A (B,R,...,i,j)``."""
        of_x = self.r * (A @ self.first.mT) + (1 - self.r) * (A @ self.second.mT)
        of_y = self.s * (self.left.mT @ A) + (1 - self.s) * (self.right.mT @ A)
        return (of_x + A @ self.pulled.mT) / 2, (of_y + self.drawn.mT @ A) / 2


def _lower_side(x: Interval, y: Interval, r: Tensor, s: Tensor) -> _Side:
    import torch

    hole = _unbounded(x, y)
    if hole is not None:
        x, y = (Interval(*(t.nan_to_num(0, 0, 0) for t in v)) for v in (x, y))
    pulled, drawn = mix(s, y), mix(r, x)
    c = (r * x.lower) @ y.lower + ((1 - r) * x.upper) @ y.upper
    c = c + x.lower @ (s * y.lower) + x.upper @ ((1 - s) * y.upper)
    # Besides its own sums, the intercept pays for 1 - r, pulled and drawn not being exact.
    c = below(-c / 2, _felt(x) @ _felt(y), x.lower.shape[-1] + 8)
    c = c if hole is None else torch.where(hole, -torch.inf, c)
    return _Side(r, s, y.lower, y.upper, pulled, x.lower, x.upper, drawn, c)


def _felt(x: Interval) -> Tensor:
    """The reach, but no less than what makes an underflow next to it a relative rounding."""
    import torch

    dtype = x.lower.dtype
    return reach(*x).clamp(min=floor(dtype) / torch.finfo(dtype).eps)


def _unbounded(x: Interval, y: Interval) -> Tensor | None:
    """Entries that add up a product without a finite bound; None when every bound is finite."""
    if all(bool(t.isfinite().all()) for t in (*x, *y)):
        return None
    open_x, open_y = (~(v.lower.isfinite() & v.upper.isfinite()) for v in (x, y))
    some_x, some_y = ((v.lower != 0) | (v.upper != 0) for v in (x, y))
    kind = x.lower.dtype
    found = open_x.to(kind) @ some_y.to(kind) + some_x.to(kind) @ open_y.to(kind) > 0
    return found


def _upper_side(x: Interval, y: Interval, r: Tensor, s: Tensor) -> _Side:
    """The lower side of ``(-x) y``, turned over: only x's own bounds keep the turned sign."""
    side = _lower_side(Interval(-x.upper, -x.lower), y, r, s)
    return _Side(
        r, s, side.first, side.second, side.pulled,
        -side.left, -side.right, -side.drawn, -side.c,
    )  # fmt: skip


@dataclass(frozen=True)
class _Bilinear:
    """`Relaxation` of a product of two varying matrices in twelve batched matrix products.

    ``sizes`` are the largest magnitudes of x and of y, ``(B, *shape)``: they bound the
    coefficients of y and of x.
    """

    site: Site
    low: _Side
    up: _Side
    sizes: tuple[Tensor, Tensor]

    def backward(self, A: Tensor) -> tuple[tuple[Tensor | None, ...], Tensor]:
        import torch

        positive, negative = A.clamp(min=0), A.clamp(max=0)
        x1, y1 = self.low.pull(positive)
        x2, y2 = self.up.pull(negative)
        bias = A.new_zeros(A.shape[:2])
        for part, c in ((positive, self.low.c), (negative, self.up.c)):
            bias = bias + per_row(torch.where(part == 0, 0.0, part * c)).sum(-1)
        rank, shapes = len(self.site.shape), self.site.shapes
        return (to_operand(x1 + x2, shapes[0], rank), to_operand(y1 + y2, shapes[1], rank)), bias

    def weight(self, magnitudes: tuple[Tensor | None, ...]) -> Tensor:
        """As documented, times the number of roundings in the longest sum of ``backward``."""
        x, y = magnitudes
        total = self.low.c.detach().abs().amax(1).maximum(self.up.c.detach().abs().amax(1))
        if x is not None:
            total = total + times_sum(x, self.sizes[1])
        if y is not None:
            total = total + times_sum(self.sizes[0], y)
        return total * (copies(self.site) + 4)


def _slopes(site: Site, x: Interval, y: Interval) -> tuple[Slope, ...]:
    """Mixes of the lower and the upper planes, each by x and by y; see `products.best_mix`."""
    turned = Interval(-x.upper, -x.lower)
    starts = share(x), share(y), share(turned), share(y)
    return tuple(Slope(t[:, None], t.new_zeros(()), t.new_ones(())) for t in starts)


def _relax(site: Site, slopes: tuple[Tensor, ...] | None, x: Interval, y: Interval) -> _Bilinear:
    chosen = slopes or tuple(s.start for s in _slopes(site, x, y))
    sizes = tuple(t.nan_to_num(posinf=0.0) for t in (reach(*x), reach(*y)))
    x, y = (Interval(v.lower[:, None], v.upper[:, None]) for v in (x, y))
    low, up = _lower_side(x, y, *chosen[:2]), _upper_side(x, y, *chosen[2:])
    return _Bilinear(site, low, up, (sizes[0], sizes[1]))


# ------------------------------------------------------------------------------- translations


def product(b: Builder, x: Value, y: Value, name: str | None = None) -> Value:
    """``x @ y`` by the rules of ``numpy.matmul``: a vector gets an axis that is dropped again."""
    rows, columns = x.rank > 1, y.rank > 1
    if not rows:
        x = b.add("reshape", x, shape=(1, *x.shape))
    if not columns:
        y = b.add("reshape", y, shape=(*y.shape, 1))
    z = b.add("matmul", *b.broadcast(x, y), name=name)
    kept = z.shape[:-2] + z.shape[-2:-1] * rows + z.shape[-1:] * columns
    return z if rows and columns else b.add("reshape", z, shape=kept)


def _matmul(b: Builder, call: Call) -> Value:
    return product(b, call.arg(0), call.arg(1), call.name)


_WIDE = np.linspace(-1, 1, 12).reshape(3, 4)

REGISTRY.add(
    Op(
        "matmul",
        _forward,
        _shape,
        (
            Example(((2, 3), _WIDE)),
            Example((_WIDE, (4, 2))),
            Example(((2, 1, 3), np.linspace(-2, 1, 24).reshape(2, 3, 4))),
            Example((np.linspace(-2, 1, 12).reshape(2, 2, 3), (1, 3, 2))),
            Example(((2, 3), (3, 2))),
            Example(((2, 2, 3), (1, 3, 2)), low=-1.0),
            Example(((1, 2, 2), (2, 2, 1)), low=0.0),
        ),
        affine=affine_rule(_forward, weights=(0, 1), transpose=_transpose, summands=_summands),
        relaxed=RelaxedRule(_interval, _relax, _slopes),
        onnx={"MatMul": _matmul},
        aten={
            "aten.matmul.default": _matmul, "aten.mm.default": _matmul, "aten.bmm.default": _matmul,
            "aten.mv.default": _matmul, "aten.dot.default": _matmul,
        },
        summary="x @ y; sums of McCormick planes, never expanded, where both vary",
    )
)  # fmt: skip
