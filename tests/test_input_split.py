"""Splitting boxes of inputs: never a wrong proof, never an unconfirmed counterexample, on time."""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from certify.bounds.budget import Limits
from certify.bounds.evaluate import evaluate
from certify.bounds.rounding import Semantics
from certify.core.certificate import Verdict
from certify.core.graph import Graph, Node
from certify.core.region import L2, Box, Linf, Product
from certify.core.spec import Row, Spec
from certify.search.boxes import Boxes, Frame, WorkList
from certify.search.clip import Cuts
from certify.search.input_split import _Search, split_inputs
from certify.search.leaf_bounds import Bounder, Way
from certify.search.problem import Findings, Problem
from certify.search.settle import Judge
from tests.small_nets import chain, ladder_net, run


def _biased(graph: Graph) -> Graph:
    """The same network with a bias of zero where a linear layer has none."""
    nodes, constants = [], dict(graph.constants)
    for node in graph.nodes:
        inputs = node.inputs
        if node.op == "linear" and len(inputs) == 2:
            constants[f"zero {node.name}"] = np.zeros(node.shape[-1], np.float32)
            inputs = (*inputs, f"zero {node.name}")
        nodes.append(replace(node, inputs=inputs))
    return Graph(tuple(nodes), constants, graph.output, graph.source)


def _limits(seconds: float) -> Limits:
    return Limits(deadline=time.monotonic() + seconds)


def _values(graph: Graph, points: np.ndarray) -> np.ndarray:
    inputs, start = [], 0
    for shape in graph.input_shapes:
        size = int(np.prod(shape))
        part = points[:, start : start + size].reshape(-1, *shape)
        inputs.append(torch.from_numpy(part))
        start += size
    with torch.no_grad():
        return evaluate(graph, *inputs).reshape(len(points), -1).numpy()


def _unsafe(spec: Spec, points: np.ndarray, y: np.ndarray, slack: float) -> np.ndarray:
    """Points that are unsafe by more than ``slack`` in every row of a clause."""
    rows = spec.rows()
    g = y @ rows.y[0].T - rows.bound
    if rows.x is not None:
        g = g + points @ rows.x[0].T
    starts = np.searchsorted(rows.group, np.arange(rows.group[-1] + 1))
    return np.maximum.reduceat(g, starts, axis=1).min(axis=1) < -slack


def _random_spec(
    generator: np.random.Generator, points: np.ndarray, y: np.ndarray, share: float
) -> Spec:
    """Clauses of one to three rows, thresholds at a low quantile of sampled values."""
    clauses = []
    for _ in range(int(generator.integers(1, 4))):
        rows = []
        for _ in range(int(generator.integers(1, 4))):
            cy, cx = generator.normal(size=y.shape[1]), generator.normal(size=points.shape[1])
            cx = cx if generator.random() < 0.3 else None
            g = y @ cy + (0 if cx is None else points @ cx)
            low, high = g.min(), g.max()
            bound = low + share * (high - low)
            rows.append(Row(cy, float(bound), cx, strict=bool(generator.random() < 0.5)))
        clauses.append(rows)
    return Spec.unsafe(clauses, y.shape[1], points.shape[1])


def _case(seed: int, share: float) -> tuple[Graph, Box, Spec, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    n = int(generator.integers(1, 4))
    make = chain if seed % 2 else ladder_net
    graph = _biased(make([n, 6, 5, 2], generator))
    lower = generator.normal(size=n)
    upper = lower + generator.exponential(size=n)
    if n > 1 and seed % 3 == 0:
        upper[0] = lower[0]  # a fixed input
    share_of = generator.random((40_000, n))
    share_of[: 2**n] = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    points = lower + share_of * (upper - lower)
    points = np.clip(points, lower, upper)
    y = _values(graph, points)
    spec = _random_spec(generator, points, y, share)
    region = Box(lower.reshape(1, 1, n), upper.reshape(1, 1, n)).batched((1, n))
    return graph, region, spec, points, y


@pytest.mark.parametrize("semantics", [Semantics.REAL, Semantics.FLOAT32])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [-0.05, 0.02, 0.2])
def test_what_holds_has_no_unsafe_sample(seed: int, share: float, semantics: Semantics) -> None:
    graph, region, spec, points, y = _case(seed, share)
    limits = _limits(30.0 if share < 0 else 0.3)
    found = split_inputs(Problem(graph, region, spec.rows(), semantics=semantics, limits=limits))
    bad = _unsafe(spec, points, y, 0.0)
    assert found.verdict in (Verdict.HOLDS, Verdict.TIMEOUT, Verdict.UNKNOWN)
    assert not (found.verdict is Verdict.HOLDS and bad.any())
    if share < 0:
        assert found.verdict is Verdict.HOLDS
        assert found.open_share == 0 and found.margin >= 0 and found.hardest == ""
    elif found.verdict is not Verdict.HOLDS:
        assert found.reason and found.hardest and found.open_share <= 1
        assert found.margin < 1e-3


