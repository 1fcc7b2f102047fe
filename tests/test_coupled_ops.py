"""Every operator whose result mixes several unknowns, tested from its own record.

A rule's numbers are taken as they are and compared with the operator evaluated in extended
precision (80-bit, or float64 for a float32 rule), without any tolerance.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from certify import ops
from certify.ops.record import Example, Interval, Op, RelaxedRule, Site

REGISTRY = ops.load()
LONG = np.longdouble


def _axis(site: Site) -> Any:
    return tuple(site.attrs["axes"]) or None


def _long_lse(site: Site, x: np.ndarray) -> np.ndarray:
    top = x.max(axis=_axis(site), keepdims=True)
    total = np.log(np.exp(x - top).sum(axis=_axis(site), keepdims=True)) + top
    return total if site.attrs["keepdims"] else total.squeeze(_axis(site))


def _long_softmax(site: Site, x: np.ndarray) -> np.ndarray:
    mask = np.broadcast_to(site.attrs.get("mask", True), site.shape)
    x = np.where(mask, x, -LONG(np.inf))
    e = np.exp(x - x.max(axis=site.attrs["axis"], keepdims=True))
    return e / e.sum(axis=site.attrs["axis"], keepdims=True)


EXTENDED = {
    "mul": lambda site, x, y: x * y,
    "matmul": lambda site, x, y: (x[..., :, :, None] * y[..., None, :, :]).sum(-2),
    "maximum": lambda site, x, y: np.maximum(x, y),
    "minimum": lambda site, x, y: np.minimum(x, y),
    "reduce_max": lambda site, x: x.max(axis=_axis(site), keepdims=site.attrs["keepdims"]),
    "reduce_min": lambda site, x: x.min(axis=_axis(site), keepdims=site.attrs["keepdims"]),
    "logsumexp": _long_lse,
    "softmax": _long_softmax,
}


def _site(op: Op, example: Example) -> Site:
    varies = tuple(isinstance(v, tuple) for v in example.operands)
    shapes = tuple(
        v if isinstance(v, tuple) else () if v is None else v.shape for v in example.operands
    )
    shape = op.shape(example.attrs, *shapes)
    return Site(op.name, MappingProxyType(dict(example.attrs)), shapes, varies, shape)


def _couples(op: Op, example: Example) -> bool:
    """Whether a result element depends on more than the one operand element at its place."""
    site = _site(op, example)
    if sum(site.varies) > 1:
        return True
    if site.shapes[0] != site.shape or sum(site.varies) != 1 or math.prod(site.shape) > 64:
        return math.prod(site.shapes[0]) > math.prod(site.shape) if site.varies[0] else False
    rng = np.random.default_rng(0)
    first, second = (
        torch.as_tensor(rng.uniform(example.low, example.high, site.shape)) for _ in "ab"
    )
    rest = [None if v is None else torch.as_tensor(v) for v in example.operands[1:]]
    swap = torch.eye(first.numel(), dtype=torch.bool).reshape(-1, *site.shape)
    changed = op.forward(site, torch.where(swap, second, first), *rest) != op.forward(
        site, first, *rest
    )
    return bool((changed & ~swap).any())


def _cases() -> list[Any]:
    found = []
    for op in REGISTRY.ops.values():
        for k, example in enumerate(op.examples):
            if op.relaxed is None or not isinstance(op.rule(_site(op, example)), RelaxedRule):
                continue
            if op.name in EXTENDED or _couples(op, example):
                found.append(pytest.param(op, example, id=f"{op.name}-{k}"))
    return found


CASES = _cases()
DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(torch.float64, id="f64")]


def _boxes(example: Example, site: Site, dtype: torch.dtype, seed: int) -> list[Any]:
    """Operands with six boxes each: wide, narrow, points, half points, one sign, one ulp."""
    rng = np.random.default_rng(seed)
    found: list[Any] = []
    for operand, shape, varies in zip(example.operands, site.shapes, site.varies, strict=True):
        if not varies:
            found.append(None if operand is None else torch.as_tensor(operand).to(dtype))
            continue
        span = example.high - example.low
        centre = rng.uniform(example.low, example.high, (6, *shape))
        radius = span / 2 * rng.uniform(0, 1, (6, *shape))
        radius[1] *= 1e-3
        radius[2] = 0
        radius[3] *= rng.integers(0, 2, shape)
        lower = torch.as_tensor(np.maximum(centre - radius, example.low)).to(dtype)
        upper = torch.as_tensor(np.minimum(centre + radius, example.high)).to(dtype)
        upper[5] = torch.nextafter(lower[5], torch.full_like(lower[5], torch.inf))
        upper[4], lower[4] = upper[4].abs().maximum(lower[4].abs()), 0.0 * lower[4]
        found.append(Interval(lower, upper.maximum(lower)))
    return found


def _points(operands: list[Any], count: int, seed: int) -> list[Any]:
    """``count`` points of each box, half of them corners: ``(count, B, *shape)``, extended."""
    rng = np.random.default_rng(seed)
    found: list[Any] = []
    for v in operands:
        if not isinstance(v, Interval):
            found.append(None if v is None else v.numpy().astype(LONG))
            continue
        lower, upper = (t.numpy().astype(LONG) for t in v)
        t = rng.uniform(0, 1, (count, *lower.shape))
        corner = np.arange(count).reshape(-1, *[1] * lower.ndim) < count // 2
        t = np.where(corner, (t > 0.5), t)
        inside = lower + t * (upper - lower)
        found.append(np.clip(np.where(t == 1, upper, inside), lower, upper))
    return found


def _exact(op: Op, site: Site, points: list[Any]) -> np.ndarray:
    if op.name in EXTENDED:
        return EXTENDED[op.name](site, *points)
    wide = [None if p is None else torch.as_tensor(p.astype(np.float64)) for p in points]
    return op.forward(site, *wide).numpy().astype(LONG)


def _needs_extended(op: Op, dtype: torch.dtype) -> None:
    if dtype == torch.float64 and op.name not in EXTENDED:
        assert op.relaxed is not None  # its float32 rule is checked against float64 instead


def _magnitudes(operands: list[Any]) -> tuple[Any, ...]:
    return tuple(
        v.lower.abs().maximum(v.upper.abs()) if isinstance(v, Interval) else None for v in operands
    )


def _choices(op: Op, site: Site, operands: list[Any], seed: int) -> list[Any]:
    """The default slopes, both ends, random ones, and random ones per row."""
    assert op.relaxed is not None
    if op.relaxed.slopes is None:
        return [None]
    slopes = op.relaxed.slopes(site, *operands)
    torch.manual_seed(seed)

    def random(rows: int) -> tuple[torch.Tensor, ...]:
        shapes = [(s.start.shape[0], rows, *s.start.shape[2:]) for s in slopes]
        return tuple(
            s.low + torch.rand(n, dtype=s.start.dtype) * (s.high - s.low)
            for s, n in zip(slopes, shapes, strict=True)
        )

    ends = [
        tuple(end.expand_as(s.start) for s, end in zip(slopes, which, strict=True))
        for which in ([s.low for s in slopes], [s.high for s in slopes])
    ]
    return [
        None,
        tuple(s.start for s in slopes),
        *ends,
        random(1),
        random(2 * math.prod(site.shape)),
    ]


def _claimed(coefficients: Any, bias: Any, points: list[Any]) -> np.ndarray:
    """``sum coefficient . x + bias`` in extended precision: (count, B, R)."""
    total = bias.numpy().astype(LONG)[None]
    for c, x in zip(coefficients, points, strict=True):
        if c is not None:
            c = c.numpy().astype(LONG)[None]
            total = total + (c * x[:, :, None]).reshape(*x.shape[:2], c.shape[2], -1).sum(-1)
    return total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "example"), CASES)
def test_interval_contains_every_sample(op: Op, example: Example, dtype: torch.dtype) -> None:
    if dtype == torch.float64 and op.name not in EXTENDED:
        dtype = torch.float32
    site = _site(op, example)
    operands = _boxes(example, site, dtype, 1)
    assert op.relaxed is not None
    lower, upper = (t.numpy().astype(LONG) for t in op.relaxed.interval(site, *operands))
    exact = _exact(op, site, _points(operands, 400, 2))
    assert not np.isnan(lower).any() and not np.isnan(upper).any()
    assert (lower <= exact).all() and (exact <= upper).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "example"), CASES)
def test_each_plane_holds_for_any_slopes(op: Op, example: Example, dtype: torch.dtype) -> None:
    if dtype == torch.float64 and op.name not in EXTENDED:
        dtype = torch.float32
    site = _site(op, example)
    operands = _boxes(example, site, dtype, 3)
    points = _points(operands, 200, 4)
    exact = _exact(op, site, points)
    size = math.prod(site.shape)
    unit = torch.eye(size, dtype=dtype).reshape(size, *site.shape)
    A = torch.cat([unit, -unit]).expand(6, -1, *site.shape)
    exact = exact.reshape(*exact.shape[:2], size)
    exact = np.concatenate([exact, -exact], -1)
    assert op.relaxed is not None
    for slopes in _choices(op, site, operands, 5):
        coefficients, bias = op.relaxed.relax(site, slopes, *operands).backward(A)
        assert all(c is None or bool(c.isfinite().all()) for c in coefficients)
        claimed = _claimed(coefficients, bias, points)
        assert not np.isnan(claimed).any()
        assert (exact >= claimed).all(), float((claimed - exact).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "example"), CASES)
def test_mixed_rows_hold_within_the_stated_weight(
    op: Op, example: Example, dtype: torch.dtype
) -> None:
    if dtype == torch.float64 and op.name not in EXTENDED:
        dtype = torch.float32
    site = _site(op, example)
    operands = _boxes(example, site, dtype, 6)
    points = _points(operands, 100, 7)
    torch.manual_seed(8)
    A = torch.randn(6, 3, *site.shape, dtype=dtype)
    long = A.numpy().astype(LONG)[None]
    exact = _exact(op, site, points)[:, :, None]
    exact = (long * exact).reshape(*exact.shape[:2], 3, -1).sum(-1)
    assert op.relaxed is not None
    relaxation = op.relaxed.relax(site, None, *operands)
    coefficients, bias = relaxation.backward(A)
    weight = relaxation.weight(_magnitudes(operands)).unsqueeze(1)
    assert weight.broadcast_to(6, 1, *site.shape).isfinite().all()
    room = 4 * torch.finfo(dtype).eps * (A.abs() * weight).reshape(6, 3, -1).sum(-1)
    room = room * (1 + math.prod(site.shape) / 4)
    claimed = _claimed(coefficients, bias - room, points)
    assert (exact >= claimed).all(), float((claimed - exact).max())


@pytest.mark.parametrize(("op", "example"), CASES)
def test_planes_reach_the_interval_at_the_centre(op: Op, example: Example) -> None:
    """At the box's centre a plane is no worse than the constant bound; both are sound there."""
    site = _site(op, example)
    operands = _boxes(example, site, torch.float64, 9)
    size = math.prod(site.shape)
    unit = torch.eye(size, dtype=torch.float64).reshape(size, *site.shape)
    A = torch.cat([unit, -unit]).expand(6, -1, *site.shape)
    assert op.relaxed is not None
    coefficients, bias = op.relaxed.relax(site, None, *operands).backward(A)
    middle = [
        (v.lower + v.upper).numpy()[None] / 2 if isinstance(v, Interval) else None for v in operands
    ]
    value = _claimed(coefficients, bias, middle)[0]
    bounds = op.relaxed.interval(site, *operands)
    flat = torch.cat([bounds.lower.reshape(6, -1), -bounds.upper.reshape(6, -1)], -1).numpy()
    assert (value >= flat - 1e-9 * (1 + np.abs(flat))).all(), float((flat - value).max())


