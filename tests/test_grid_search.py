"""The grid search: against exact values, with violations planted between grid points."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

import certify
from certify.bounds.budget import Limits
from certify.bounds.crown import Plan, tighten
from certify.bounds.evaluate import evaluate
from certify.bounds.program import prepare
from certify.core.certificate import Verdict, read_certificate
from certify.core.errors import BadInput, LimitExceeded, UsageError
from certify.core.graph import Graph
from certify.core.region import L2, Box, Linf, Product
from certify.core.semantics import Semantics
from certify.core.spec import Row, Spec
from certify.ops.builder import Builder
from certify.search.gradients import row_rates
from certify.search.grid import BY_BOUNDS, BY_LIPSCHITZ, OPEN, search_grid
from certify.search.problem import Problem
from tests.exact_nets import exact_values
from tests.nets import convolutional, grow, mlp, residual
from tests.polyhedra import grown
from tests.test_cli import run


def hinges(weight: Any, bias: Any, last: Any, offset: float) -> Graph:
    """``last . relu(weight x + bias) + offset`` as a graph that is its own model."""
    b = Builder()
    x = b.input("x", (len(np.asarray(weight)[0]),))
    w, v = (b.constant(np.asarray(a, dtype=np.float32)) for a in (weight, [last]))
    c, d = (b.constant(np.asarray(a, dtype=np.float32)) for a in (bias, [offset]))
    return b.finish(b.add("linear", b.add("relu", b.add("linear", x, w, c)), v, d),
                    {"dtype": "float32"})


def spike(at: float, width: float, inputs: int = 1) -> Graph:
    """1 everywhere but in a tent of this half-width around ``at``, where it falls to -1."""
    row = [1.0, *(0.0 for _ in range(inputs - 1))]
    weight, slope = [row] * 3, 2 / width
    bias = [-(at - width), -at, -(at + width)]
    return hinges(weight, bias, [-slope, 2 * slope, -slope], 1.0)


POSITIVE = Spec.unsafe([[Row({0: 1.0}, 0.0)]], 1)


@pytest.mark.parametrize("width", [0.03, 0.003, 2.0**-12])
def test_a_violation_between_grid_points_is_never_missed(width: float) -> None:
    at = 0.34375 + 2.0**-9
    for step, depth in itertools.product((0.25, 0.125), (0, 2, 14)):
        found = certify.grid_search(spike(at, width), Box(np.zeros(1), np.ones(1)), POSITIVE,
                                    [0], step, depth=depth)
        assert found.verdict is not Verdict.HOLDS, (step, depth)
        if found.verdict is Verdict.UNKNOWN:
            assert "tested, not proved" in found.reason
            assert found.provenance.settings["cells_open"] >= 1
        else:
            point = np.asarray(found.counterexample.input, dtype=np.float64)
            assert exact_values(spike(at, width), point[None])[
                spike(at, width).output].item() <= 0


def test_a_touching_point_stays_undecided() -> None:
    graph = hinges([[1.0], [-1.0]], [-1 / 3, 1 / 3], [1.0, 1.0], 0.0)  # |x - 1/3| > 0 almost
    found = certify.grid_search(graph, Box(np.zeros(1), np.ones(1)), POSITIVE, [0], 0.1)
    assert found.verdict in (Verdict.UNKNOWN, Verdict.VIOLATED)


def _slice(seed: int, body: Any = None) -> tuple[Graph, Box, np.ndarray]:
    rng = np.random.default_rng(seed)
    graph = grow(body or mlp((7, 6, 3)), seed=seed)
    centre = rng.uniform(-0.5, 0.5, size=5).astype(np.float32).astype(np.float64)
    return graph, Box(centre - 0.25, centre + 0.25), centre


@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(6))
def test_it_agrees_with_the_exact_minimum_of_a_slice(seed: int) -> None:
    graph, region, centre = _slice(seed)
    dims = [seed % 5, (seed + 2) % 5]
    low, high = centre.copy(), centre.copy()
    low[dims], high[dims] = low[dims] - 0.25, high[dims] + 0.25
    nodes = [n.name for n in graph.nodes[1:]]
    bounds = certify.bound(graph, Box(low, high), "ibp", nodes=nodes).nodes
    row = np.random.default_rng(seed).normal(size=3)
    exact = grown(graph, (low, high), bounds, exact=True).exact_minimum(graph.output, row)[0]
    for gap, wanted in ((0.05, Verdict.HOLDS), (-0.05, Verdict.VIOLATED)):
        spec = Spec.linear([row], exact - gap)
        found = certify.grid_search(graph, region, spec, dims, 0.1, depth=12, at=centre)
        assert found.verdict is wanted, found.sentence()
        if wanted is Verdict.HOLDS:
            assert certify.check(found, graph).accepted
            text = read_certificate(found.text())
            assert certify.check(text, graph).accepted
        else:
            point = np.asarray(found.counterexample.input, dtype=np.float64).reshape(1, -1)
            y = exact_values(graph, point.reshape(1, *graph.input_shapes[0]))[graph.output]
            value = sum(Fraction(float(c)) * v for c, v in zip(row, y.reshape(-1), strict=True))
            assert value < Fraction(exact - gap) + Fraction(1, 10**5)
            others = np.setdiff1d(np.arange(5), dims)
            assert (point[0, others] == centre[others]).all()
            assert certify.check(found, graph).accepted


def _rates(graph: Graph, region: Any, dims: list[int], y: np.ndarray) -> np.ndarray | None:
    program = prepare(graph, torch.float64)
    fitted = region.batched(graph.input_shapes[0])
    with torch.no_grad():
        state = tighten(program, fitted, Plan(), Semantics.REAL, Limits())
        rows = torch.from_numpy(y).reshape(1, len(y), *program.shape(program.output))
        return row_rates(state, {program.output: rows}, np.array(dims))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid", "tanh", "residual"])
def test_no_step_beats_the_lipschitz_constants(activation: str) -> None:
    attrs = {"alpha": 0.1} if activation == "leaky_relu" else {}
    for seed in range(4):
        body = residual if activation == "residual" else mlp((7, 6, 3), activation, attrs)
        graph, region, centre = _slice(seed, body)
        y = np.random.default_rng(seed).normal(size=(4, 3))
        rates = _rates(graph, region, [1, 3], y)
        assert rates is not None and np.isfinite(rates).all()
        rng = np.random.default_rng(seed + 100)
        a = rng.uniform(centre - 0.25, centre + 0.25, size=(400, 5))
        b = a.copy()
        b[:, [1, 3]] = rng.uniform(centre[[1, 3]] - 0.25, centre[[1, 3]] + 0.25, size=(400, 2))
        values = [evaluate(graph, torch.from_numpy(p)).numpy() @ y.T
                  for p in (a, b)]
        allowed = np.abs(a - b)[:, [1, 3]] @ rates.T
        assert (np.abs(values[0] - values[1]) <= allowed + 1e-12).all()


def test_the_constant_of_a_linear_function_is_its_weight_and_not_below() -> None:
    b = Builder()
    weight = np.array([[0.1, -0.7, 3.0]], dtype=np.float32)
    x = b.input("x", (3,))
    graph = b.finish(b.add("linear", x, b.constant(weight), b.constant(np.ones(1, np.float32))),
                     {"dtype": "float32"})
    rates = _rates(graph, Box(np.zeros(3), np.ones(3)), [0, 1, 2], np.ones((1, 1)))
    exact = np.abs(weight.astype(np.float64))
    assert (rates >= exact).all() and np.allclose(rates, exact, rtol=1e-12)


def test_a_network_without_constants_is_decided_by_bounds() -> None:
    graph, region, _ = _slice(0, convolutional)
    assert _rates(graph, region, [0], np.ones((1, 3))) is None  # max pooling has none
    low = certify.bound(graph, region, "ibp").lower.numpy().reshape(-1)
    spec = Spec.linear(np.eye(len(low)), low - 0.1)
    found = certify.grid_search(graph, region, spec, [0, 1])
    assert found.verdict is Verdict.HOLDS


def test_each_cell_says_how_it_was_decided_and_all_cover_the_box() -> None:
    graph, _, centre = _slice(1)
    low, high = centre.copy(), centre.copy()
    low[:2], high[:2] = low[:2] - 0.25, high[:2] + 0.25
    slab = Box(low, high).batched(graph.input_shapes[0])
    least = certify.bound(graph, slab, "alpha", np.eye(3)[:1]).lower.item()
    seen = set()
    for gap in (4.0, 0.5, 0.05, -0.05):
        spec = Spec.linear(np.eye(3)[:1], least - gap)
        found = search_grid(Problem(graph, slab, spec.rows()), np.full(2, 0.05), 3, 10_000)
        seen |= set(found.decided.tolist())
        volume = (found.upper - found.lower).prod(axis=1).sum()
        assert np.isclose(volume, (high - low)[:2].prod(), rtol=1e-9)
        points = np.random.default_rng(0).uniform(low[:2], high[:2], size=(500, 2))
        inside = (points[:, None] >= found.lower) & (points[:, None] <= found.upper)
        assert inside.all(axis=2).any(axis=1).all()
        wanted = Verdict.UNKNOWN if found.count(OPEN) else Verdict.HOLDS
        assert found.verdict is wanted
    assert seen >= {BY_LIPSCHITZ, BY_BOUNDS}


def test_grid_points_lie_at_the_ends_and_every_step() -> None:
    graph = spike(0.5, 2.0**-6, inputs=2)
    region = Box(np.array([0.1, 0.25]), np.array([0.9, 0.25]))
    found = certify.grid_search(graph, region, POSITIVE, [0, 1], 0.1, depth=0)
    assert found.verdict is Verdict.VIOLATED  # the spike is on a grid point
    assert abs(float(np.ravel(found.counterexample.input)[0]) - 0.5) < 2.0**-6


def test_clauses_of_several_rows_and_rows_over_inputs() -> None:
    graph = hinges([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0], [1.0, 1.0], 0.0)  # x0 + x1 on [0, 1]
    region = Box(np.zeros(2), np.ones(2))
    both = [Row({0: 1.0}, 0.5), Row(None, 0.6, x={0: -1.0, 1: -1.0})]  # y <= .5 and x0+x1 >= -.6
    never = [Row({0: 1.0}, 0.5), Row(None, -0.75, x={0: -1.0, 1: -1.0})]
    for clause, wanted in ((both, Verdict.VIOLATED), (never, Verdict.HOLDS)):
        spec = Spec.unsafe([clause], 1, 2)
        found = certify.grid_search(graph, region, spec, [0, 1], 0.2, depth=12)
        assert found.verdict is wanted, found.sentence()
        assert certify.check(found, graph).accepted


def test_dimensions_are_chosen_by_gradient() -> None:
    graph = hinges([[0.1, 5.0, 0.0, 2.0]], [10.0], [1.0], 0.0)
    found = certify.grid_search(graph, Linf(np.zeros(4), 0.1), POSITIVE, count=2)
    assert found.provenance.settings["dims"] == "1,3"
    assert found.verdict is Verdict.HOLDS
    lower, upper = found.claim.cases[0].region.ends()
    assert (lower[0] == upper[0])[[0, 2]].all()


def test_the_same_question_gets_the_same_answer() -> None:
    graph, region, centre = _slice(3)
    spec = Spec.linear(np.eye(3), certify.bound(graph, region, "ibp").lower.numpy().reshape(-1))

    def once() -> tuple[Any, ...]:
        found = certify.grid_search(graph, region, spec, [0, 4], 0.1)
        trees = [(t.step.tobytes(), t.point.tobytes()) for e in found.evidence
                 for group in e.trees for t in group]
        settings = {k: v for k, v in found.provenance.settings.items()}
        return found.verdict, settings, trees

    assert once() == once()


def test_what_cannot_be_searched_is_refused() -> None:
    graph, region, _ = _slice(0)
    spec = Spec.classify(0, 3)
    with pytest.raises(BadInput, match="Box or Linf"):
        certify.grid_search(graph, L2(np.zeros(5), 0.1), spec, [0])
    for dims in ([], [0, 0], [5], [-1], list(range(7))):
        with pytest.raises(BadInput, match="dims"):
            certify.grid_search(graph, region, spec, dims)
    for step in (0.0, -1.0, np.nan, [0.1, 0.1]):
        with pytest.raises(BadInput, match="step"):
            certify.grid_search(graph, region, spec, [0], step)
    with pytest.raises(LimitExceeded, match="larger step"):
        certify.grid_search(graph, region, spec, [0, 1], 1e-9)
    with pytest.raises(BadInput, match="outside"):
        certify.grid_search(graph, region, spec, [0], at=np.full(5, 9.0))
    with pytest.raises(UsageError, match="unknown option"):
        certify.grid_search(graph, region, spec, [0], nonsense=1)


def test_the_time_limit_is_said() -> None:
    graph, region, _ = _slice(2)
    low = certify.bound(graph, region, "ibp").lower.numpy().reshape(-1)
    spec = Spec.linear(np.eye(3), low - 1)
    found = certify.grid_search(graph, region, spec, [0, 1], 0.0015, timeout=0.05)
    assert found.verdict is Verdict.TIMEOUT and "tested, not proved" in found.reason


def test_several_model_inputs() -> None:
    b = Builder()
    x, z = b.input("x", (2,)), b.input("z", (2,))
    total = b.add("add", b.add("relu", x), b.add("tanh", z))
    graph = b.finish(total, {"dtype": "float32"})
    region = Product((Box(np.zeros(2), np.ones(2)), Box(np.zeros(2), np.ones(2))))
    for bound, wanted in ((-0.1, Verdict.HOLDS), (0.4, Verdict.VIOLATED)):
        spec = Spec.linear([[1.0, 0.0]], bound)
        found = certify.grid_search(graph, region, spec, [0, 2], 0.25, at=np.zeros(4))
        assert found.verdict is wanted, found.sentence()
        assert certify.check(found, graph).accepted


# -- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unsafe", "word", "code"),
    [(tiny_models.HOLDS, "holds", 0), (tiny_models.VIOLATED, "violated", 1)],
)
def test_the_command(tmp_path: Path, unsafe: str, word: str, code: int) -> None:
    model = tiny_models.absolute_sum(tmp_path / "net.onnx")
    spec = tiny_models.specification(tmp_path / "spec.vnnlib", unsafe)
    saved = tmp_path / "found.json"
    done = run("grid", model, spec, "--dims", "0,1", "--step", "0.5", "--certificate", saved)
    assert done.returncode == code and done.stdout.split()[0] == word, done
    assert run("check", saved).stdout == "accepted\n"
    again = certify.load_certificate(saved)
    assert again.provenance.settings["dims"] == "0,1"


def test_the_command_fixes_other_inputs_and_says_what_was_only_tested(tmp_path: Path) -> None:
    model = tiny_models.absolute_sum(tmp_path / "net.onnx")
    spec = tiny_models.specification(tmp_path / "spec.vnnlib", tiny_models.VIOLATED)
    done = run("grid", model, spec, "--dims", "1", "--step", "0.5")
    assert done.returncode == 0 and done.stdout == "holds\n", done  # |x1| alone is below 1.5
    touching = tiny_models.specification(tmp_path / "touch.vnnlib", "(assert (<= Y_0 0.0001))")
    done = run("grid", model, touching, "--dims", "0", "--step", "0.75", "--depth", "1", "-v")
    assert done.returncode == 3 and done.stdout == "unknown\n"
    assert "tested, not proved" in done.stderr and "cells_open: 1" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("--dims", "a"), 2), (("--dims", "0,7"), 4), (("--step", "0"), 4), (("--count", "9"), 2),
     (("--step", "1e-9"), 4), (("--timeout", "0"), 2)],
)
def test_wrong_arguments_are_one_line(
    tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    model = tiny_models.absolute_sum(tmp_path / "net.onnx")
    spec = tiny_models.specification(tmp_path / "spec.vnnlib", tiny_models.HOLDS)
    done = run("grid", model, spec, *arguments)
    assert done.returncode == code and done.stdout == "", done
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
