"""Branch and bound over neurons: against exact optima, against samples, with faults planted."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from certify.bounds import evaluate
from certify.bounds.budget import Limits
from certify.bounds.rounding import Semantics
from certify.core.certificate import Verdict
from certify.core.graph import Graph
from certify.core.region import L2, Box, Product, as_inputs
from certify.core.spec import Row, Spec
from certify.core.split_tree import LEAF
from certify.ops.builder import Builder
from certify.search.neuron_split import children
from certify.search.neuron_split.branching import Offers
from certify.search.neuron_split.domains import Domains
from certify.search.neuron_split.engine import split_neurons
from certify.search.neuron_split.root import Root
from certify.search.problem import Findings, Problem
from tests.nets import BODIES, Body, grow, layer, mlp, names
from tests.polyhedra import grown
from tests.test_exact_answers import CHAINS, box

SMOOTH: dict[str, Body] = {
    "sigmoid": mlp((6, 5, 3), "sigmoid"),
    "tanh": mlp((6, 5, 3), "tanh"),
    "leaky": mlp((6, 5, 3), "leaky_relu", {"alpha": 0.125}),
    "sin": mlp((5, 3), "sin"),
}
EVERY = {**BODIES, **SMOOTH}


def problem(graph: Graph, ends: Any, spec: Spec, seconds: float = 10.0, **more: Any) -> Problem:
    parts = as_inputs(Box(*ends), list(graph.input_shapes))
    region = parts[0] if len(parts) == 1 else Product(parts)
    limits = Limits(deadline=time.monotonic() + seconds)
    return Problem(graph, region, spec.rows(), limits=limits, **more)


def run(graph: Graph, x: np.ndarray) -> np.ndarray:
    """Outputs ``(N, m)`` in float64."""
    inputs = torch.from_numpy(x.reshape(len(x), *graph.input_shapes[0]))
    found: np.ndarray = evaluate.evaluate(graph, inputs).flatten(1).numpy()
    return found


def least(graph: Graph, ends: Any, row: np.ndarray) -> tuple[float, np.ndarray]:
    """The exact minimum of a row of a ReLU network, and where it is."""
    from certify.bounds.methods import bound

    known = bound(graph, Box(*ends), "crown", None, nodes=names(graph)).nodes
    whole = grown(graph, ends, known, exact=True)
    value, solution = whole.exact_minimum(graph.output, row)
    return value, solution[whole.place[graph.nodes[0].name].ravel()]


def single(row: np.ndarray, bound: float, m: int) -> Spec:
    return Spec.unsafe([[Row(row, bound)]], m)


# -- exact answers --------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("body", CHAINS)
@pytest.mark.parametrize("seed", range(3))
def test_close_thresholds_are_decided_on_the_right_side(body: str, seed: int) -> None:
    graph, ends = grow(CHAINS[body], seed=seed), box(seed, 0.25 + 0.05 * seed)
    m = int(np.prod(graph.output_shape))
    row = np.random.default_rng(seed).normal(size=m)
    value, at = least(graph, ends, row)
    gap = 5e-3 * (1 + abs(value))

    below = split_neurons(problem(graph, ends, single(row, value - gap, m), suspect=None))
    assert below.verdict is Verdict.HOLDS, below
    assert 0 < below.margin <= gap * (1 + 1e-3)

    above = split_neurons(problem(graph, ends, single(row, value + gap, m), 0.7))
    assert above.verdict in (Verdict.TIMEOUT, Verdict.UNKNOWN)
    assert above.margin <= 0 and 0 < above.open_share <= 1 and above.hardest
    assert float(run(graph, at[None])[0] @ row) <= value + gap


@pytest.mark.oracle
def test_a_counterexample_is_found_where_planes_are_lowest() -> None:
    graph, ends = grow(CHAINS["two layers"], seed=1), box(1, 0.8)
    row = np.random.default_rng(1).normal(size=3)
    value, _ = least(graph, ends, row)
    bound = value + 0.05 * (1 + abs(value))
    tried = list[np.ndarray]()

    def suspect(x: np.ndarray) -> bool:
        tried.append(x)
        inside = (x >= ends[0]).all() and (x <= ends[1]).all()
        return bool(inside and run(graph, x[None])[0] @ row <= bound)

    found = split_neurons(problem(graph, ends, single(row, bound, 3), suspect=suspect))
    assert found.verdict is Verdict.VIOLATED
    assert tried


@pytest.mark.oracle
@pytest.mark.parametrize("semantics", [Semantics.REAL, Semantics.FLOAT32])
def test_every_clause_is_refuted(semantics: Semantics) -> None:
    graph, ends = grow(CHAINS["three layers"], seed=2), box(2, 0.3)
    rows = np.random.default_rng(3).normal(size=(4, 2))
    values = [least(graph, ends, row)[0] for row in rows]
    good = [[Row(r, v - 0.03 * (1 + abs(v)))] for r, v in zip(rows, values, strict=True)]
    found = split_neurons(problem(graph, ends, Spec.unsafe(good, 2), semantics=semantics))
    assert found.verdict is Verdict.HOLDS
    bad = [*good[:3], [Row(rows[3], values[3] + 0.01 * (1 + abs(values[3])))]]
    found = split_neurons(problem(graph, ends, Spec.unsafe(bad, 2), 2.0, semantics=semantics))
    assert found.verdict is not Verdict.HOLDS


def test_rows_are_combined_where_no_single_one_can_be_refuted() -> None:
    b = Builder()
    x = b.input("x", (2,))
    rng = np.random.default_rng(0)
    y = layer(b, b.add("relu", layer(b, x, 4, rng)), 1, rng)
    y = b.add("add", y, b.constant(np.array([0.5])))
    graph = b.finish(b.add("concat", y, b.add("neg", y), axis=-1))
    both = [Row([1.0, 0.0], -1e-3), Row([0.0, 1.0], -1e-3)]  # y < 0 and -y < 0
    found = split_neurons(problem(graph, (-np.ones(2), np.ones(2)), Spec.unsafe([both], 2), 3.0))
    assert found.verdict is Verdict.HOLDS
    wrong = [Row([1.0, 0.0], 1e-3), Row([0.0, 1.0], 1e-3)]  # y about 0
    found = split_neurons(problem(graph, (-np.ones(2), np.ones(2)), Spec.unsafe([wrong], 2), 1.0))
    values = run(graph, rng.uniform(-1, 1, size=(20000, 2)))[:, 0]
    assert values.min() < -1e-3 < 1e-3 < values.max()
    assert found.verdict is not Verdict.HOLDS


@pytest.mark.parametrize("body", [*SMOOTH, "arithmetic", "attention", "convolutional", "branched"])
def test_what_samples_contradict_is_never_proved(body: str) -> None:
    """And what is true by a wide margin of the samples is."""
    graph, ends = grow(EVERY[body], (2,), seed=4), (np.full(2, -0.4), np.full(2, 0.3))
    rng = np.random.default_rng(5)
    grid = np.stack(np.meshgrid(*(np.linspace(a, b, 150) for a, b in zip(*ends, strict=True))), -1)
    values = run(graph, grid.reshape(-1, 2))
    row = rng.normal(size=values.shape[1])
    reached = values @ row
    spread = float(np.ptp(reached))
    wrong = split_neurons(
        problem(graph, ends, single(row, float(reached.min()) + 1e-3 * spread, 3), 1.0)
    )
    assert wrong.verdict is not Verdict.HOLDS
    right = split_neurons(
        problem(graph, ends, single(row, float(reached.min()) - 0.25 * spread, 3), 30.0)
    )
    assert right.verdict is Verdict.HOLDS, right


def test_a_ball_is_no_box() -> None:
    graph = grow(CHAINS["two layers"], seed=0)
    region = L2(np.zeros(5), 0.5).batched((5,))
    row = np.array([1.0, -0.5, 0.25])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20000, 5))
    x *= 0.5 * rng.uniform(0, 1, size=(20000, 1)) ** 0.2 / np.linalg.norm(x, axis=1, keepdims=True)
    low = float((run(graph, x) @ row).min())
    for shift, right in ((-0.3, True), (1e-3, False)):
        limits = Limits(deadline=time.monotonic() + (5.0 if right else 1.0))
        asked = Problem(graph, region, single(row, low + shift, 3).rows(), limits=limits)
        assert (split_neurons(asked).verdict is Verdict.HOLDS) == right


@pytest.mark.oracle
def test_children_that_do_not_cover_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that lost the second half of every split would prove what is false."""
    real = children.halves

    def wrong(root: Root, domains: Domains, offer: Offers) -> Domains:
        both = real(root, domains, offer)
        first = both.take(slice(len(domains)))
        return children.joined([first, first])

    graph, ends = grow(CHAINS["two layers"], seed=0), box(0, 0.6)
    row = np.random.default_rng(0).normal(size=3)
    value, _ = least(graph, ends, row)
    asked = single(row, value + 0.1 * (1 + abs(value)), 3)
    honest = split_neurons(problem(graph, ends, asked, 1.0))
    assert honest.verdict is not Verdict.HOLDS
    monkeypatch.setattr(children, "halves", wrong)
    assert split_neurons(problem(graph, ends, asked, 5.0)).verdict is Verdict.HOLDS