def _exact_suspect(graph: Graph, region: Box, spec: Spec) -> tuple[list[np.ndarray], object]:
    """A judge in exact rationals, and the points it accepted."""
    accepted: list[np.ndarray] = []
    rows = spec.rows()
    lower, upper = (np.asarray(e).reshape(-1) for e in region.ends())

    def suspect(x: np.ndarray) -> bool:
        assert (x >= lower).all() and (x <= upper).all()
        point = [Fraction(float(v)) for v in x]
        y = run(graph, point)
        held = []
        for r in range(len(rows.bound)):
            g = sum(Fraction(float(c)) * v for c, v in zip(rows.y[0, r], y, strict=True))
            if rows.x is not None:
                g += sum(Fraction(float(c)) * v for c, v in zip(rows.x[0, r], point, strict=True))
            bound = Fraction(float(rows.bound[r]))
            held.append(g < bound if rows.strict[r] else g <= bound)
        unsafe = any(
            all(h for h, k in zip(held, rows.group, strict=True) if k == clause)
            for clause in range(rows.group[-1] + 1)
        )
        if unsafe:
            accepted.append(x)
        return unsafe

    return accepted, suspect


@pytest.mark.parametrize("seed", range(10))
def test_a_reachable_unsafe_set_is_found(seed: int) -> None:
    graph, region, spec, points, y = _case(seed, 0.1)
    bad = _unsafe(spec, points, y, 1e-6)
    accepted, suspect = _exact_suspect(graph, region, spec)
    found = split_inputs(Problem(graph, region, spec.rows(), limits=_limits(10.0), suspect=suspect))
    if bad.any():
        assert found.verdict is Verdict.VIOLATED
    assert (found.verdict is Verdict.VIOLATED) == bool(accepted)


def _line(weight: float, bias: float) -> Graph:
    nodes = (
        Node("x", "input", (), {}, (1,)),
        Node("a", "linear", ("x", "w", "b"), {}, (1,)),
        Node("r", "relu", ("a",), {}, (1,)),
    )
    constants = {"w": np.array([[weight]], np.float32), "b": np.array([bias], np.float32)}
    return Graph(nodes, constants, "r", {"dtype": "float32"})


@pytest.mark.parametrize("strict", [False, True])
def test_a_value_that_is_reached_is_never_proved_away(strict: bool) -> None:
    """relu(x - 0.3) <= 0 is reached all over [0, 0.3]; < 0 nowhere."""
    region = Box(np.zeros((1, 1)), np.ones((1, 1))).batched((1,))
    spec = Spec.unsafe([[Row([1.0], 0.0, strict=strict)]], 1)
    found = split_inputs(Problem(_line(1.0, -0.3), region, spec.rows(), limits=_limits(0.5)))
    assert found.verdict in (
        (Verdict.TIMEOUT, Verdict.UNKNOWN, Verdict.HOLDS)
        if strict
        else (Verdict.TIMEOUT, Verdict.UNKNOWN)
    )


def test_a_single_touching_point_stays_undecided() -> None:
    """x * x >= 0 is reached at 0 alone, which is no end of any box that halving makes."""
    region = Box(np.full((1, 1), -0.7), np.ones((1, 1))).batched((1,))
    nodes = (Node("x", "input", (), {}, (1,)), Node("s", "square", ("x",), {}, (1,)))
    graph = Graph(nodes, {}, "s", {"dtype": "float32"})
    spec = Spec.unsafe([[Row([1.0], 0.0)]], 1)
    found = split_inputs(Problem(graph, region, spec.rows(), limits=_limits(2.0)))
    assert found.verdict in (Verdict.TIMEOUT, Verdict.UNKNOWN)
    assert found.reason


