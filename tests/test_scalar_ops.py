"""Elementwise functions: tightness, extreme bounds, optimisable slopes, gradients, import names."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scalar_cases import CASES, Case

from certify.ops.families import Lines
from certify.ops.record import REGISTRY, Interval

INF = math.inf
BY_LABEL = {case.label: case for case in CASES}
SMOOTH_S = ("sigmoid()", "tanh()", "atan()", "erf()", "softsign()")
DEFINED_AT_ZERO = [c for c in CASES if bool(c.forward(torch.zeros(1)).isfinite())]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.label)


def interval(low: Any, high: Any, dtype: torch.dtype = torch.float64) -> Interval:
    """``(1, n)`` bounds."""
    return Interval(*(torch.tensor([v], dtype=dtype) for v in (low, high)))


def ordinary(case: Case, count: int, seed: int) -> Interval:
    """Boxes of all widths where the function is defined."""
    g = torch.Generator().manual_seed(seed)
    width = torch.exp(torch.rand(count, generator=g, dtype=torch.float64) * 5 - 3)
    middle = torch.randn(count, generator=g, dtype=torch.float64) * 2
    if case.example.low >= 0 or case.example.attrs.get("exponent", 1.0) < 0:
        middle = middle.abs() + 1.01 * width
    return Interval((middle - width)[None], (middle + width)[None])


def intercepts(lines: Any) -> tuple[torch.Tensor, torch.Tensor]:
    zero = torch.zeros_like(lines.low[0])
    return tuple(zero if c is None else c for c in (lines.low_c, lines.up_c))


@every_case
def test_default_lines_support_the_envelope_at_the_middle(case: Case) -> None:
    x = ordinary(case, 60, 1)
    lines, middle = case.relax(None, x), 0.5 * (x.lower + x.upper)
    z = x.lower + (x.upper - x.lower) * torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None]
    z = torch.cat((z, torch.zeros_like(z[:1]).maximum(x.lower).minimum(x.upper)))  # a lone value
    f = case.forward(z)
    swing = f.amax(0) - f.amin(0)
    constants = intercepts(lines)
    for sign, k, c in ((1, lines.low[0], constants[0]), (-1, lines.up[0], constants[1])):
        ours = sign * (k * middle + c)[0, 0]
        values, steps = sign * f, sign * (f[1:-1] - f[:-2]) / (z[1:-1] - z[:-2])
        low, high = steps.amin(0), steps.amax(0)
        for _ in range(50):  # ternary search on the concave height of the best line of a slope
            a, b = low + (high - low) / 3, high - (high - low) / 3
            worse = _height(a, z, values, middle[0]) < _height(b, z, values, middle[0])
            low, high = torch.where(worse, a, low), torch.where(worse, high, b)
        best = _height(0.5 * (low + high), z, values, middle[0])
        reached = swing > 1e-9  # a flat function leaves only rounding
        # Points of a grid miss a jump's far side by up to a step.
        assert bool((ours >= best - 5e-3 * swing)[reached].all()), case.label


def _height(
    k: torch.Tensor, z: torch.Tensor, values: torch.Tensor, at: torch.Tensor
) -> torch.Tensor:
    return k * at + (values - k * z).amin(0)


@pytest.mark.parametrize("name", ["exp()", "softplus(beta=1,threshold=inf)", "square()"])
def test_convex_functions_get_chord_and_midpoint_tangent(name: str) -> None:
    case = BY_LABEL[name]
    x = ordinary(case, 200, 2)
    lines, middle = case.relax(None, x), (0.5 * (x.lower + x.upper)).requires_grad_()
    value = case.forward(middle)
    (tangent,) = torch.autograd.grad(value.sum(), middle)
    assert torch.allclose(lines.low[0][0], tangent, rtol=1e-12)
    assert torch.allclose((lines.low[0] * middle + lines.low_c)[0], value, rtol=1e-12, atol=1e-13)
    ends = case.forward(x.lower), case.forward(x.upper)
    assert torch.allclose(lines.up[0][0], (ends[1] - ends[0]) / (x.upper - x.lower), rtol=1e-9)


@pytest.mark.parametrize("name", SMOOTH_S)
def test_s_shapes_follow_the_tangent_point_rule(name: str) -> None:
    """Below: the tangent through the right end if it touches inside, else tangent or chord."""
    case, x = BY_LABEL[name], ordinary(BY_LABEL[name], 300, 3)
    lines = case.relax(None, x)
    low, high = x.lower[0], x.upper[0]
    a, b = low.clone(), high.clamp(max=0.0).maximum(low)
    for _ in range(80):  # the tangent at d passes above or below the right end
        d = (0.5 * (a + b)).requires_grad_()
        f = case.forward(d)
        (slope,) = torch.autograd.grad(f.sum(), d)
        with torch.no_grad():
            under = f + slope * (high - d) < case.forward(high)
            a, b = torch.where(under, d, a), torch.where(under, b, d)
    d = 0.5 * (a + b)
    middle = (0.5 * (low + high)).requires_grad_()
    (tangent,) = torch.autograd.grad(case.forward(middle).sum(), middle)
    through = (case.forward(high) - case.forward(d)) / (high - d)
    on_curve = (middle <= d) | (high <= 0)
    expected = torch.where(on_curve, tangent, through)
    assert torch.allclose(lines.low[0][0, 0], expected, rtol=1e-4, atol=1e-5)


@every_case
def test_a_point_box_gives_a_line_through_the_point(case: Case) -> None:
    z = torch.tensor([0.3, 0.7, 1.9, 2.6], dtype=torch.float64)
    x = Interval(z[None], z[None])
    lines, value = case.relax(None, x), case.forward(z)
    for k, c in zip((lines.low[0], lines.up[0]), intercepts(lines), strict=True):
        assert torch.allclose((k * z + c)[0, 0], value, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("case", DEFINED_AT_ZERO, ids=lambda c: c.label)
@pytest.mark.parametrize("scale", [1e-9, 1e-25])
def test_tiny_boxes_keep_their_relative_tightness(case: Case, scale: float) -> None:
    at_zero = float(case.forward(torch.zeros(1)))
    x = interval([-scale, scale / 2, 0.0], [scale, scale, scale])
    if case.example.low >= 0:
        x = interval([0.0, scale / 2, scale / 4], [scale, scale, scale])
    lines, ends = case.relax(None, x), (case.forward(x.lower), case.forward(x.upper))
    most = torch.maximum(ends[0].abs(), ends[1].abs())
    for k, c in zip((lines.low[0], lines.up[0]), intercepts(lines), strict=True):
        middle = 0.5 * (x.lower + x.upper)
        gap = (k * middle + c)[0] - case.forward(middle)
        assert bool((gap.abs() <= 2.1 * most + 1e-14 * abs(at_zero) + 1e-290).all()), (
            case.label,
            gap,
            most,
        )


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_infinite_bounds_give_finite_slopes_and_sound_lines(case: Case, dtype: torch.dtype) -> None:
    positive = case.example.low >= 0
    pairs = (
        [(1.0, INF), (0.5, INF)]
        if positive
        else [(-INF, 1.5), (-0.5, INF), (-INF, INF), (1.0, INF)]
    )
    x = interval(*zip(*pairs, strict=True), dtype=dtype)
    found = case.interval(x)
    lines = case.relax(None, x)
    for t in (*found, lines.low[0], lines.up[0], *intercepts(lines)):
        assert not bool(t.isnan().any())
    assert bool(lines.low[0].isfinite().all() and lines.up[0].isfinite().all())
    far = torch.tensor(
        [0.6, 1.0, 1.5, 3.0, 30.0, 1e4, -1e4, -30.0, -1.0, 0.0, -0.4], dtype=torch.float64
    )
    for i, (low, high) in enumerate(pairs):
        z = far[(far >= low) & (far <= high)]
        f = case.forward(z)
        z, f = z[f.isfinite()], f[f.isfinite()]
        slack = 1e-12 * (1 + f.abs() + z.abs())
        (a, b), (c, d) = ((t[0, ..., i].reshape(()).double() for t in pair) for pair in
                          ((lines.low[0], lines.up[0]), intercepts(lines)))  # fmt: skip
        assert bool((a * z + c <= f + slack).all() and (b * z + d >= f - slack).all())
        assert bool(
            (found.lower[0, i] <= f + slack).all() and (found.upper[0, i] >= f - slack).all()
        )


@pytest.mark.parametrize("name", [*SMOOTH_S, "sin()", "cos()", "clip(min=-1,max=1)", "sign()"])
def test_bounded_functions_stay_bounded_on_the_whole_line(name: str) -> None:
    lines = BY_LABEL[name].relax(None, interval([-INF], [INF]))
    found = BY_LABEL[name].interval(interval([-INF], [INF]))
    for t in (*found, *intercepts(lines)):
        assert bool((t.abs() < 1.6).all())


@pytest.mark.parametrize(
    ("name", "low", "high", "lower", "upper"),
    [
        ("reciprocal()", -1.0, 2.0, -INF, INF),
        ("reciprocal()", 0.0, 2.0, -INF, INF),
        ("log()", -1.0, 2.0, -INF, INF),
        ("log()", 0.0, 1.0, -INF, 0.0),
        ("sqrt()", -1.0, 4.0, -INF, INF),
        ("rsqrt()", 0.0, 4.0, 0.5, INF),
        ("pow(exponent=1.7)", -1.0, 1.0, -INF, INF),
        ("pow(exponent=-2)", -1.0, 1.0, -INF, INF),
        ("pow(exponent=3)", -2.0, 1.0, -8.0, 1.0),
        ("square()", -2.0, 1.0, 0.0, 4.0),
        ("abs()", -2.0, 1.0, 0.0, 2.0),
        ("sin()", 0.0, 7.0, -1.0, 1.0),
        ("cos()", 0.1, 3.0, math.cos(3.0), math.cos(0.1)),
        ("gelu()", -3.0, 0.0, -0.1699712074799037, 0.0),
        ("silu()", -9.0, 1.0, -0.278464542761074, 0.7310585786300049),
        ("mish()", -9.0, -1.0, -0.3088434130172504, -0.00111),
        ("sign()", -1.0, 1.0, -1.0, 1.0),
        ("round()", 0.5, 1.5, 0.0, 2.0),
    ],
)
def test_interval_values(name: str, low: float, high: float, lower: float, upper: float) -> None:
    found = BY_LABEL[name].interval(interval([low], [high]))
    for ours, expected in zip(found, (lower, upper), strict=True):
        assert float(ours) == expected or abs(float(ours) - expected) < 5e-5


def test_intervals_of_exact_functions_are_exact() -> None:
    x = interval([-2.3, 0.2, -1.0], [1.7, 3.5, -0.2], torch.float32)
    for name in ("relu()", "abs()", "sign()", "floor()", "ceil()", "round()", "clip(min=-1,max=1)"):
        case = BY_LABEL[name]
        ends = case.forward(x.lower), case.forward(x.upper)
        found = case.interval(x)
        assert torch.equal(found.upper, torch.maximum(*ends))
        if name != "abs()":
            assert torch.equal(found.lower, torch.minimum(*ends))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_relu_is_exact_where_stable_and_a_triangle_elsewhere(dtype: torch.dtype) -> None:
    lines = BY_LABEL["relu()"].relax(
        None, interval([1.0, -2.0, -1.0, -3.0, 0.0], [2.0, -1.0, 3.0, 1.0, 0.0], dtype)
    )
    assert lines.low[0][0, 0].tolist() == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert lines.up[0][0, 0, :4].tolist() == [1.0, 0.0, 0.75, 0.25]
    assert lines.low_c is None and lines.up_c[0, 0, [0, 1, 4]].tolist() == [0.0, 0.0, 0.0]
    assert torch.allclose(lines.up_c[0, 0, 2:4], torch.tensor([0.75, 0.75], dtype=dtype), rtol=1e-5)


def test_relu_backward_is_that_of_lines() -> None:
    g = torch.Generator().manual_seed(4)
    x = Interval(*torch.randn(2, 3, 2, 5, generator=g).sort(0).values)
    site = BY_LABEL["relu()"].site(5)
    site = type(site)(site.name, site.attrs, ((2, 5),), (True,), (2, 5))
    ours = REGISTRY.ops["relu"].relaxed.relax(site, None, x)
    plain = Lines(site, ours.low, ours.low_c, ours.up, ours.up_c)
    A = torch.randn(3, 4, 2, 5, generator=g)
    for a, b in zip(ours.backward(A), plain.backward(A), strict=True):
        assert torch.allclose(*(t[0] if isinstance(t, tuple) else t for t in (a, b)), atol=1e-6)
    assert torch.equal(ours.weight((x.upper.abs(),)), plain.weight((x.upper.abs(),)))


def test_an_infinite_intercept_matters_only_where_it_is_used() -> None:
    x = interval([-1.0, 1.0], [INF, 2.0])
    lines = BY_LABEL["relu()"].relax(None, x)
    (coefficient,), bias = lines.backward(
        torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]], dtype=torch.float64)
    )
    assert bool(coefficient.isfinite().all()) and bias.tolist() == [[0.0, -INF]]


@every_case
def test_slopes_are_ranges_around_the_default(case: Case) -> None:
    x = ordinary(case, 100, 5)
    lines, slopes = case.relax(None, x), case.slopes(x)
    for s in slopes:
        assert bool((s.low <= s.start).all() and (s.start <= s.high).all())
        assert s.start.shape == s.low.shape == s.high.shape == (1, 1, 100)
    again = case.relax(tuple(s.start for s in slopes), x)
    for a, b in zip(
        (lines.low[0], lines.up[0], *intercepts(lines)),
        (again.low[0], again.up[0], *intercepts(again)),
        strict=True,
    ):
        assert torch.equal(a, b)


@every_case
def test_gradients_of_lines_in_their_slopes(case: Case) -> None:
    """A bound's derivative in the slopes, against finite differences, with a slope per row."""
    x = ordinary(case, 12, 6)
    g = torch.Generator().manual_seed(7)
    A = torch.randn(1, 3, 12, generator=g, dtype=torch.float64)
    share = 0.2 + 0.6 * torch.rand(1, 3, 12, generator=g, dtype=torch.float64)
    ranges = case.slopes(x)
    start = [(s.low + (s.high - s.low) * share).requires_grad_() for s in ranges]
    middle = 0.5 * (x.lower + x.upper)

    def bound(slopes: Any) -> torch.Tensor:
        (coefficient, *_), bias = case.relax(tuple(slopes), x).backward(A)
        return ((coefficient * middle.unsqueeze(1)).sum(-1) + bias).sum()

    found = torch.autograd.grad(bound(start), start)
    for which, gradient in enumerate(found):
        # A line without choice sits at a corner of the hull, where there is no derivative.
        free = ranges[which].high - ranges[which].low > 1e-4
        direction = free * torch.randn(start[which].shape, generator=g, dtype=torch.float64)
        step, ends = 1e-6, []
        for sign in (1, -1):
            moved = [s.detach() for s in start]
            moved[which] = moved[which] + sign * step * direction
            ends.append(bound(moved))
        numeric = (ends[0] - ends[1]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(
            float(numeric), rel=1e-4, abs=1e-5
        )


@pytest.mark.parametrize(
    "name", ["relu()", "leaky_relu(alpha=0.2)", "exp()", "square()", "sigmoid()", "gelu()", "sin()"]
)
def test_gradients_of_default_lines_in_the_bounds(name: str) -> None:
    case = BY_LABEL[name]
    low = torch.tensor([[-1.3, 0.4, -2.0]], dtype=torch.float64, requires_grad=True)
    high = torch.tensor([[0.6, 1.7, -0.5]], dtype=torch.float64, requires_grad=True)

    def height(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        lines = case.relax(None, Interval(low, high))
        low_c, up_c = intercepts(lines)
        return (lines.low[0] * 0.1 + low_c + 2 * (lines.up[0] * 0.1 + up_c)).sum() + sum(
            t.sum() for t in case.interval(Interval(low, high))
        )

    for wanted, gradient in zip(
        (low, high), torch.autograd.grad(height(low, high), (low, high)), strict=True
    ):
        for i in range(3):
            step = torch.zeros_like(wanted)
            step[0, i] = 1e-5
            ends = [
                height(*((t + s * step if t is wanted else t).detach() for t in (low, high)))
                for s in (1, -1)
            ]
            assert float(gradient[0, i]) == pytest.approx(
                float(ends[0] - ends[1]) / 2e-5, rel=2e-2, abs=2e-3
            )