# -- answers --------------------------------------------------------------------------------------


def proof() -> Findings:
    graph, ends = grow(CHAINS["three layers"], seed=0), box(0, 0.7)
    row = np.random.default_rng(0).normal(size=2)
    value, _ = least(graph, ends, row)
    return split_neurons(problem(graph, ends, single(row, value - 2e-3, 2)))


@pytest.mark.oracle
def test_a_proof_has_a_tree_with_multipliers_for_every_split_of_a_leaf() -> None:
    found = proof()
    assert found.verdict is Verdict.HOLDS
    (tree,) = found.trees
    assert tree.leaves > 1
    assert len(tree.multipliers) == sum(len(path) for path in tree.paths())
    assert (tree.multipliers >= 0).all()
    assert found.margin == pytest.approx(tree.point[tree.step == LEAF].min())


def test_time_runs_out_with_an_answer() -> None:
    graph, ends = grow(BODIES["residual"], seed=3), (np.full(5, -1.0), np.full(5, 1.0))
    values = run(graph, np.random.default_rng(0).uniform(-1, 1, size=(500, 5)))
    asked = problem(graph, ends, single(np.eye(3)[0], float(values[:, 0].min()), 3), 1.0)
    found = split_neurons(asked)
    assert asked.limits.remaining() > 0
    assert found.verdict is Verdict.TIMEOUT
    assert found.hardest and found.reason and found.leaves > 1 and np.isfinite(found.margin)
    assert split_neurons(problem(graph, ends, single(np.eye(3)[0], 0.0, 3), -1.0)).verdict is (
        Verdict.TIMEOUT
    )