def test_unsafe_needs_every_row_of_a_clause() -> None:
    """y = (x, -x): both above 1/2 never happens, either one does."""
    nodes = (Node("x", "input", (), {}, (1,)), Node("y", "linear", ("x", "w", ""), {}, (2,)))
    graph = Graph(nodes, {"w": np.array([[1.0], [-1.0]], np.float32)}, "y", {"dtype": "float32"})
    region = Box(-np.ones((1, 1)), np.ones((1, 1))).batched((1,))
    rows = [Row([-1.0, 0.0], -0.5), Row([0.0, -1.0], -0.5)]
    both = Spec.unsafe([rows], 2).rows()
    either = Spec.unsafe([rows[:1], rows[1:]], 2).rows()
    assert split_inputs(Problem(graph, region, both, limits=_limits(5))).verdict is Verdict.HOLDS
    found = split_inputs(Problem(graph, region, either, limits=_limits(1)))
    assert found.verdict in (Verdict.TIMEOUT, Verdict.UNKNOWN)


@pytest.mark.parametrize("op", ["reciprocal", "log"])
def test_bounds_that_are_infinite_prove_nothing(op: str) -> None:
    nodes = (Node("x", "input", (), {}, (2,)), Node("y", op, ("x",), {}, (2,)))
    graph = Graph(nodes, {}, "y", {"dtype": "float32"})
    region = Box(-np.ones((1, 2)), np.ones((1, 2))).batched((2,))
    spec = Spec.unsafe([[Row([1.0, 1.0], -50.0)]], 2)
    found = split_inputs(Problem(graph, region, spec.rows(), limits=_limits(0.7)))
    assert found.verdict in (Verdict.TIMEOUT, Verdict.UNKNOWN)
    assert not found.margin > 0


def _two_inputs() -> Graph:
    nodes = (
        Node("a", "input", (), {}, (2,)),
        Node("b", "input", (), {}, (1, 1)),
        Node("c", "reshape", ("b",), {}, (1,)),
        Node("p", "linear", ("a", "w", ""), {}, (1,)),
        Node("s", "sub", ("p", "c"), {}, (1,)),
        Node("y", "abs", ("s",), {}, (1,)),
    )
    constants = {"w": np.array([[1.0, -2.0]], np.float32)}
    return Graph(nodes, constants, "y", {"dtype": "float32"})


@pytest.mark.parametrize(("bound", "holds"), [(4.5, True), (3.5, False)])
def test_several_inputs_are_split_together(bound: float, holds: bool) -> None:
    """|a0 - 2 a1 - b| is at most 4 on [-1, 1]^2 x [-1, 1] and reaches it."""
    graph = _two_inputs()
    region = Product(
        [Box(-np.ones((1, 2)), np.ones((1, 2))), Linf(np.zeros((1, 1, 1)), 1.0)]
    ).batched([(2,), (1, 1)])
    spec = Spec.unsafe([[Row([-1.0], -bound)]], 1)

    def suspect(x: np.ndarray) -> bool:
        return bool(abs(x[0] - 2 * x[1] - x[2]) >= bound)

    found = split_inputs(Problem(graph, region, spec.rows(), limits=_limits(5), suspect=suspect))
    assert found.verdict is (Verdict.HOLDS if holds else Verdict.VIOLATED)


def test_fixed_inputs_only_leave_one_box() -> None:
    region = Box(np.full((1, 1), 0.5), np.full((1, 1), 0.5)).batched((1,))
    below = Spec.unsafe([[Row([1.0], 0.1)]], 1).rows()
    above = Spec.unsafe([[Row([1.0], 0.3)]], 1).rows()
    graph = _line(1.0, -0.3)
    assert split_inputs(Problem(graph, region, below)).verdict is Verdict.HOLDS
    found = split_inputs(Problem(graph, region, above))
    assert found.verdict is Verdict.UNKNOWN
    assert "too small to split" in found.reason


