"""Bounds against exact rationals and against float32 runs in any order, with zero tolerance."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from certify.bounds import kernels
from certify.bounds.alpha import Alpha
from certify.bounds.budget import Limits
from certify.bounds.methods import METHODS, MULTIPLIERS, analyse, bound, fit
from certify.bounds.program import prepare
from certify.bounds.selftest import BrokenArithmetic, check_arithmetic
from certify.core.graph import Graph
from certify.core.region import L0, L1, L2, Box, Linf, Region
from certify.core.semantics import Semantics
from certify.ops.builder import Builder, Value
from tests.exact_nets import Float32, exact_values, values
from tests.nets import BODIES, Body, dense, flat, grow, layer, names, single, weights, wild

QUICK = Alpha(iterations=2, unit_iterations=1)
RIGOROUS = tuple(METHODS)
DEPLOYED = tuple(m for m in METHODS if not METHODS[m].forward)
NETS = 40


def mixed(b: Builder, x: Value, rng: np.random.Generator) -> Value:
    """Wild scales through every operator with exact rational values."""
    first, second = wild(b, x, rng), layer(b, x, 3, rng)
    both = b.add("concat", b.add("add", first, second), b.add("sub", second, first), axis=-1)
    bent = b.add(
        "maximum", b.add("abs", both), b.add("mul", both, b.constant(single(rng.normal(size=6))))
    )
    other = b.add("minimum", b.add("leaky_relu", b.add("neg", both), alpha=0.125), bent)
    square = b.add("square", b.add("slice", other, axes=(-1,), starts=(0,), ends=(6,), steps=(2,)))
    product = b.add("mul", square, second)
    return dense(b, b.add("concat", product, other, axis=-1), weights(rng, 2, 9))


def images(b: Builder, x: Value, rng: np.random.Generator) -> Value:
    """Convolutions with padding and strides, batch norm left out: a root is not rational."""
    z = b.add("reshape", layer(b, x, 32, rng), shape=(1, 2, 4, 4))
    for pads in ((1, 0, 1, 1), (1, 1, 0, 1)):
        kernel = np.ldexp(weights(rng, 2, 2, 3, 3), rng.integers(-6, 7, size=(2, 1, 1, 1)))
        z = b.add(
            "conv",
            z,
            b.constant(kernel),
            b.constant(single(rng.normal(size=2))),
            pads=pads,
            strides=(1, 1),
        )
        z = b.add("relu", z)
    return layer(b, flat(b, z), 2, rng)


def normalised(b: Builder, x: Value, rng: np.random.Generator) -> Value:
    """Batch norm of wild scales behind a convolution; only for float32 runs."""
    z = b.add("reshape", layer(b, x, 18, rng), shape=(1, 2, 3, 3))
    z = b.add("conv", z, b.constant(weights(rng, 3, 2, 2, 2)), None, strides=(1, 1))
    spread = single(np.ldexp(rng.uniform(1, 2, size=3), rng.integers(-8, 9, size=3)))
    mean, scale, shift = (single(rng.normal(size=3) * 8) for _ in range(3))
    z = b.add("batch_norm", z, *(b.constant(c) for c in (scale, shift, mean, spread)), eps=1e-5)
    return layer(b, flat(b, b.add("relu", z)), 2, rng)


def cases(seed: int, width: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ends of three float32 boxes ``(3, 5)``, and points of them ``(3 * P, 5)``."""
    rng = np.random.default_rng(seed)
    scale = np.ldexp(1.0, rng.integers(-6, 7, size=(3, 1)))
    low = single(rng.normal(size=(3, 5)) * scale)
    high = np.maximum(low, single(low + width * scale * rng.uniform(size=(3, 5))))
    if not width:
        return low, high, low
    picks = rng.integers(0, 2, size=(3, 3, 5))
    corners = np.where(picks, high[:, None], low[:, None])
    middle = np.clip(single((low + high) / 2)[:, None], low[:, None], high[:, None])
    return low, high, np.concatenate([corners, middle], 1).reshape(-1, 5)


def bounds(graph: Graph, region: Region, method: str, semantics: str) -> Any:
    return bound(graph, region, method, nodes=names(graph), semantics=semantics, alpha=QUICK)


