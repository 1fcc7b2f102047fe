"""The attack finds what is there, minds the specification's structure, stays in the region."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from certify import ops
from certify.bounds.evaluate import evaluate
from certify.bounds.program import prepare
from certify.core.errors import BadInput
from certify.core.graph import Graph
from certify.core.region import L0, L1, L2, Box, Linf, Lp, Product, Region
from certify.core.spec import Row, Spec
from certify.ops.builder import Builder, Value
from certify.search.attack import AttackSettings, Candidate, attack
from certify.search.surrogate import flat_steps

REGISTRY = ops.load()
BALLS: list[Region] = [
    Box(np.full(5, -1.0), np.full(5, 1.0)),
    Linf(np.zeros(5), 0.4),
    Linf(np.zeros(5), 0.4, (-0.1, 1.0)),
    L2(np.zeros(5), 0.8),
    L2(np.full(5, 0.2), 0.7, (0.0, 1.0)),
    L1(np.zeros(5), 1.0),
    Lp(np.zeros(5), 0.8, 3.0),
    L0(np.zeros(5), 2, (-1.0, 1.0)),
]
IDS = [f"{type(r).__name__}{i}" for i, r in enumerate(BALLS)]


def dense(builder: Builder, x: Value, weight: np.ndarray, bias: np.ndarray | None = None) -> Value:
    constants = [builder.constant(np.asarray(weight, np.float32))]
    constants += [] if bias is None else [builder.constant(np.asarray(bias, np.float32))]
    return builder.add("linear", x, *constants, *([None] if bias is None else []))


def mlp(
    sizes: Sequence[int], activation: str = "relu", seed: int = 0, dtype: str = "float32"
) -> Graph:
    """A random fully connected network."""
    rng, builder = np.random.default_rng(seed), Builder()
    value = builder.input("x", (sizes[0],))
    for i, (before, after) in enumerate(zip(sizes, sizes[1:], strict=False)):
        weight = rng.normal(size=(after, before)) / math.sqrt(before)
        value = dense(builder, value, weight, 0.1 * rng.normal(size=after))
        if i < len(sizes) - 2:
            value = builder.add(activation, value)
    return builder.finish(value, {"dtype": dtype})


def identity(n: int) -> Graph:
    """``y = relu(x) - relu(-x)``."""
    builder, eye = Builder(), np.eye(n)
    x = builder.input("x", (n,))
    hidden = builder.add("relu", dense(builder, x, np.concatenate([eye, -eye])))
    return builder.finish(
        dense(builder, hidden, np.concatenate([eye, -eye], 1)), {"dtype": "float32"}
    )


def run(graph: Graph, x: np.ndarray) -> np.ndarray:
    flat = torch.from_numpy(np.asarray(x, np.float32)).reshape(1, -1)
    sizes = [math.prod(s) for s in graph.input_shapes]
    pieces = [
        p.reshape(1, *s) for p, s in zip(flat.split(sizes, 1), graph.input_shapes, strict=True)
    ]
    with torch.no_grad():
        return evaluate(graph, *pieces).reshape(-1).numpy()


def first_violation(
    graph: Graph, region: Region, spec: Spec, **options: object
) -> Candidate | None:
    """The first candidate that is unsafe on the graph itself."""
    for found in attack(graph, region, spec, **options):  # type: ignore[arg-type]
        if spec.violated(found.x[None], run(graph, found.x)[None])[0]:
            return found
    return None


def lowest(graph: Graph, output: int, points: torch.Tensor) -> float:
    """The smallest value of an output over many points."""
    with torch.no_grad():
        return float(evaluate(graph, points)[:, output].min())


@pytest.mark.parametrize("region", BALLS, ids=IDS)
@pytest.mark.parametrize("activation", ["relu", "sign"])
def test_better_than_many_samples_in_every_region(region: Region, activation: str) -> None:
    graph = mlp([5, 40, 40, 3], activation)
    batched = region.batched((5,))
    samples = batched.sample(400, torch.Generator().manual_seed(5))[0].float()
    sampled = lowest(graph, 0, samples)
    spec = Spec.unsafe([[Row({0: 1.0}, -100.0)]], 3)
    last = list(attack(graph, region, spec, settings=AttackSettings(rounds=2)))[-1]
    assert last.margin - 100.0 <= sampled + 2e-5  # the margin is a float32 near 100
    assert last.margin - 100.0 == pytest.approx(float(run(graph, last.x)[0]), abs=2e-5)


@pytest.mark.parametrize("region", BALLS, ids=IDS)
def test_every_candidate_lies_in_the_region(region: Region) -> None:
    graph = mlp([5, 30, 3])
    value = float(run(graph, np.zeros(5))[0])
    spec = Spec.unsafe([[Row({0: 1.0}, value - d)] for d in (0.01, 0.1, 10.0)], 3)
    batched = region.batched((5,))
    found = list(attack(graph, region, spec, settings=AttackSettings(rounds=3)))
    assert len(found) >= 2
    for candidate in found:
        assert candidate.x.dtype == np.float32 and candidate.x.shape == (5,)
        assert batched.contains(candidate.x[None, None], slack=3e-7).all()


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_all_rows_of_a_clause_must_hold(shift: float) -> None:
    """An unsafe corner region of the identity: y_i >= 0.9 for all i, one point in 20 ** 4."""
    graph, region = identity(4), Box(np.full(4, -1.0), np.full(4, 1.0 - shift))
    spec = Spec.unsafe([[Row({i: -1.0}, -0.9) for i in range(4)]], 4)
    found = first_violation(graph, region, spec)
    assert (found is not None) == (shift == 0.0)
    if found is not None:
        assert (run(graph, found.x) >= 0.9).all()


def test_rows_of_different_sizes_meet_in_a_thin_wedge() -> None:
    graph, region = identity(3), Box(np.full(3, -1.0), np.full(3, 1.0))
    rows = [
        Row({0: 1.0, 1: -1.0}, 0.001),
        Row({0: -1.0, 1: 1.0}, 0.001),
        Row({2: 100.0, 0: 1.0}, -99.9),
    ]
    found = first_violation(graph, region, Spec.unsafe([rows], 3))
    assert found is not None and found.margin <= 0


def test_any_clause_is_enough_and_is_named() -> None:
    graph, region = identity(3), Box(np.full(3, -1.0), np.full(3, 1.0))
    out_of_reach = [[Row({i: 1.0}, -3.0 - i)] for i in range(3)]
    spec = Spec.unsafe([*out_of_reach, [Row({2: 1.0}, -0.95), Row({1: -1.0}, -0.95)]], 3)
    found = first_violation(graph, region, spec)
    assert found is not None and found.clause == 3


def test_rows_over_inputs_and_outputs() -> None:
    """y0 <= x0 - 1.5 with y = x means x0 + 1.5 <= x0 never; with x1 it needs opposite corners."""
    graph, region = identity(2), Box(np.full(2, -1.0), np.full(2, 1.0))
    never = Spec.unsafe([[Row({0: 1.0}, -1.5, x={0: -1.0})]], 2, 2)
    assert first_violation(graph, region, never) is None
    corners = Spec.unsafe([[Row({0: 1.0}, -1.9, x={1: -1.0})]], 2, 2)
    found = first_violation(graph, region, corners)
    assert found is not None and found.x[0] < -0.9 and found.x[1] > 0.9


def test_strict_rows_are_not_violated_on_the_edge() -> None:
    graph, region = identity(2), Box(np.zeros(2), np.ones(2))
    spec = Spec.unsafe([[Row({0: 1.0}, 0.0, strict=True)]], 2)
    assert first_violation(graph, region, spec) is None
    assert first_violation(graph, region, Spec.unsafe([[Row({0: 1.0}, 0.0)]], 2)) is not None


def test_several_inputs_in_their_own_regions() -> None:
    builder = Builder()
    a, b = builder.input("a", (2,)), builder.input("b", (1, 3))
    b_flat = builder.add("reshape", b, shape=(3,))
    joined = builder.add("concat", a, b_flat, axis=-1)
    graph = builder.finish(
        dense(builder, builder.add("relu", joined), [[1.0, -2, 3, -4, 5]]), {"dtype": "float32"}
    )
    region = Product([Box(np.zeros(2), np.ones(2)), L2(np.full((1, 3), 0.5), 0.5)])
    exact = -2.0 + 0.5 * (3 - 4 + 5) - 0.5 * math.sqrt(9 + 16 + 25)
    found = first_violation(graph, region, Spec.unsafe([[Row({0: 1.0}, exact + 1e-3)]], 1))
    assert found is not None
    assert np.linalg.norm(found.x[2:].astype(float) - 0.5) <= 0.5 * (1 + 1e-6)
    assert first_violation(graph, region, Spec.unsafe([[Row({0: 1.0}, exact - 1e-3)]], 1)) is None


def test_every_example_of_a_batch_with_its_own_rows() -> None:
    graph = identity(3)
    region = Linf(np.array([[1.0, 0, 0], [0, 1.0, 0]]), np.array([0.6, 0.1]))
    spec = Spec.classify(np.array([0, 1]), 3)
    last = {c.example: c.margin for c in attack(graph, region, spec)}
    assert last[0] == pytest.approx(1 - 1.2, abs=1e-3) and last[1] == pytest.approx(
        1 - 0.2, abs=1e-3
    )


def test_given_starts_are_tried_first() -> None:
    """A needle no gradient points to: relu(x - 0.999) with slope 1000 over a flat plain."""
    builder = Builder()
    x = builder.input("x", (8,))
    hidden = builder.add("relu", dense(builder, x, np.full((1, 8), 1.0), [-7.9]))
    graph = builder.finish(dense(builder, hidden, [[-1000.0]], [1.0]), {"dtype": "float32"})
    spec = Spec.unsafe([[Row({0: 1.0}, 0.0)]], 1)
    quick = AttackSettings(quick=2, rounds=0)
    region = Box(np.concatenate([np.full(4, -1.0), np.full(4, -1.0)]), np.ones(8))
    without = next(iter(attack(graph, region, spec, settings=quick)))
    given = next(iter(attack(graph, region, spec, settings=quick, starts=np.full((1, 8), 2.0))))
    assert given.margin < 0 and (given.x == 1).all()
    assert without.margin > given.margin


def test_flat_operators_are_found_by_trying() -> None:
    for activation in ("relu", "tanh", "sign", "floor", "round", "ceil"):
        graph = mlp([3, 4, 2], activation)
        found = flat_steps(prepare(graph, torch.float32))
        assert bool(found) == (activation not in ("relu", "tanh")), activation


def test_a_saturated_softmax_hides_nothing() -> None:
    """Probabilities of exactly 0 and 1 have no gradient; the logits before them do."""
    builder = Builder()
    x = builder.input("x", (1, 6))
    hidden = builder.add("relu", dense(builder, x, np.eye(6), np.full(6, 2.0)))
    logits = dense(builder, hidden, [[100.0] * 6, [0.0] * 6], [-100 * 6 * 1.02, 0.0])
    graph = builder.finish(builder.add("softmax", logits, axis=-1), {"dtype": "float32"})
    region = Linf(np.zeros((1, 6)), 1.0)
    found = first_violation(graph, region, Spec.classify(0, 2), settings=AttackSettings(quick=2))
    assert found is not None
    scaled = Spec.unsafe(
        [[Row({0: 1.0}, 0.25)]], 2
    )  # a threshold on a probability is kept as it is
    reached = first_violation(graph, region, scaled)
    assert reached is not None and reached.margin <= 0


def test_equal_seeds_give_equal_candidates_and_others_do_not() -> None:
    graph, region = mlp([5, 30, 30, 3]), Linf(np.zeros(5), 0.5)
    spec = Spec.unsafe([[Row({0: 1.0}, float(run(graph, np.zeros(5))[0]) - 0.05)]], 3)

    def all_points(seed: int) -> list[bytes]:
        settings = AttackSettings(rounds=2)
        return [c.x.tobytes() for c in attack(graph, region, spec, seed=seed, settings=settings)]

    assert all_points(3) == all_points(3)
    assert all_points(3) != all_points(4)


def test_the_deadline_is_kept() -> None:
    graph, spec = mlp([20, 200, 200, 3]), Spec.unsafe([[Row({0: 1.0}, -1e6)]], 3)
    began = time.monotonic()
    settings = AttackSettings(rounds=10**6)
    found = list(
        attack(graph, Linf(np.zeros(20), 1.0), spec, deadline=began + 0.3, settings=settings)
    )
    assert 0.2 < time.monotonic() - began < 1.0
    assert found[-1].margin > 0  # the best point is still reported


def test_a_deadline_in_the_past_costs_one_look() -> None:
    graph, spec = mlp([5, 20, 3]), Spec.unsafe([[Row({0: 1.0}, -1e6)]], 3)
    found = list(attack(graph, Linf(np.zeros(5), 1.0), spec, deadline=time.monotonic() - 1))
    assert len(found) == 1


def test_memory_splits_batches_without_changing_the_result() -> None:
    graph, region = mlp([5, 30, 3]), Linf(np.zeros(5), 0.5)
    spec = Spec.unsafe([[Row({0: 1.0}, -100.0)], [Row({1: 1.0}, -100.0)]], 3)
    margins = [
        list(attack(graph, region, spec, settings=AttackSettings(rounds=2, memory=m)))[-1].margin
        for m in (2**29, 2**12)
    ]
    assert margins[0] == pytest.approx(margins[1], rel=1e-5)


def test_nan_outputs_are_never_promising() -> None:
    builder = Builder()
    x = builder.input("x", (2,))
    root = builder.add("sqrt", x)  # NaN below 0
    graph = builder.finish(dense(builder, root, [[1.0, 1.0]]), {"dtype": "float32"})
    spec = Spec.unsafe([[Row({0: 1.0}, -0.5)]], 1)
    for candidate in attack(graph, Box(np.full(2, -1.0), np.ones(2)), spec):
        assert not math.isnan(candidate.margin)
        assert candidate.margin > 0


def test_double_precision_models_are_attacked_in_double() -> None:
    graph = mlp([3, 8, 2], dtype="float64")
    spec = Spec.unsafe([[Row({0: 1.0}, -100.0)]], 2)
    assert list(attack(graph, Linf(np.zeros(3), 0.1), spec))[-1].x.dtype == np.float64


def test_what_does_not_fit_is_refused() -> None:
    graph, region = mlp([3, 8, 2]), Linf(np.zeros(3), 0.1)
    with pytest.raises(BadInput, match="outputs"):
        attack(graph, region, Spec.classify(0, 5))
    with pytest.raises(BadInput):
        attack(graph, Linf(np.zeros(4), 0.1), Spec.classify(0, 2))
    with pytest.raises(BadInput, match="starting points"):
        list(attack(graph, region, Spec.classify(0, 2), starts=np.zeros((1, 4))))