def test_no_box_no_answer() -> None:
    region = L2(np.zeros((1, 1)), 1.0).batched((1,))
    spec = Spec.unsafe([[Row([1.0], -1.0)]], 1)
    found = split_inputs(Problem(_line(1.0, 0.0), region, spec.rows()))
    assert found.verdict is Verdict.UNKNOWN
    assert "box" in found.reason and found.leaves == 0


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.4])
def test_the_time_limit_is_kept_and_said(seconds: float) -> None:
    generator = np.random.default_rng(1)
    graph = chain([8, 60, 60, 60, 2], generator)
    region = Box(-3 * np.ones((1, 1, 8)), 3 * np.ones((1, 1, 8))).batched((1, 8))
    y = _values(graph, generator.uniform(-3, 3, (20_000, 8)))
    spec = Spec.unsafe([[Row([1.0, 0.0], float(y[:, 0].min() - 0.3 * np.ptp(y[:, 0])))]], 2)
    lines: list[str] = []
    start = time.monotonic()
    limits = Limits(deadline=start + seconds)
    found = split_inputs(Problem(graph, region, spec.rows(), limits=limits, say=lines.append))
    assert found.verdict is Verdict.TIMEOUT
    assert time.monotonic() - start < max(seconds, 0) + 0.5
    assert 0 < found.open_share <= 1
    assert found.hardest.startswith("the box X_0")


@pytest.mark.parametrize(
    "way", [Way(r, k, d) for r, k in ((False, 0), (True, 0), (True, 4)) for d in (False, True)]
)
def test_planes_lie_below_the_network_exactly(way: Way) -> None:
    """Also where some inputs are fixed, or one unit in the last place wide."""
    generator = np.random.default_rng(5)
    graph = _biased(ladder_net([6, 7, 5, 3], generator))
    lower = generator.normal(size=6)
    upper = lower + np.where(np.arange(6) < 3, 0.7, 0.0)
    upper[4:] = np.nextafter(lower[4:], np.inf)  # as decimals that are no floats come in
    region = Box(lower.reshape(1, 1, 6), upper.reshape(1, 1, 6)).batched((1, 6))
    spec = Spec.unsafe(
        [
            [Row(generator.integers(-3, 4, 3) + 0.5, 0.25, generator.integers(-2, 3, 6) / 4)],
            [Row([1.0, 0.0, -1.0], -0.125)],
        ],
        3,
        6,
    )
    rows = spec.rows()
    frame = Frame.of(region)
    assert frame is not None
    bounder = Bounder(Problem(graph, region, rows), frame, Limits())
    assert bounder.exact32 and frame.free.tolist() == [0, 1, 2]
    low = np.repeat(frame.lower[None, frame.free], 4, axis=0)
    high = low + frame.width * generator.random((4, 3))
    found = bounder.bound(low, high, np.array([True, True]), way)
    for b in range(4):
        for _ in range(6):
            x = np.where(generator.random(6) < 0.5, frame.lower, frame.upper)
            x[frame.free] = np.clip(
                low[b] + generator.random(3) * (high[b] - low[b]), low[b], high[b]
            )
            point = [Fraction(float(v)) for v in x]
            y = run(graph, point)
            for r in range(2):
                g = sum(Fraction(float(c)) * v for c, v in zip(rows.y[0, r], y, strict=True))
                assert rows.x is not None
                g += sum(Fraction(float(c)) * v for c, v in zip(rows.x[0, r], point, strict=True))
                g -= Fraction(float(rows.bound[r]))
                A = found.cuts.A[b, r]
                plane = Fraction(float(found.cuts.c[b, r])) + sum(
                    Fraction(float(a)) * point[i] for a, i in zip(A, frame.free, strict=True)
                )
                assert plane <= g
                assert Fraction(float(found.margins[b, r])) <= g


def test_refuted_clauses_stay_closed_and_margins_grow() -> None:
    spec = Spec.unsafe([[Row([1.0], 0.0), Row([-1.0], 0.0, strict=True)], [Row([1.0], 1.0)]], 1)
    judge = Judge(spec.rows())
    margins = np.array([[-1.0, 0.0, -2.0], [0.0, -1.0, 1.0], [np.nan, -1.0, np.nan]])
    assert judge.refuted(margins).tolist() == [[True, False], [False, True], [False, False]]
    assert (judge.refuted(margins).all(axis=1) == spec.rows().refuted(margins)).all()