def outside(result: Any, reached: dict[str, np.ndarray], examples: int) -> list[str]:
    """Names of nodes with a value outside the bounds; no tolerance. NaN counts as outside."""
    found = [name for name, box in result.nodes.items() if not within(box, reached[name], examples)]
    output = (result.lower, result.upper)
    return found if within(output, reached[list(reached)[-1]], examples) else [*found, "output"]


def within(box: Any, value: np.ndarray, examples: int) -> bool:
    low, high = (side.detach().double().numpy()[:, None] for side in box)
    value = value.reshape(examples, -1, *low.shape[2:])
    return bool(np.asarray((value >= low) & (value <= high), dtype=bool).all())


@pytest.mark.oracle
@pytest.mark.parametrize("width", [0.0, 1e-6, 0.3])
@pytest.mark.parametrize("body", [wild, mixed, images], ids=lambda f: f.__name__)
def test_exact_values_lie_inside_the_bounds(body: Body, width: float) -> None:
    check_exact(body, width, range(NETS // (1 if body is wild else 6)))


def check_exact(body: Body, width: float, seeds: range) -> None:
    for seed in seeds:
        graph = grow(body, seed=seed)
        low, high, points = cases(seed, width)
        region = Box(low, high).batched((5,))
        reached = exact_values(graph, points)
        for k, method in enumerate(RIGOROUS):
            if method in MULTIPLIERS and seed % 4:
                continue  # costly, and the same passes as the others
            with torch.set_grad_enabled(
                bool((seed + k) % 2)
            ):  # neither mode may lose the error terms
                deployed = (seed + k) % 3 == 0 and not METHODS[method].forward
                semantics = "float32" if deployed else "real"
                result = bounds(graph, region, method, semantics)
                assert outside(result, reached, 3) == [], f"seed {seed}, {method}, {semantics}"


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("width", [0.0, 0.3])
@pytest.mark.parametrize("body", [wild, mixed], ids=lambda f: f.__name__)
def test_exact_values_lie_inside_the_bounds_of_many_networks(body: Body, width: float) -> None:
    check_exact(body, width, range(1000, 1200 if body is wild else 1030))


@pytest.mark.parametrize("width", [0.0, 1e-6, 0.3])
@pytest.mark.parametrize("body", [wild, mixed, images, normalised], ids=lambda f: f.__name__)
def test_float32_runs_in_any_order_lie_inside_the_bounds(body: Body, width: float) -> None:
    for seed in range(NETS // (1 if body is wild else 6)):
        graph = grow(body, seed=seed)
        low, high, points = cases(seed, width)
        region = Box(low, high).batched((5,))
        results = {}
        for k, method in enumerate(DEPLOYED):
            if method in MULTIPLIERS and seed % 4:
                continue
            with torch.set_grad_enabled(bool((seed + k) % 2)):
                results[method] = bounds(graph, region, method, "float32")
        for order in range(6):
            reached = values(graph, Float32(np.random.default_rng(order)), points)
            for method, result in results.items():
                assert outside(result, reached, 3) == [], f"seed {seed}, order {order}, {method}"


@pytest.mark.oracle
@pytest.mark.parametrize("body", [wild, images], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kernel", ["on", "off"])
def test_kernels_and_their_references_are_rigorous(
    body: Body, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels are for large tensors; here they get small ones, whose exact values are known."""
    for least in ("WORTH_IT", "WORTH_A_CALL"):
        monkeypatch.setattr(kernels, least, 0 if kernel == "on" else 2**60)
    for width in (0.0, 0.3):
        check_exact(body, width, range(500, 512 if body is wild else 504))


@pytest.mark.oracle
@pytest.mark.parametrize("semantics", [Semantics.REAL, Semantics.FLOAT32], ids=lambda s: s.value)
@pytest.mark.parametrize("body", [wild, images], ids=lambda f: f.__name__)
def test_intermediate_bounds_in_float32_are_rigorous_too(body: Body, semantics: Semantics) -> None:
    """Large networks get theirs in float32, with the rounding of float32 accounted for."""
    for seed in range(NETS // (2 if body is wild else 6)):
        graph = grow(body, seed=seed)
        low, high, points = cases(seed, (0.0, 0.3)[seed % 2])
        if semantics is Semantics.REAL and seed % 2 == 0:  # ends that float32 does not hold
            low = high = points = low * (1 + 2.0**-30)
        region = fit(Box(low, high), graph)
        reached = exact_values(graph, points)
        deployed = values(graph, Float32(np.random.default_rng(seed)), points)
        for method in DEPLOYED:
            with torch.no_grad():
                program = prepare(graph, torch.float32)
                state = analyse(program, region, METHODS[method], semantics, Limits(), QUICK)
            for node, box in zip(graph.nodes, state.bounds, strict=True):
                for run in (reached, deployed)[: 2 if semantics is Semantics.FLOAT32 else 1]:
                    assert within(box, run[node.name], 3), f"{node.name}, seed {seed}, {method}"


@pytest.mark.oracle
@pytest.mark.parametrize("kernel", ["on", "off"])
def test_sums_over_large_maps_are_charged_in_full(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal terms round the same way each time: the error of a sum really grows with its length,
    while no single operator here adds up more than four numbers."""
    for least in ("WORTH_IT", "WORTH_A_CALL"):
        monkeypatch.setattr(kernels, least, 0 if kernel == "on" else 2**60)
    levels, zero = 8, np.zeros((1, 1, 1, 1))
    for seed in range(12):
        rng, b = np.random.default_rng(seed), Builder()
        z = b.add("expand", b.input("x", (1, 1, 1, 1)), shape=(1, 1, 2**levels, 2**levels))
        bias = float(single(rng.uniform(0.5, 1)))
        z = b.add("add", z, b.constant(np.full(z.shape, bias)))
        value = Fraction(bias)
        for weight in single(rng.uniform(0.2, 0.3, size=levels)):
            z = b.add("conv", z, b.constant(np.full((1, 1, 2, 2), weight)), None, strides=(2, 2))
            value *= 4 * Fraction(float(weight))
        result = bound(b.finish(z), Box(zero, zero), "crown", rows=[[1.0]])
        assert Fraction(result.lower.item()) <= value <= Fraction(result.upper.item()), (
            f"seed {seed}"
        )


def test_the_fuzz_can_fail() -> None:
    """Plain floats are wrong often, and real-arithmetic bounds do not hold for float32 runs."""
    wrong = {"search": 0, "real": 0}
    for seed in range(NETS):
        graph = grow(wild, seed=seed)
        low, high, points = cases(seed, 0.0)
        plain = Box(torch.as_tensor(low), torch.as_tensor(high)).batched((5,))
        exact = exact_values(graph, points)
        wrong["search"] += bool(outside(bounds(graph, plain, "crown", "search"), exact, 3))
        deployed = values(graph, Float32(np.random.default_rng(seed)), points)
        real = bounds(graph, Box(low, high).batched((5,)), "crown", "real")
        wrong["real"] += bool(outside(real, deployed, 3))
    assert wrong["search"] > NETS // 4 and wrong["real"] > NETS // 4


def regions(centre: np.ndarray) -> list[Region]:
    clip = (-1.0, 1.0)
    return [
        Linf(centre, 0.3, clip),
        L2(centre, 0.5),
        L2(centre, 0.5, clip),
        L1(centre, 0.5),
        L1(centre, 0.7, clip),
        L0(centre, 2, clip),
    ]


@pytest.mark.oracle
@pytest.mark.parametrize("kind", range(6))
def test_worst_points_of_every_region_lie_inside_exactly(kind: int) -> None:
    """For a linear network the bound is attained: the exact value at the worst point decides."""
    for seed in range(15):
        rng = np.random.default_rng(seed)
        b = Builder()
        weight = single(np.ldexp(rng.normal(size=(4, 5)), rng.integers(-12, 13, size=(4, 5))))
        graph = b.finish(dense(b, b.input("x", (5,)), weight, single(rng.normal(size=4))))
        region = regions(single(rng.uniform(-1, 1, size=(1, 5))))[kind].batched((5,))
        worst = region.minimiser(torch.as_tensor(weight)[None])[0].numpy()
        result = bound(graph, region, "crown")
        reached = exact_values(graph, worst)[graph.output]
        for k in range(4):
            gap = reached[k, k] - Fraction(float(result.lower[0, k]))
            size = Fraction(float(np.abs(weight[k]).sum() + 2))
            if isinstance(region, (Linf, L0)) or _member(region, worst[k]):
                assert gap >= 0
            assert gap <= size * Fraction(1, 10**8)  # and the bound is tight


def _member(region: Region, x: np.ndarray) -> bool:
    """Whether the ball really holds the point, in rationals."""
    far = [
        abs(Fraction(float(v)) - Fraction(float(c)))
        for v, c in zip(x, np.asarray(region.center).ravel(), strict=True)
    ]
    eps = Fraction(float(np.asarray(region.eps).ravel()[0]))
    return sum(far) <= eps if isinstance(region, L1) else sum(d * d for d in far) <= eps * eps


def test_rigorous_bounds_cost_almost_nothing_in_tightness() -> None:
    for name, body in BODIES.items():
        graph, region = grow(body), Linf(np.full(5, 0.1), 0.2)
        plain = bound(
            graph, Linf(torch.full((1, 5), 0.1, dtype=torch.float64), 0.2), semantics="search"
        )
        real = bound(graph, region)
        spread = (plain.upper - plain.lower).max()
        assert bool((real.lower <= plain.lower + 1e-12 * spread).all()), name
        assert bool((plain.lower - real.lower <= 1e-9 * spread).all()), name
    graph = grow(BODIES["mlp"])
    real, deployed = (
        bound(graph, Linf(np.full(5, 0.1), 0.2), semantics=s) for s in ("real", "float32")
    )
    loss = (real.lower - deployed.lower) / (real.upper - real.lower)
    assert bool((loss > 0).all()) and bool((loss < 1e-4).all())


def test_overflow_and_unguaranteed_operators_bound_nothing() -> None:
    b = Builder()
    big = dense(b, b.input("x", (1,)), np.full((1, 1), 2.0**126), None)
    graph = b.finish(b.add("relu", dense(b, big, np.full((1, 1), 4.0), None)))
    region = Box(np.array([1.0]), np.array([2.0]))
    assert bool(bound(graph, region).upper.isfinite().all())
    assert not bool(bound(graph, region, semantics="float32").upper.isfinite().any())
    smooth = bound(grow(BODIES["attention"]), Linf(np.zeros(5), 0.1), semantics="float32")
    assert not bool(smooth.lower.isfinite().any() or smooth.lower.isnan().any())


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


PROOF = """
import numpy as np, torch
from certify.core.region import Linf
from certify.core.spec import Spec
from certify.verify import verify
from tests.nets import BODIES, grow
graph = grow(BODIES['mlp'])
{switch}
print(verify(graph, Linf(np.zeros(5), 1e-3), Spec.linear(np.eye(3), -100.0), attack=False).verdict)
"""


def test_flushing_subnormal_numbers_is_refused() -> None:
    fine = run_python(PROOF.format(switch=""))
    assert fine.returncode == 0 and "HOLDS" in fine.stdout.upper(), fine.stderr
    broken = run_python(PROOF.format(switch="assert torch.set_flush_denormal(True)"))
    assert broken.returncode != 0
    assert "BrokenArithmetic" in broken.stderr and "set_flush_denormal" in broken.stderr


def test_inaccurate_products_and_convolutions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from certify.bounds import selftest

    check_arithmetic()
    real, convolve = torch.Tensor.__matmul__, torch.nn.functional.conv2d
    selftest._test.cache_clear()
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda x, y: real(x.float(), y.float()).double()
    )
    with pytest.raises(BrokenArithmetic, match="products"):
        check_arithmetic()
    monkeypatch.undo()
    selftest._test.cache_clear()
    monkeypatch.setattr(
        torch.nn.functional, "conv2d", lambda x, w: convolve(x.float(), w.float()).double()
    )
    with pytest.raises(BrokenArithmetic, match="convolutions"):
        check_arithmetic()
    monkeypatch.undo()
    selftest._test.cache_clear()
    check_arithmetic()
