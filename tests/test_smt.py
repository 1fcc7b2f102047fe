"""z3 as an oracle: exact answers against the search, the grid and the exact values."""

from __future__ import annotations

import builtins
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import certify
from certify.core.certificate import Verdict
from certify.core.errors import BadInput, LimitExceeded, Unsupported
from certify.core.graph import Graph
from certify.core.region import L2, Box
from certify.core.spec import Row, Spec
from certify.ops.builder import Builder, Value
from certify.search.smt import ask
from tests import small_nets
from tests.exact_nets import Exact, rational, values
from tests.nets import convolutional, grow, layer, mlp
from tests.test_grid_search import POSITIVE, spike


def test_without_z3_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refusing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "z3":
            raise ImportError("no z3")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(Unsupported, match=r"pip install 'certify\[z3\]'"):
        ask(spike(0.5, 0.1), Box(np.zeros(1), np.ones(1)), POSITIVE)


@pytest.fixture(scope="module")
def _z3() -> Any:
    return pytest.importorskip("z3", reason="z3 is not installed: pip install z3-solver")


def _unsafe(graph: Graph, spec: Spec, point: tuple[Fraction, ...]) -> bool:
    """Whether an exact point is unsafe, in exact arithmetic."""
    shaped = np.array(point, dtype=object).reshape(1, *graph.input_shapes[0])
    y = _values(graph, shaped).reshape(-1)
    for clause in spec.clauses:
        values = rational(clause.y[0]) @ y
        if clause.x is not None:
            values = values + rational(clause.x[0]) @ np.array(point, dtype=object)
        bound = rational(clause.bound)
        if all(v < b if s else v <= b for v, b, s in zip(values, bound, clause.strict,
                                                         strict=True)):
            return True
    return False


def _values(graph: Graph, point: np.ndarray) -> np.ndarray:
    class Kept(Exact):
        def lift(self, array: Any) -> np.ndarray:
            kept = np.asarray(array)
            return kept if kept.dtype == object else rational(array)

    return values(graph, Kept(), point)[graph.output]


def _question(seed: int) -> tuple[Graph, Box, np.ndarray]:
    graph = grow(mlp((6, 5, 2)), (3,), seed)
    centre = np.random.default_rng(seed).uniform(-0.5, 0.5, size=3).astype(np.float32)
    return graph, Box(centre - np.float32(0.25), centre + np.float32(0.25)), centre


@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(6))
def test_the_solver_and_the_searches_agree(_z3: Any, seed: int) -> None:
    graph, region, _ = _question(seed)
    row = np.random.default_rng(seed).normal(size=(1, 2)).astype(np.float32)
    low = certify.bound(graph, region, "alpha", row.astype(np.float64)).lower.item()
    answers = set()
    for bound in (low - 0.02, low + 0.1, low + 0.5):
        spec = Spec.linear(row, bound)
        said = ask(graph, region, spec)
        assert said.answer in ("sat", "unsat")
        answers.add(said.answer)
        grid = certify.grid_search(graph, region, spec, [0, 1, 2], 0.125, depth=12)
        proved = certify.verify(graph, region, spec, timeout=20)
        for found in (grid, proved):
            if found.verdict is Verdict.HOLDS:
                assert said.answer == "unsat"
            if found.counterexample is not None and found.counterexample.proved:
                assert said.answer == "sat"
        if said.answer == "sat":
            assert _unsafe(graph, spec, said.point)
            assert said.counterexample is None or said.verdict is Verdict.VIOLATED
            assert proved.verdict is not Verdict.HOLDS
        else:
            assert said.verdict is Verdict.UNKNOWN and said.point is None  # its word is no proof
            assert proved.verdict is not Verdict.VIOLATED or not proved.counterexample.proved
    assert "unsat" in answers


@pytest.mark.oracle
def test_a_needle_between_grid_points_is_known_to_the_solver(_z3: Any) -> None:
    graph, region = spike(0.34375 + 2.0**-9, 2.0**-12), Box(np.zeros(1), np.ones(1))
    said = ask(graph, region, POSITIVE)
    assert said.answer == "sat" and said.verdict is Verdict.VIOLATED
    assert _unsafe(graph, POSITIVE, said.point)
    certificate = certify.grid_search(graph, region, POSITIVE, [0], 0.25, depth=0)
    assert certificate.verdict is Verdict.UNKNOWN


def _skipping(b: Builder, x: Value, rng: np.random.Generator) -> Value:
    first = b.add("relu", layer(b, x, 4, rng))
    return layer(b, b.add("relu", b.add("sub", layer(b, first, 4, rng), first)), 2, rng)


@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(4))
def test_leaky_layers_products_and_sums_are_encoded_exactly(_z3: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    point = rng.uniform(-0.5, 0.5, size=2).astype(np.float32).astype(np.float64)
    fractions = [Fraction(float(v)) for v in point]
    leaky, skips = small_nets.chain([2, 4, 3, 2], rng), grow(_skipping, (2,), seed)
    exact = [small_nets.run(leaky, fractions)[0],
             values(skips, Exact(), point[None])[skips.output].reshape(-1)[0]]
    for graph, y in zip((leaky, skips), exact, strict=True):
        region = Box(*(point.reshape(graph.input_shapes[0]),) * 2)  # one point: its value is known
        for bound, answer in ((float(y) + 1e-6, "sat"), (float(y) - 1e-6, "unsat")):
            spec = Spec.unsafe([[Row({0: 1.0}, bound)]], 2)
            assert ask(graph, region, spec).answer == answer


@pytest.mark.oracle
def test_ties_strictness_and_rows_over_inputs(_z3: Any) -> None:
    graph, region = spike(0.5, 0.25), Box(np.zeros(1), np.ones(1))  # -1 at 0.5 exactly
    for bound, strict, answer in ((-1.0, False, "sat"), (-1.0, True, "unsat")):
        spec = Spec.unsafe([[Row({0: 1.0}, bound, strict=strict)]], 1)
        assert ask(graph, region, spec).answer == answer
    right = Row(None, -0.75, x={0: -1.0})  # x >= 3/4: there the value is 1
    for bound, answer in ((1.0, "sat"), (0.999, "unsat")):
        spec = Spec.unsafe([[Row({0: 1.0}, bound), right]], 1, 1)
        assert ask(graph, region, spec).answer == answer


def test_a_time_limit_is_an_unknown(_z3: Any) -> None:
    graph = grow(mlp((50, 50, 40, 2)), (8,), 0)
    box = Box(-np.ones(8), np.ones(8))
    low = certify.bound(graph, box, "ibp").lower.numpy().reshape(-1)
    said = ask(graph, box, Spec.linear(np.eye(2), 0.5 * low), timeout=0.2)
    assert said.answer == "unknown" and said.reason and said.verdict is Verdict.UNKNOWN


def test_what_has_no_encoding_is_refused(_z3: Any) -> None:
    graph, region, _ = _question(0)
    with pytest.raises(Unsupported, match="conv"):
        ask(grow(convolutional, (3,)), region, Spec.classify(0, 3))
    with pytest.raises(LimitExceeded, match="ReLUs"):
        ask(grow(mlp((201, 2)), (3,)), region, Spec.classify(0, 2))
    with pytest.raises(BadInput, match="Box or Linf"):
        ask(graph, L2(np.zeros(3), 0.1), Spec.classify(0, 2))
