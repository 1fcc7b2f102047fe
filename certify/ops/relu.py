"""ReLU by its own short path, and the other functions made of two straight halves through 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certify.core.errors import Unsupported
from certify.core.graph import Shape
from certify.ops.builder import Builder, Call, Value
from certify.ops.directed import round_down, round_up
from certify.ops.families import Lines, per_row
from certify.ops.inner import least
from certify.ops.oracle import EPS, FAR, TINY
from certify.ops.record import REGISTRY, Example, Interval, Op, RelaxedRule, Site, Slope
from certify.ops.scalar import examples, inplace, number, same_shape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ReluLines(Lines):
    """``low x <= relu(x) <= up x + up_c``: `Lines` without a lower intercept, in fewer passes.

    A coefficient is one product. Rounded, it is still A times a slope between 0 and 1 below, and A
    times a slope that the upper intercept allows for: nothing is lost.
    """

    absorbs = True

    def backward(self, A: Tensor) -> tuple[tuple[Tensor | None, ...], Tensor]:
        """See `Relaxation.backward`."""
        import torch

        (low,), (up,), c = self.low, self.up, self.up_c
        if low is None or up is None or c is None:
            raise TypeError("ReLU lines need both slopes and the upper intercept")
        coefficient = A * torch.where(A > 0, low, up)
        negative = per_row(A.clamp(max=0))
        bias = torch.matmul(negative, per_row(c).transpose(1, 2)).squeeze(2)
        if bool(bias.isnan().any()):  # 0 * inf: an intercept that is infinite but not used
            term = negative * per_row(c)
            bias = torch.where(negative == 0, 0.0, term).sum(-1)
        return (coefficient,), bias


def straddles(site: Site, x: Interval) -> Tensor:
    """Where the kink at 0 lies inside the interval; a NaN bound counts as that."""
    return ~((x.lower >= 0) | (x.upper <= 0))


def _relu_forward(site: Site, x: Tensor) -> Tensor:
    from torch import relu

    return relu(x)


def _relu_interval(site: Site, x: Interval) -> Interval:
    return Interval(x.lower.clamp_min(0), x.upper.clamp_min(0))


def _relu_relax(site: Site, slopes: tuple[Tensor, ...] | None, x: Interval) -> Any:
    """The triangle (Ehlers 2017) with CROWN's adaptive lower slope (Zhang et al. 2018).

    Any float would do as chord slope: the intercept is what both ends of the interval need, rounded
    up, and the gap above ReLU is concave in between. Stable neurons are exact.
    """
    import torch

    low, high = x.lower.unsqueeze(1), x.upper.unsqueeze(1)
    info = torch.finfo(low.dtype)
    left, right = low.clamp(max=0), high.clamp(0, info.max)
    active = low >= 0
    up = torch.where(active, 1.0, right / (right - left).clamp(min=info.tiny))  # 0 for low = -inf
    c = torch.maximum(up * (-left).clamp(max=info.max), (1 - up) * right)
    # Unless proven stable; a NaN bound is not, and stays NaN.
    unstable = ~(active | (high <= 0))
    # Enough for any slope within a rounding of this one: see `ReluLines.absorbs`.
    c = torch.where(unstable, c * (1 + 4 * info.eps) + 2 * info.eps * up * right + info.tiny, 0.0)
    c = torch.where(unstable & (high == torch.inf), torch.inf, c)
    slope = (high > -low).to(low.dtype) if slopes is None else slopes[0]
    return ReluLines(site, (slope,), None, (up,), c)


def _relu_slopes(site: Site, x: Interval) -> tuple[Slope, ...]:
    low, high = x.lower.unsqueeze(1), x.upper.unsqueeze(1)
    start = (high > -low).to(low.dtype)
    unstable = (low < 0) & (high > 0)
    return (Slope(start, start * ~unstable, (start.bool() | unstable).to(low.dtype)),)


Halves = tuple["Tensor", "Tensor"]  # slopes left and right of 0, float64


def _slope_at(halves: Halves, z: Tensor) -> Tensor:
    import torch

    return torch.where(z < 0, halves[0], halves[1])


def _two_slope_interval(halves: Halves, x: Interval, dtype: Any) -> Interval:
    """Ends, and 0 where it lies inside; products rounded outward unless the slope is 0 or +-1."""
    import torch

    low, high = x.lower.double(), x.upper.double()
    inside = (low < 0) & (high > 0)
    ends = []
    for z in (low, high):
        slope = _slope_at(halves, z)
        value = torch.where((slope == 0) | (z == 0), 0.0, slope * z)
        error = (EPS * value.abs() + TINY) * ((slope.abs() != 1) & (slope != 0) & (z != 0))
        error = torch.where(value.abs() < torch.inf, error, 0.0)
        ends.append((value - error, value + error))
    least, most = torch.minimum(ends[0][0], ends[1][0]), torch.maximum(ends[0][1], ends[1][1])
    least = torch.where(inside, least.clamp(max=0), least)
    most = torch.where(inside, most.clamp(min=0), most)
    return Interval(round_down(least, dtype), round_up(most, dtype))


def _two_slope_lines(
    site: Site, slopes: tuple[Tensor, ...] | None, x: Interval, halves: Halves
) -> Lines:
    """Chord on one side, a line through the kink on the other; exact where stable.

    For any slope k, ``h(z) - k z`` is straight on either side of 0, so its extremes are at the two
    ends and at 0; each is one rounded difference times one bound.
    """
    import torch

    dtype = x.lower.dtype
    low, high = x.lower.double().unsqueeze(1), x.upper.double().unsqueeze(1)
    convex = halves[0] <= halves[1]
    touching = _touching(halves, low, high).to(dtype) if slopes is None else slopes[0]
    chord = _chord(halves, low, high).to(dtype)
    pair = torch.where(convex, touching, chord), torch.where(convex, chord, touching)
    inside = ~((low >= 0) | (high <= 0))
    found = []
    for sign, k in zip((1, -1), pair, strict=True):
        gaps = [sign * _gap(halves, k.double(), z) for z in (low, high)]
        m = torch.minimum(gaps[0], gaps[1])
        m = torch.where(inside, m - m.clamp(min=0), m)  # 0 is reached; NaN stays
        exact = (gaps[0] == 0) & (gaps[1] == 0) & _same(halves, k.double(), low, high)
        m = torch.where(exact, m, m - 4 * EPS * m.abs() - TINY)
        found.append(sign * round_down(torch.where(m < torch.inf, m, -torch.inf), dtype))
    rest = (None,) * (len(site.varies) - 1)  # operands that are constant
    return Lines(site, (pair[0], *rest), found[0], (pair[1], *rest), found[1])


def _gap(halves: Halves, k: Tensor, z: Tensor) -> Tensor:
    """``h(z) - k z``, where 0 times infinity is 0."""
    import torch

    rest = _slope_at(halves, z) - k
    return torch.where(rest == 0, 0.0, rest * z)


def _same(halves: Halves, k: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Whether the slope at both ends is exactly k (so nothing can have underflowed)."""
    return ((_slope_at(halves, low) == k) | (low == 0)) & (
        (_slope_at(halves, high) == k) | (high == 0)
    )