def test_the_work_list_gives_back_what_it_was_given() -> None:
    generator = np.random.default_rng(0)
    work = WorkList(limit=150, block=16)
    given = generator.random((300, 2))
    for part in np.split(given, 10):
        numbers = np.zeros((2, 30), np.int64)
        work.push(Boxes(part, part + 1, np.ones((30, 1), bool), part[:, 0], *numbers))
    worst = work.worst()
    assert worst is not None and worst.margin[0] == given[:, 0].min()
    found = []
    while work.count:
        found.append(work.pop(7).lower)
    assert sorted(np.concatenate(found)[:, 0]) == sorted(given[:, 0])
    assert work.worst() is None


def test_the_same_seed_gives_the_same_search() -> None:
    def once() -> Findings:
        graph, region, spec, _, _ = _case(4, -0.05)
        return split_inputs(Problem(graph, region, spec.rows(), limits=_limits(20)))

    assert once().verdict is once().verdict is Verdict.HOLDS


def test_a_box_keeps_what_any_open_clause_leaves() -> None:
    """Clause 0 leaves x <= 1/4, clause 1 x >= 3/4: the box must keep both ends."""
    spec = Spec.unsafe([[Row([1.0])], [Row([-1.0])]], 1)
    boxes = Boxes(
        np.zeros((1, 1)),
        np.ones((1, 1)),
        np.ones((1, 2), bool),
        np.array([-np.inf]),
        *np.zeros((2, 1), np.int64),
    )
    cuts = Cuts(np.array([[[1.0], [-1.0]]]), np.array([[-0.25, 0.75]]))
    found = Judge(spec.rows()).settle(boxes, np.full((1, 2), -np.inf), cuts)
    assert found.boxes.open.all()
    assert found.boxes.lower[0, 0] == 0.0 and found.boxes.upper[0, 0] == 1.0
    closed = replace(boxes, open=np.array([[True, False]]))
    found = Judge(spec.rows()).settle(closed, np.full((1, 2), -np.inf), cuts)
    assert found.boxes.open.tolist() == [[True, False]]
    assert 0.25 <= found.boxes.upper[0, 0] < 0.26


def test_halves_cover_their_box() -> None:
    generator = np.random.default_rng(2)
    lower = generator.normal(size=(50, 3))
    upper = lower + generator.exponential(size=lower.shape)
    region = Box(lower.min(axis=0)[None], upper.max(axis=0)[None]).batched((3,))
    nodes = (Node("x", "input", (), {}, (3,)), Node("y", "neg", ("x",), {}, (3,)))
    problem = Problem(
        Graph(nodes, {}, "y", {"dtype": "float32"}),
        region,
        Spec.unsafe([[Row([1.0, 0.0, 0.0])]], 3).rows(),
    )
    frame = Frame.of(region)
    assert frame is not None
    nothing = Cuts(generator.normal(size=(50, 1, 3)), np.full((50, 1), -np.inf))
    boxes = Boxes(
        lower, upper, np.ones((50, 1), bool), np.full(50, -1.0), *np.zeros((2, 50), np.int64)
    )
    halves = _Search(problem, frame)._split(boxes, nothing, np.ones((50, 1), bool))
    assert halves is not None and len(halves) == 100
    for i in range(50):
        one, two = halves.take(slice(i, i + 1)), halves.take(slice(50 + i, 51 + i))
        split = int(np.argmax(one.upper[0] < upper[i]))
        rest = np.arange(3) != split
        assert one.upper[0, split] == two.lower[0, split]
        assert (one.lower[0] == lower[i]).all() and (two.upper[0] == upper[i]).all()
        assert (one.upper[0, rest] == upper[i, rest]).all()
        assert (two.lower[0, rest] == lower[i, rest]).all()


def test_rows_that_float32_would_round_are_bounded_in_float64() -> None:
    region = Box(np.zeros((1, 1)), np.ones((1, 1))).batched((1,))
    frame = Frame.of(region)
    assert frame is not None
    for coefficient, exact in ((0.5, True), (0.1, False)):
        spec = Spec.unsafe([[Row([coefficient], -1.0)]], 1)
        problem = Problem(_line(1.0, 0.0), region, spec.rows())
        assert Bounder(problem, frame, Limits()).exact32 is exact
        assert _Search(problem, frame).trials.exact32 is exact
