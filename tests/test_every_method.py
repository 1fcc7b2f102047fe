"""Every bound method on every region and every kind of network: what must hold for all."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from certify.bounds.alpha import Alpha
from certify.bounds.evaluate import evaluate, run
from certify.bounds.methods import METHODS, MULTIPLIERS, bound
from certify.bounds.program import prepare
from certify.core.errors import BadInput, LimitExceeded, UsageError
from certify.core.graph import Graph
from certify.core.region import L2, REGIONS, Box, Linf, Product, Region
from tests.exact_nets import exact_values
from tests.nets import BODIES, ELEMENTWISE, dense, grow, names, over, single

QUICK = Alpha(iterations=3, unit_iterations=1)
STEADY = Alpha(iterations=1, unit_iterations=1)  # later steps turn rounding noise into directions
OPTIMISED = ("alpha", "sdp-crown")  # choose slopes, as `STEADY` says
SHORT = Alpha(iterations=1)  # several steps of the dual each
PLACES = [
    pytest.param(r, id=f"{name}-{i}")
    for name, kind in REGIONS.items()
    for i, r in enumerate(kind.examples())
]
every_method = pytest.mark.parametrize("method", [
    pytest.param(m, marks=pytest.mark.slow) if METHODS[m].small else m for m in METHODS
])
every_body = pytest.mark.parametrize("body", BODIES)


def found(graph: Graph, region: Region, method: str, rows: Any = None, **changes: Any) -> Any:
    alpha = SHORT if method in MULTIPLIERS else QUICK
    settings = {"alpha": alpha, "nodes": names(graph)} | changes
    try:
        return bound(graph, region, method, rows, **settings)
    except LimitExceeded as problem:
        assert METHODS[method].small
        pytest.skip(str(problem))


def samples(graph: Graph, region: Region, count: int = 200) -> tuple[list[torch.Tensor], int]:
    """Points of a region as model inputs ``(B * N, *shape)`` in float64, corners among them."""
    parts = region.parts if isinstance(region, Product) else (region,)
    generator = torch.Generator().manual_seed(5)
    points = [p.sample(count, generator).double() for p in parts]
    if len(parts) == 1 and isinstance(region, Box) and points[0][0, 0].numel() <= 5:
        low, high = (torch.tensor(np.asarray(e)).unsqueeze(1) for e in region.ends())
        picks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=low[0].numel())))
        points = [
            torch.cat([points[0], low + (high - low) * picks.reshape(1, -1, *low.shape[2:])], 1)
        ]
    return [x.flatten(0, 1) for x in points], points[0].shape[1]


def inside(graph: Graph, region: Region, method: str, share: float = 1e-9, **changes: Any) -> None:
    """Samples lie within the bounds of every node, and within those of random rows."""
    result = found(graph, region, method, **changes)
    points, count = samples(graph, region)
    with torch.no_grad():
        values = run(prepare(graph, torch.float64), tuple(points))
    for node, value in zip(graph.nodes, values, strict=True):
        low, high = (side.double().unsqueeze(1) for side in result.nodes[node.name])
        value = value.reshape(-1, count, *node.shape)
        slack = share * (1 + low.abs().nan_to_num(0, 0, 0) + high.abs().nan_to_num(0, 0, 0))
        assert bool((value >= low - slack).all()), f"{node.name} falls below its bound"
        assert bool((value <= high + slack).all()), f"{node.name} rises above its bound"
    output = values[-1].reshape(-1, count, *graph.output_shape)
    assert bool((output >= result.lower.double().unsqueeze(1) - share * 1e3).all())
    assert bool((output <= result.upper.double().unsqueeze(1) + share * 1e3).all())
    rows = np.random.default_rng(3).normal(size=(4, output.shape[-1]))
    margins = found(graph, region, method, rows, **changes)
    real = output.flatten(2) @ torch.as_tensor(rows).T
    assert bool((real >= margins.lower.double().unsqueeze(1) - share * 1e3).all())
    assert bool((real <= margins.upper.double().unsqueeze(1) + share * 1e3).all())


@every_method
@pytest.mark.parametrize("region", PLACES)
def test_samples_lie_inside_on_every_region(method: str, region: Region) -> None:
    for body in ("mlp", "branched"):
        inside(over(region, BODIES[body]), region, method)


@every_method
@every_body
def test_samples_lie_inside_on_every_network(method: str, body: str) -> None:
    centre = np.array([[0.1, -0.3, 0.5, 0.0, -0.8], [-0.6, 0.2, 0.1, 0.9, 0.4]])
    for seed, size in ((0, 0.05), (1, 0.5)):
        graph = grow(BODIES[body], seed=seed)
        inside(
            graph,
            Box(centre - size, centre + size * np.array([[1.0], [0.5]])).batched((5,)),
            method,
        )
        inside(graph, L2(centre, size, (-1.0, 1.0)).batched((5,)), method)


@every_method
def test_samples_lie_inside_on_images(method: str) -> None:
    rng = np.random.default_rng(8)
    centre = rng.uniform(size=(2, 1, 2, 6, 6))
    for seed in range(2):
        graph = grow(BODIES["convolutional"], (1, 2, 6, 6), seed)
        inside(graph, Linf(centre, 0.1, (0.0, 1.0)).batched((1, 2, 6, 6)), method)


@pytest.mark.parametrize("method", ["crown", "forward", "alpha"])
@pytest.mark.parametrize("operator", ELEMENTWISE)
def test_samples_lie_inside_for_every_activation(method: str, operator: str) -> None:
    centre = np.array([[0.0] * 5, [0.4, -0.4, 0.3, -0.1, 0.2]])
    graph = grow(ELEMENTWISE[operator])
    inside(graph, Box(centre - 0.6, centre + np.array([[0.6], [0.1]])).batched((5,)), method)


@every_method
@every_body
def test_search_semantics_in_float32_agrees_with_float64(method: str, body: str) -> None:
    graph = grow(BODIES[body], seed=4)
    single_region = Linf(torch.full((1, 5), 0.125), 0.0625)
    double_region = Linf(torch.full((1, 5), 0.125).double(), 0.0625)
    short, long = (
        found(graph, r, method, semantics="search") for r in (single_region, double_region)
    )
    assert short.lower.dtype == torch.float32 and long.lower.dtype == torch.float64
    spread = (long.upper - long.lower).max()
    for name, box in long.nodes.items():
        # optimised slopes amplify rounding; both are sound, so only their quality is compared
        close = 2e-2 if method in OPTIMISED else 1e-3
        size = 1 + box.upper.abs().max() + box.lower.abs().max()
        assert bool(((short.nodes[name].lower - box.lower).abs() <= close * size).all()), name
    assert bool(((short.lower - long.lower).abs() <= 2e-2 * (1 + spread)).all())


@every_method
@pytest.mark.parametrize("body", ["mlp", "branched", "upsampling", "residual"])
def test_a_point_gives_the_networks_value(method: str, body: str) -> None:
    graph = grow(BODIES[body], seed=7)
    points = single(np.random.default_rng(1).uniform(-1, 1, size=(3, 5)))
    result = found(graph, Box(points, points).batched((5,)), method)
    exact = exact_values(graph, points)
    for name, box in result.nodes.items():
        for b, value in zip(range(3), exact[name], strict=True):
            pairs = zip(
                value.ravel(),
                box.lower[b].ravel().tolist(),
                box.upper[b].ravel().tolist(),
                strict=True,
            )
            assert all(low <= v <= high for v, low, high in pairs), name
    value = evaluate(graph, torch.as_tensor(points))
    torch.testing.assert_close(result.lower, value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(result.upper, value, rtol=1e-10, atol=1e-10)


@every_method
@every_body
def test_examples_of_a_batch_do_not_mix(method: str, body: str) -> None:
    """Reordered examples give reordered bounds, equal examples equal ones, and without backward
    passes for intermediate bounds a batch gives what its examples give alone. (With them it may
    give more: where examples need different numbers of passes, the others get spare ones.)"""
    graph = grow(BODIES[body], seed=2)
    centre = np.random.default_rng(6).uniform(-0.8, 0.8, size=(3, 5))
    region = Linf(centre, np.array([0.3, 0.02, 0.15]), (-1.0, 1.0)).batched((5,))
    rows = np.random.default_rng(9).normal(size=(3, 2, 3))

    def of(examples: list[int]) -> dict[str, torch.Tensor]:
        part = region.rows(examples)
        return everything(
            found(graph, part, method, alpha=STEADY),
            found(graph, part, method, rows[examples], alpha=STEADY),
        )

    together = of([0, 1, 2])
    for order in ([1, 0, 2], [2, 1, 0]):
        same(of(order), {key: value[order] for key, value in together.items()}, method)
    for i in range(3):
        alone = of([i])
        same(of([i, i]), {key: torch.cat([value, value]) for key, value in alone.items()}, method)
        if not METHODS[method].refine:
            same({key: value[i : i + 1] for key, value in together.items()}, alone, method)


def everything(outputs: Any, margins: Any) -> dict[str, torch.Tensor]:
    """All bounds of two results by name."""
    both = {"output": outputs, "rows": margins}
    kept = {f"{k} {side}": getattr(r, side) for k, r in both.items() for side in ("lower", "upper")}
    for name, box in outputs.nodes.items():
        kept |= {f"{name} lower": box.lower, f"{name} upper": box.upper}
    return kept


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], method: str) -> None:
    """Equal up to rounding. Where two slopes are as good, rounding picks the optimiser's way: a few
    optimised bounds may differ."""
    off = {}
    for key, value in other.items():
        slack = (1e-3 if method in OPTIMISED else 1e-7) * (1 + float(value.abs().max()))
        off[key] = (one[key] - value).abs() > slack
    share = float(torch.cat([mask.flatten() for mask in off.values()]).double().mean())
    allowed = 0.04 if method in OPTIMISED else 0.0
    assert share <= allowed, (
        f"{share:.1%} differ: {[key for key, mask in off.items() if mask.any()]}"
    )


@every_method
@every_body
def test_a_tiny_memory_budget_changes_nothing(method: str, body: str) -> None:
    graph = grow(BODIES[body], seed=3)
    region = Box(np.full((2, 5), -0.3), np.array([[0.2], [0.4]]) + np.zeros(5)).batched((5,))
    rows = np.random.default_rng(2).normal(size=(2, 4, 3))
    large, small = (found(graph, region, method, rows, memory=m, alpha=STEADY) for m in (2**32, 1))
    same(everything(small, small), everything(large, large), method)


@every_body
def test_better_methods_are_not_looser(body: str) -> None:
    for seed in range(4):
        graph = grow(BODIES[body], seed=seed)
        centre = np.random.default_rng(seed).uniform(-0.7, 0.7, size=(2, 5))
        region = Linf(centre, 0.1 + 0.1 * seed).batched((5,))
        rows = np.random.default_rng(seed).normal(size=(3, 3))
        ibp, backward, crown, forward = (
            found(graph, region, m, rows) for m in ("ibp", "crown-ibp", "crown", "forward")
        )
        alpha = found(graph, region, "alpha", rows, alpha=Alpha(iterations=6, unit_iterations=0))
        pairs = [(backward, ibp), (crown, ibp), (forward, ibp), (alpha, crown)]
        for better, worse in pairs:
            slack = 1e-9 * (1 + worse.lower.abs() + worse.upper.abs())
            assert bool((better.lower >= worse.lower - slack).all())
            assert bool((better.upper <= worse.upper + slack).all())
        for name, box in ibp.nodes.items():
            slack = 1e-9 * (1 + box.lower.abs() + box.upper.abs())
            assert bool((crown.nodes[name].lower >= box.lower - slack).all()), name
            assert bool((crown.nodes[name].upper <= box.upper + slack).all()), name


def test_methods_differ_where_they_should() -> None:
    graph = grow(BODIES["deep"], seed=1)
    region = Box(-0.5, 0.5)
    width = {
        m: float((b.upper - b.lower).sum())
        for m in METHODS
        for b in [bound(graph, region, m, alpha=Alpha(iterations=30))]
    }
    assert width["alpha"] < 0.95 * width["crown"] < 0.95 * width["crown-ibp"] < 0.95 * width["ibp"]
    assert width["forward"] < 0.95 * width["ibp"]


def test_rows_are_bounded_better_than_their_parts() -> None:
    for seed in range(5):
        graph, region = grow(BODIES["deep"], seed=seed), Linf(np.full(5, 0.1), 0.2)
        rows = torch.tensor([[1.0, -1.0, 0.0], [0.5, 0.5, -2.0]]).double()
        outputs, margins = bound(graph, region, "ibp"), bound(graph, region, "ibp", rows)
        parts = rows.clamp(min=0) @ outputs.lower[0] + rows.clamp(max=0) @ outputs.upper[0]
        assert bool((margins.lower[0] > parts).all())


def live_graph(seed: int) -> tuple[Graph, list[torch.Tensor]]:
    """The ``branched`` network with torch parameters."""
    graph = grow(BODIES["branched"], seed=seed)
    live = {k: torch.tensor(v).requires_grad_() for k, v in graph.constants.items()}
    return Graph(graph.nodes, live, graph.output), list(live.values())


@every_method
@pytest.mark.parametrize("wanted", ["search", "real"])
def test_bounds_are_differentiable(method: str, wanted: str) -> None:
    graph, parameters = live_graph(3)
    centre = torch.linspace(-0.4, 0.5, 5).double().reshape(1, 5).requires_grad_()
    radius = torch.full((1, 5), 0.2).double().requires_grad_()
    leaves = [*parameters, centre, radius]
    mix = torch.tensor([1.0, -0.5, 2.0]).double()

    def total() -> torch.Tensor:
        result = bound(graph, Linf(centre, radius), method, semantics=wanted, alpha=QUICK)
        return (mix * result.lower - mix.flip(0).abs() * result.upper).sum()

    if method == "sdp":
        with pytest.raises(UsageError, match="gradients"):
            total()
        return
    slopes = torch.autograd.grad(total(), leaves)
    assert all(bool(s.isfinite().all()) and bool(s.any()) for s in slopes)
    if method == "alpha" or method in MULTIPLIERS:  # what they choose moves too: see the envelope
        return
    generator = torch.Generator().manual_seed(0)
    for leaf, slope in zip(leaves, slopes, strict=True):
        way = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        step = 1e-6
        with torch.no_grad():
            leaf += step * way
            above = total()
            leaf -= 2 * step * way
            below = total()
            leaf += step * way
        expected = float((above - below) / (2 * step))
        assert float((slope * way).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_changed_parameters_change_the_bounds() -> None:
    graph, parameters = live_graph(1)
    region = Linf(np.zeros(5), 0.1)
    with torch.no_grad():
        before = bound(graph, region).lower
        parameters[-1] += 1.0
        torch.testing.assert_close(bound(graph, region).lower, before + 1.0)


def test_what_does_not_exist_is_refused() -> None:
    graph, region = grow(BODIES["mlp"]), Linf(np.zeros(5), 0.1)
    with pytest.raises(BadInput, match="nonsense"):
        bound(graph, region, nodes=["nonsense"])
    with pytest.raises(UsageError, match="nonsense"):
        bound(graph, region, "nonsense")
    with pytest.raises(UsageError, match="nonsense"):
        bound(graph, region, semantics="nonsense")
    with pytest.raises(UsageError, match="forward"):
        bound(graph, region, "forward", semantics="float32")
    with pytest.raises(TypeError):
        bound(graph, region, nonsense=1)
    with pytest.raises(BadInput, match="rows"):
        bound(graph, region, rows=np.zeros((2, 4)))
    with pytest.raises(BadInput):
        bound(graph, Linf(np.zeros(4), 0.1))
    with pytest.raises(BadInput):
        bound(graph, Product([region, region]))


def test_all_shapes_of_rows_mean_the_same() -> None:
    graph, region = grow(BODIES["mlp"]), Linf(np.zeros((2, 5)), np.array([0.1, 0.3]))
    rows = np.random.default_rng(0).normal(size=(4, 3))
    plain = bound(graph, region, rows=rows)
    assert plain.lower.shape == (2, 4) and bound(graph, region).lower.shape == (2, 3)
    for shaped in (np.stack([rows, rows]), rows[None], torch.as_tensor(rows)):
        torch.testing.assert_close(bound(graph, region, rows=shaped).lower, plain.lower)
    torch.testing.assert_close(bound(graph, region, rows=-rows).lower, -plain.upper)


def test_a_known_bound_by_hand() -> None:
    """``relu(x + y) - relu(x - y)`` on [-1, 1]^2, worked out on paper."""
    from certify.ops.builder import Builder

    b = Builder()
    hidden = b.add(
        "relu", dense(b, b.input("x", (2,)), np.array([[1.0, 1.0], [1.0, -1.0]])), name="r"
    )
    graph = b.finish(dense(b, hidden, np.array([[1.0, -1.0]])))
    box = Box(-np.ones(2), np.ones(2))
    ibp = bound(graph, box, "ibp")
    torch.testing.assert_close(ibp.upper, torch.tensor([[2.0]]).double())
    # slopes 1/2 above (intercept 1); below u = -l chooses 0: y <= (x+y)/2 + 1, worst 2
    for method, value in (("crown", 2.0), ("crown-ibp", 2.0)):
        torch.testing.assert_close(
            bound(graph, box, method).upper, torch.tensor([[value]]).double()
        )
    small = bound(graph, Box(np.array([0.5, 0.0]), np.array([1.0, 0.25])), "crown")
    # both active: 2 y
    torch.testing.assert_close(small.lower, torch.tensor([[0.0]]).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(small.upper, torch.tensor([[0.5]]).double())