def _chord(halves: Halves, low: Tensor, high: Tensor) -> Tensor:
    import torch

    left, right = low.clamp(-FAR, 0), high.clamp(0, FAR)
    share = right / (right - left).clamp(min=TINY)
    between = halves[0] + (halves[1] - halves[0]) * share
    return torch.where(low >= 0, halves[1], torch.where(high <= 0, halves[0], between))


def _touching(halves: Halves, low: Tensor, high: Tensor) -> Tensor:
    """The slope of the larger half; of the only one where stable."""
    import torch

    return torch.where((high > -low) | (low >= 0), halves[1], halves[0])


def _two_slope_slopes(x: Interval, halves: Halves) -> tuple[Slope, ...]:
    import torch

    low, high = x.lower.double().unsqueeze(1), x.upper.double().unsqueeze(1)
    start = _touching(halves, low, high)
    unstable = (low < 0) & (high > 0)
    least = torch.where(unstable, halves[0].minimum(halves[1]), start)
    most = torch.where(unstable, halves[0].maximum(halves[1]), start)
    a, b, c = (k.to(x.lower.dtype) for k in (start, least, most))
    return (Slope(a, b, c),)


def _kinked_inner(
    halves: Halves, weight: Tensor, slope: Tensor, x: Interval, soft: float
) -> Tensor:
    """`RelaxedRule.inner` of two straight halves: the ends of the interval and the kink."""
    import torch

    w, k = weight.double(), slope.double()
    low, high = x.lower.double().unsqueeze(1), x.upper.double().unsqueeze(1)
    inside = (low < 0) & (high > 0)
    ends = []
    for z in (low, high):
        pair = w * (_slope_at(halves, z) * z), -k * z
        ends.append(tuple(torch.where((w == 0) & (k == 0), 0.0, t) for t in pair))
    kink = tuple(torch.where(inside, 0.0, t) for t in ends[0])
    return least((*ends, kink), soft)


def _relu_inner(
    site: Site, weight: Tensor, slopes: tuple[Tensor, ...], x: Interval, *, soft: float = 0.0
) -> Tensor:
    return _kinked_inner(_relu_halves(site, weight), weight, slopes[0], x, soft)


def _relu_halves(site: Site, like: Tensor) -> Halves:
    import torch

    one = torch.ones((), dtype=torch.float64, device=like.device)
    return torch.zeros_like(one), one


