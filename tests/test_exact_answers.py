"""Bounds against linear programs over the triangle relaxation and against exact MILP optima."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from certify.bounds import decide
from certify.bounds.alpha import Alpha
from certify.bounds.methods import METHODS, bound, fit
from certify.core.graph import Graph
from certify.core.region import Box
from certify.core.spec import Spec
from certify.ops.builder import Builder, Value
from certify.settings import METHOD_NAMES
from certify.verify import verify
from tests.exact_nets import exact_values
from tests.nets import Body, flat, grow, layer, mlp, names, residual, single, weights
from tests.polyhedra import TOLERANCE, Polyhedron, grown

QUICK = Alpha(iterations=8, unit_iterations=3)


def convolutions(b: Builder, x: Value, rng: np.random.Generator) -> Value:
    """Small feature maps, so that a linear program stays small."""
    z = b.add("reshape", layer(b, x, 18, rng), shape=(1, 2, 3, 3))
    z = b.add(
        "conv",
        z,
        b.constant(weights(rng, 2, 2, 2, 2)),
        b.constant(single(rng.normal(size=2) * 0.2)),
        pads=(1, 0, 0, 1),
        strides=(1, 1),
    )
    z = b.add(
        "conv",
        b.add("relu", z),
        b.constant(weights(rng, 2, 2, 3, 3)),
        None,
        pads=(1, 1, 1, 1),
        strides=(2, 1),
    )
    return layer(b, flat(b, b.add("relu", z)), 2, rng)


def joined(b: Builder, x: Value, rng: np.random.Generator) -> Value:
    """Two branches of different depth that meet twice."""
    first = b.add("relu", layer(b, x, 6, rng))
    second = b.add("relu", b.add("sub", layer(b, first, 6, rng), first))
    both = b.add("concat", first, second, axis=-1)
    return b.add("add", layer(b, both, 2, rng), layer(b, x, 2, rng))


CHAINS: dict[str, Body] = {
    "two layers": mlp((7, 6, 3)),
    "three layers": mlp((6, 5, 5, 2)),
    "convolutions": convolutions,
    "joined": joined,
}


def box(
    seed: int, radius: float = 0.3, shape: tuple[int, ...] = (5,)
) -> tuple[np.ndarray, np.ndarray]:
    centre = np.random.default_rng(seed).uniform(-0.6, 0.6, size=shape)
    return centre - radius, centre + radius


def found(graph: Graph, ends: tuple[np.ndarray, np.ndarray], method: str, rows: Any = None) -> Any:
    return bound(graph, Box(*ends), method, rows, nodes=names(graph), alpha=QUICK)


def programs(
    graph: Graph, ends: tuple[np.ndarray, np.ndarray], bounds: Any
) -> dict[str, Polyhedron]:
    """The relaxation in front of every ReLU, on the bounds that a method found itself."""
    wanted = [n.inputs[0] for n in graph.nodes if n.op == "relu"]
    return {name: grown(graph, ends, bounds, until=name) for name in wanted}


@pytest.mark.oracle
@pytest.mark.parametrize("method", [m for m in METHODS if m != "sdp"])  # which couples neurons
@pytest.mark.parametrize("body", CHAINS)
def test_no_bound_beats_the_triangle_program(body: str, method: str) -> None:
    """No relaxation of single neurons can, on the same bounds of the layers before (nor of the
    layer's own inputs): a bound that does is unsound or uses something it does not have."""
    for seed in range(3):
        graph, ends = grow(CHAINS[body], seed=seed), box(seed, 0.15 + 0.15 * seed)
        result = found(graph, ends, method)
        for name, polyhedron in programs(graph, ends, result.nodes).items():
            low, high = (side[0].flatten().numpy() for side in result.nodes[name])
            least = polyhedron.minima(name, np.concatenate([np.eye(low.size), -np.eye(low.size)]))
            check_below(np.concatenate([low, -high]), least, f"{name}, seed {seed}")
        rows = np.random.default_rng(seed).normal(size=(3, result.lower.shape[1]))
        margins = found(graph, ends, method, rows)
        whole = grown(graph, ends, result.nodes)
        least = whole.minima(graph.output, np.concatenate([rows, -rows]))
        check_below(
            torch.cat([margins.lower[0], -margins.upper[0]]).numpy(), least, f"rows, seed {seed}"
        )


def check_below(found: np.ndarray, best: np.ndarray, what: str) -> None:
    assert (found <= best + TOLERANCE * (1 + np.abs(best))).all(), (
        f"{what}: {(found - best).max()} above"
    )


@pytest.mark.oracle
@pytest.mark.parametrize("body", ["two layers", "three layers", "joined"])
def test_no_bound_is_above_the_exact_minimum(body: str) -> None:
    for seed in range(3):
        graph, ends = grow(CHAINS[body], seed=seed), box(seed, 0.4)
        whole = grown(graph, ends, found(graph, ends, "ibp").nodes, exact=True)
        rows = np.random.default_rng(seed).normal(size=(2, graph.output_shape[0]))
        exact = np.array([whole.exact_minimum(graph.output, row)[0] for row in rows])
        for method in METHODS:
            check_below(
                found(graph, ends, method, rows).lower[0].numpy(), exact, f"{method}, seed {seed}"
            )


@pytest.mark.oracle
def test_optimised_slopes_come_close_to_the_linear_program() -> None:
    closed = []
    for seed in range(4):
        graph, ends = grow(CHAINS["two layers"], seed=seed), box(seed, 0.4)
        rows = np.random.default_rng(seed).normal(size=(3, 3))
        crown = found(graph, ends, "crown", rows)
        alpha = bound(
            graph, Box(*ends), "alpha", rows, alpha=Alpha(iterations=60, unit_iterations=0)
        )
        best = grown(graph, ends, crown.nodes).minima(graph.output, rows)
        gap = best - crown.lower[0].numpy()
        left = (best - alpha.lower[0].numpy()) / np.maximum(gap, 1e-9)
        closed += list(1 - left[gap > 1e-3])
    assert len(closed) >= 6 and np.mean(closed) > 0.8 and min(closed) > 0.4


@pytest.mark.oracle
def test_crown_is_tighter_than_intervals_and_exact_where_nothing_is_cut() -> None:
    for seed in range(4):
        graph, ends = grow(CHAINS["two layers"], seed=seed), box(seed, 1e-4)
        result = found(graph, ends, "crown")
        stable = all(
            bool(((b.lower >= 0) | (b.upper <= 0)).all())
            for n, b in result.nodes.items()
            if any(m.op == "relu" and m.inputs[0] == n for m in graph.nodes)
        )
        least = grown(graph, ends, result.nodes).minima(graph.output, np.eye(3))
        if stable:
            np.testing.assert_allclose(result.lower[0].numpy(), least, atol=1e-7)
    assert stable


def threshold(
    graph: Graph, ends: tuple[np.ndarray, np.ndarray], row: np.ndarray
) -> tuple[Fraction, np.ndarray]:
    """The exact value of a row at the point a MILP solver believes to be the minimiser."""
    whole = grown(graph, ends, found(graph, ends, "ibp").nodes, exact=True)
    _, solution = whole.exact_minimum(graph.output, row)
    point = np.clip(solution[whole.place[graph.inputs[0].name].ravel()], *ends)
    reached = exact_values(graph, point[None])[graph.output][0]
    return sum(
        (Fraction(float(c)) * y for c, y in zip(row, reached, strict=True)), Fraction(0)
    ), point


def below(value: Fraction, margin: float) -> float:
    """A float at most ``value - margin``."""
    number = float(value) - margin
    return (
        number
        if Fraction(number) <= value - Fraction(margin)
        else float(np.nextafter(number, -np.inf))
    )


@pytest.mark.oracle
@pytest.mark.parametrize("route", ["small", "large"])
@pytest.mark.parametrize("semantics", ["real", "float32"])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_what_a_point_violates_never_holds(
    semantics: str, method: str, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thresholds one unit in the last place above an exactly evaluated point; on the route of small
    networks and on the one that searches in float32 first."""
    if route == "large":
        monkeypatch.setattr(decide, "_SMALL", -1)
    for seed in range(6):
        radius = (0.0, 1e-9, 1e-5, 1e-3, 0.05, 0.3)[seed]
        graph, ends = grow(CHAINS["two layers"], seed=seed), box(seed, radius)
        row = single(np.random.default_rng(seed).normal(size=3))
        value, _ = threshold(graph, ends, row)
        above = (
            float(value)
            if Fraction(float(value)) > value
            else float(np.nextafter(float(value), np.inf))
        )
        options = {"attack": False, "semantics": semantics, "method": method}
        answer = verify(graph, Box(*ends), Spec.linear(row[None], above), 0.4, **options)
        undecided = {"UNKNOWN", "TIMEOUT"}
        assert answer.verdict.name in undecided, f"seed {seed}"
        shifted = Spec.linear(np.stack([-row, row, -row]), np.array([-1e3, above, -1e3]))
        answer = verify(graph, Box(*ends), shifted, 0.4, **options)
        assert answer.verdict.name in undecided, f"seed {seed}, one row of three"


@pytest.mark.oracle
@pytest.mark.parametrize("route", ["small", "large"])
def test_forward_decides_what_holds_and_nothing_else(
    route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not offered for whole queries, but transformations of images are decided by it."""
    if route == "large":
        monkeypatch.setattr(decide, "_SMALL", -1)
    for seed in range(6):
        graph, ends = grow(CHAINS["two layers"], seed=seed), box(seed, 0.1)
        row = single(np.random.default_rng(seed).normal(size=3))
        value, _ = threshold(graph, ends, row)
        room = float((float(value) - found(graph, ends, "forward", row[None]).lower).max()) + 0.1
        for level, holds in ((below(value, room), True), (float(value) + 1e-9, False)):
            spec = Spec.linear(row[None], level)
            question = decide.Question(fit(Box(*ends), graph), spec.rows(), spec.rows().bound[None])
            assert decide.decide(graph, question, "forward", decide.Means()).proved.all() == holds


@pytest.mark.oracle
@pytest.mark.parametrize("route", ["small", "large"])
def test_most_of_what_holds_with_room_is_proved(
    route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if route == "large":
        monkeypatch.setattr(decide, "_SMALL", -1)
    proved = 0
    for seed in range(12):
        graph, ends = grow(CHAINS["two layers"], seed=seed), box(seed, 0.1)
        row = single(np.random.default_rng(seed).normal(size=3))
        value, _ = threshold(graph, ends, row)
        spread = float((found(graph, ends, "crown", row[None]).upper - float(value)).max())
        spec = Spec.linear(row[None], below(value, 0.1 * spread))
        proved += verify(graph, Box(*ends), spec, attack=False).verdict.name == "HOLDS"
    assert proved >= 9


@pytest.mark.oracle
def test_answers_are_found_in_both_directions() -> None:
    right = {True: "HOLDS", False: "VIOLATED"}
    decided = 0
    for seed in range(8):
        graph, ends = grow(CHAINS["two layers"], seed=seed), box(seed, 0.1)
        row = single(np.random.default_rng(seed).normal(size=3))
        value, _ = threshold(graph, ends, row)
        for margin, holds in ((0.2, True), (-0.2, False)):
            spec = Spec.linear(row[None], below(value, margin) if holds else float(value) - margin)
            verdict = verify(graph, Box(*ends), spec, 5.0).verdict.name
            assert verdict in (right[holds], "UNKNOWN", "TIMEOUT")
            decided += verdict == right[holds]
    assert decided >= 12


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("method", ["crown-ibp", "crown", "alpha"])
def test_no_bound_beats_the_triangle_program_around_skip_connections(method: str) -> None:
    graph, ends = grow(residual, seed=1), box(1, 0.1)
    result = found(graph, ends, method)
    for name, polyhedron in programs(graph, ends, result.nodes).items():
        low, high = (side[0].flatten().numpy() for side in result.nodes[name])
        picks = np.random.default_rng(0).choice(low.size, 6, replace=False)
        least = polyhedron.minima(
            name, np.concatenate([np.eye(low.size)[picks], -np.eye(low.size)[picks]])
        )
        check_below(np.concatenate([low[picks], -high[picks]]), least, name)