@pytest.mark.parametrize(("op", "example"), CASES)
def test_infinite_bounds_never_give_nan(op: Op, example: Example) -> None:
    site = _site(op, example)
    operands = _boxes(example, site, torch.float64, 10)
    narrow = list(operands)
    for i, v in enumerate(operands):
        if isinstance(v, Interval):
            lower, upper = v.lower.clone(), v.upper.clone()
            lower[0].flatten()[0], upper[0].flatten()[-1], lower[1], upper[1] = (
                -torch.inf,
                torch.inf,
                -torch.inf,
                torch.inf,
            )
            lower[0].view(-1)[0], upper[0].view(-1)[-1] = -torch.inf, torch.inf
            operands[i] = Interval(lower, upper)
    assert op.relaxed is not None
    bounds = op.relaxed.interval(site, *operands)
    assert not any(bool(t.isnan().any()) for t in bounds)
    torch.manual_seed(0)
    A = torch.randn(6, 3, *site.shape, dtype=torch.float64)
    coefficients, bias = op.relaxed.relax(site, None, *operands).backward(A)
    assert not bool(bias.isnan().any()) and not bool((bias == torch.inf).any())
    assert all(c is None or bool(c.isfinite().all()) for c in coefficients)
    points = _points(narrow, 50, 11)  # every point of the narrower box is one of the infinite box
    exact = _exact(op, site, points)[:, :, None]
    exact = (A.numpy().astype(LONG)[None] * exact).reshape(*exact.shape[:2], 3, -1).sum(-1)
    assert (exact >= _claimed(coefficients, bias - 1e-9, points)).all()