def _two_slopes(name: str, forward: Any, halves: Any, **names: Any) -> Op:
    """Register a function of two straight halves; ``halves(site, like, *constants)`` are slopes."""

    def interval(site: Site, x: Interval, *constants: Tensor) -> Interval:
        return _two_slope_interval(halves(site, x.lower, *constants), x, x.lower.dtype)

    def relax(site: Site, slopes: Any, x: Interval, *constants: Tensor) -> Any:
        return _two_slope_lines(site, slopes, x, halves(site, x.lower, *constants))

    def slopes(site: Site, x: Interval, *constants: Tensor) -> tuple[Slope, ...]:
        return _two_slope_slopes(x, halves(site, x.lower, *constants))

    def inner(
        site: Site, weight: Tensor, given: Any, x: Interval, *constants: Tensor, soft: float = 0.0
    ) -> Tensor:
        return _kinked_inner(halves(site, x.lower, *constants), weight, given[0], x, soft)

    rule = RelaxedRule(
        interval, relax, slopes, straddles, elementwise=True, inner=inner, halves=halves
    )
    op = Op(name, forward, relaxed=rule, **names)
    REGISTRY.add(op)
    return op


def _leaky_halves(site: Site, like: Tensor) -> Halves:
    import torch

    alpha = torch.tensor(site.attrs["alpha"], dtype=torch.float64, device=like.device)
    return alpha, torch.ones_like(alpha)


def _abs_halves(site: Site, like: Tensor) -> Halves:
    import torch

    one = torch.ones((), dtype=torch.float64, device=like.device)
    return -one, one


def _prelu_halves(site: Site, like: Tensor, slope: Tensor) -> Halves:
    import torch

    return slope.double(), torch.ones_like(slope, dtype=torch.float64)


def _leaky_forward(site: Site, x: Tensor) -> Tensor:
    from torch.nn.functional import leaky_relu

    return leaky_relu(x, site.attrs["alpha"])


def _prelu_forward(site: Site, x: Tensor, slope: Tensor) -> Tensor:
    import torch

    return torch.where(x > 0, x, slope * x)


def _abs_forward(site: Site, x: Tensor) -> Tensor:
    return x.abs()


def _prelu_shape(attrs: Any, x: Shape, slope: Shape) -> Shape:
    import numpy as np

    if np.broadcast_shapes(x, slope) != tuple(x):
        raise ValueError(f"a slope of shape {slope} does not broadcast to {x}")
    return x


def _leaky_onnx(b: Builder, call: Call) -> Value:
    return b.add("leaky_relu", call.arg(0), name=call.name, alpha=float(call.attr("alpha", 0.01)))


def _leaky_aten(b: Builder, call: Call) -> Value:
    return b.add("leaky_relu", call.arg(0), name=call.name, alpha=number(call, 1, 0.01))


def _prelu_onnx(b: Builder, call: Call) -> Value:
    return _prelu(b, call, call.arg(0), call.arg(1))


def _prelu_aten(b: Builder, call: Call) -> Value:
    """torch keeps one slope, or one per channel, which is axis 1 of an input of rank >= 2."""
    x, slope = call.arg(0), call.arg(1)
    if slope.constant is not None and slope.shape != (1,) and x.rank > 2:
        shape = (*slope.shape, *(1,) * (x.rank - 2))
        slope = b.constant(slope.constant.reshape(shape), slope.name and f"{slope.name}/channels")
    return _prelu(b, call, x, slope)


def _prelu(b: Builder, call: Call, x: Value, slope: Value) -> Value:
    if slope.constant is None:
        raise Unsupported(f"{call.where or call.name}: the slope of a PRelu must be a constant")
    return b.add("prelu", b.align(x, slope.rank), slope, name=call.name)


def _prelu_examples() -> tuple[Example, ...]:
    import numpy as np

    slopes = np.array([[0.25], [-0.5], [1.5], [0.0]])
    return (Example(((4, 3), slopes)), Example(((2, 3), np.array([0.1])), low=-1.0, high=3.0))


REGISTRY.add(
    Op(
        "relu",
        _relu_forward,
        same_shape,
        examples(),
        relaxed=RelaxedRule(
            _relu_interval, _relu_relax, _relu_slopes, straddles, elementwise=True,
            inner=_relu_inner, halves=_relu_halves,
        ),
        onnx={"Relu": None},
        aten=inplace("relu"),
        float32_roundings=0,
        summary="max(x, 0)",
    )
)
_two_slopes(
    "leaky_relu",
    _leaky_forward,
    _leaky_halves,
    shape=same_shape,
    examples=tuple(
        e for a in (0.01, 0.2, -0.5, 1.5) for e in examples((-2.0, 2.0), (-3.0, 1.0), alpha=a)
    ),
    onnx={"LeakyRelu": _leaky_onnx},
    aten=inplace("leaky_relu", _leaky_aten),
    float32_roundings=2,  # one for the product, one for alpha, which torch rounds to float32
    summary="x, or alpha x below 0",
)
_two_slopes(
    "prelu",
    _prelu_forward,
    _prelu_halves,
    shape=_prelu_shape,
    examples=_prelu_examples(),
    onnx={"PRelu": _prelu_onnx},
    aten={"aten.prelu.default": _prelu_aten},
    float32_roundings=1,
    summary="x, or a constant slope per channel times x below 0",
)
_two_slopes(
    "abs",
    _abs_forward,
    _abs_halves,
    shape=same_shape,
    examples=examples(),
    onnx={"Abs": None},
    aten=inplace("abs"),
    float32_roundings=0,
    summary="|x|",
)
