"""Answers of the small search: against exact answers by enumeration, and on awkward questions."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from certify.bounds.budget import Limits
from certify.core.certificate import Verdict
from certify.core.region import L2, Box, Linf, Product
from certify.core.semantics import Semantics
from certify.core.spec import Row, Spec
from certify.search.problem import Problem
from certify.search.small.search import qualifies, split_small
from tests.small_nets import chain, ladder_net, run

pytest.importorskip("numba")


def _problem(graph, region, spec, **options):
    limits = Limits(deadline=time.monotonic() + 20)
    return Problem(graph, region, spec.rows(), limits=limits, **options)


def _box(low, high):
    return Box(low[None], high[None]).batched((1, len(low)))


def _truly_unsafe(graph, spec, x):
    exact = [Fraction(float(v)) for v in x]
    y = run(graph, exact)
    rows, clauses = spec.rows(), {}
    for r, group in enumerate(rows.group):
        value = sum(Fraction(float(c)) * v for c, v in zip(rows.y[0, r], y, strict=True))
        if rows.x is not None:
            value += sum(Fraction(float(c)) * v for c, v in zip(rows.x[0, r], exact, strict=True))
        value -= Fraction(float(rows.bound[r]))
        met = value < 0 if rows.strict[r] else value <= 0
        clauses[group] = clauses.get(group, True) and met
    return any(clauses.values())


def _asked(graph, spec):
    return lambda x: _truly_unsafe(graph, spec, x)


def _least(graph, row, low, high):
    """The exact minimum of ``row . y`` over a box, by one linear program per pattern of ReLUs."""
    from scipy.optimize import linprog

    W, b, V, c = graph
    best, m = np.inf, len(b)
    for pattern in itertools.product((0, 1), repeat=m):
        on = np.array(pattern, dtype=float)
        objective = (row @ V) * on @ W
        sign = np.where(on > 0, -1.0, 1.0)
        found = linprog(
            objective,
            A_ub=sign[:, None] * W,
            b_ub=-sign * b,
            bounds=list(zip(low, high, strict=True)),
            method="highs",
        )
        if found.status == 0:
            best = min(best, found.fun + (row @ V) * on @ b + row @ c)
    return best


@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(8))
def test_the_threshold_of_a_minimum_is_found_from_both_sides(seed):
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 4)), int(rng.integers(2, 6))
    graph = chain([n, m, 2], rng)
    w = [np.asarray(v, dtype=float) for v in graph.constants.values()]
    W, b, V, c = w[1], w[2] - w[1] @ w[0][0], w[3].T, w[4][0]
    low, high = -rng.random(n), rng.random(n)
    row = rng.normal(size=2)
    least = _least((W, b, V, c), row, low, high)
    for bound, verdict in ((least - 1e-4, Verdict.HOLDS), (least + 1e-4, Verdict.VIOLATED)):
        spec = Spec.unsafe([[Row(row, bound)]], 2)
        found = split_small(_problem(graph, _box(low, high), spec, suspect=_asked(graph, spec)))
        assert found.verdict is verdict
        proof = split_small(
            replace(
                _problem(graph, _box(low, high), spec),
                limits=Limits(deadline=time.monotonic() + 0.2),
            )
        )
        assert (proof.verdict is Verdict.HOLDS) == (verdict is Verdict.HOLDS)


@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(12))
def test_no_proof_where_a_sample_is_unsafe(seed):
    """Clauses of several rows, strict and not, over outputs and inputs; attack off."""
    rng = np.random.default_rng(seed)
    n, out = int(rng.integers(1, 4)), 3
    graph = (chain, ladder_net)[seed % 2]([n, 6, 5, out], rng)
    low, high = -rng.random(n), rng.random(n)
    points = low + (high - low) * rng.random((300, n))
    values = np.array(
        [[float(v) for v in run(graph, [Fraction(float(a)) for a in x])] for x in points[:60]]
    )
    clauses = []
    for _ in range(int(rng.integers(1, 4))):
        rows = []
        for _ in range(int(rng.integers(1, 4))):
            y = rng.normal(size=out)
            x = rng.normal(size=n) if rng.random() < 0.5 else None
            level = np.quantile(values @ y, rng.random() * 0.3)
            rows.append(Row(y, float(level), x=x, strict=bool(rng.random() < 0.5)))
        clauses.append(rows)
    spec = Spec.unsafe(clauses, out, n)
    sampled = any(_truly_unsafe(graph, spec, x) for x in points[:60])
    problem = _problem(graph, _box(low, high), spec, seed=seed)
    found = split_small(replace(problem, limits=Limits(deadline=time.monotonic() + 0.2)))
    if sampled:
        assert found.verdict is not Verdict.HOLDS
    asked = split_small(replace(problem, suspect=_asked(graph, spec)))
    assert asked.verdict in (Verdict.HOLDS, Verdict.VIOLATED)
    assert (asked.verdict is Verdict.VIOLATED) or not sampled
    assert found.verdict is not Verdict.HOLDS or asked.verdict is Verdict.HOLDS


def _identity():
    rng = np.random.default_rng(0)
    graph = chain([1, 1, 1], rng)
    names = list(graph.constants)
    values = ([[0.0]], [[1.0]], [0.0], [[1.0]], [[0.0]])
    for name, value in zip(names, values, strict=True):
        graph.constants[name] = np.array(value, dtype=np.float32)
    return graph  # max(x, 0)


@pytest.mark.parametrize(
    ("bound", "strict", "verdict"),
    [
        (1.0, True, Verdict.HOLDS),
        (1.0, False, Verdict.VIOLATED),
        (0.999, False, Verdict.HOLDS),
    ],
)
def test_strictness_decides_a_touching_threshold(bound, strict, verdict):
    spec = Spec.unsafe([[Row([1.0], bound, strict=strict)]], 1)
    graph = _identity()
    problem = _problem(
        graph, _box(np.array([1.0]), np.array([2.0])), spec, suspect=_asked(graph, spec)
    )
    found = split_small(replace(problem, limits=Limits(deadline=time.monotonic() + 2)))
    # A proof may fail by one rounding where the exact bound touches; a wrong answer may not come.
    assert found.verdict is verdict or (strict and found.verdict is not Verdict.VIOLATED)


@pytest.mark.parametrize("bound", [0.25, 0.75])
def test_a_region_of_one_point(bound):
    graph, x = _identity(), np.array([0.5])
    spec = Spec.unsafe([[Row([1.0], bound)]], 1)
    found = split_small(_problem(graph, _box(x, x), spec, suspect=_asked(graph, spec)))
    assert found.verdict is (Verdict.HOLDS if bound < 0.5 else Verdict.VIOLATED)


def test_two_threads_find_the_same_answer():
    rng = np.random.default_rng(5)
    graph = chain([4, 20, 20, 2], rng)
    low, high = -2 * np.ones(4), 2 * np.ones(4)
    spec = Spec.unsafe([[Row([1.0, -1.0], -60.0)]], 2)
    one, two = (split_small(_problem(graph, _box(low, high), spec, workers=k)) for k in (1, 2))
    assert one.verdict is two.verdict
    if one.verdict is Verdict.HOLDS:
        assert one.leaves > 100


def test_a_passed_deadline_ends_the_search():
    rng = np.random.default_rng(6)
    graph = chain([12, 40, 40, 2], rng)
    spec = Spec.unsafe([[Row([1.0, -1.0], -150.0)]], 2)
    problem = _problem(graph, _box(-2 * np.ones(12), 2 * np.ones(12)), spec)
    split_small(replace(problem, limits=Limits(deadline=time.monotonic())))  # loads the kernels
    before = time.monotonic()
    found = split_small(replace(problem, limits=Limits(deadline=before + 0.3)))
    assert found.verdict is Verdict.TIMEOUT and time.monotonic() - before < 2.0
    assert 0 < found.open_share <= 1 and found.hardest


def test_the_names_of_what_a_slice_came_to_agree():
    from certify.kernels import box_search

    from certify.search.small import compiled

    names = ("SPENT", "EMPTY", "POINT", "FULL", "SOLID")
    assert all(getattr(box_search, n) == getattr(compiled, n) for n in names)


def test_what_qualifies(monkeypatch):
    graph, spec = _identity(), Spec.unsafe([[Row([1.0], 1.0)]], 1)
    box = _box(np.array([0.0]), np.array([1.0]))
    good = _problem(graph, box, spec)
    assert qualifies(good)
    assert qualifies(replace(good, region=Product((box,))))
    assert qualifies(replace(good, region=Linf(np.zeros((1, 1, 1)), 0.1).batched((1, 1))))
    assert not qualifies(replace(good, semantics=Semantics.FLOAT32))
    assert not qualifies(replace(good, device="cuda"))
    assert not qualifies(replace(good, region=L2(np.zeros((1, 1, 1)), 0.1).batched((1, 1))))
    wide = chain([40, 4, 1], np.random.default_rng(0))
    assert not qualifies(replace(good, graph=wide, region=_box(np.zeros(40), np.ones(40))))
    huge = _box(np.array([0.0]), np.array([1e36]))
    assert not qualifies(replace(good, region=huge))
    monkeypatch.setenv("CERTIFY_KERNELS", "off")
    assert not qualifies(good)
    with pytest.raises(TypeError, match="does not suit"):
        split_small(good)


def test_other_operators_do_not_qualify():
    graph = _identity()
    nodes = tuple(replace(n, op="sigmoid") if n.op == "relu" else n for n in graph.nodes)
    spec = Spec.unsafe([[Row([1.0], 1.0)]], 1)
    box = _box(np.array([0.0]), np.array([1.0]))
    assert not qualifies(_problem(replace(graph, nodes=nodes), box, spec))


def test_a_matrix_in_front_of_a_vector_is_not_mistaken():
    """``W @ x`` with a vector x of as many elements as W has rows must not be transposed."""
    from certify.core.graph import Graph, Node
    from certify.search.small.network import lower

    weight = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
    for shape in ((2,), (2, 1)):
        nodes = (
            Node("x", "input", (), {}, shape),
            Node("y", "matmul", ("W", "x"), {}, shape),
            Node("z", "relu", ("y",), {}, shape),
        )
        graph = Graph(nodes, {"W": weight}, "z", {"dtype": "float32"})
        layers = lower(graph, Spec.unsafe([[Row([1.0, 0.0], 0.0)]], 2).rows())
        if layers is not None:
            assert layers.inward[:8].reshape(2, 4)[:, :2].tolist() == weight.T.tolist()


_ROUTE = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from certify.core.region import as_inputs
from certify.importers.model_file import load
from certify.importers.vnnlib import read_vnnlib
from certify.small_route import small_route
from certify.settings import Options

query, graph = read_vnnlib(sys.argv[2]), load(sys.argv[1])
targets = [
    SimpleNamespace(case=i, example=0, key=(i, 0), place=case, spec=case.spec,
                    region=as_inputs(case.box, list(graph.input_shapes))[0])
    for i, case in enumerate(query.cases)
]
found = small_route(graph, targets, Options(timeout=30), time.monotonic() + 30)
assert "torch" not in sys.modules
print(found.verdict.word, found.counterexample is not None)
"""


@pytest.mark.parametrize(("bound", "word"), [(2.6, "unsat False"), (0.5, "sat True")])
def test_the_whole_route_takes_no_torch(tmp_path, bound, word):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = {"W": np.array([[1.0, -1.0], [1.0, 1.0]]), "b": np.array([0.5, -0.5])}
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["q"]),
        helper.make_node("Relu", ["q"], ["y"]),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
            [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / "net.onnx")
    text = "\n".join(f"(declare-const {v}_{i} Real)" for v in "XY" for i in (0, 1))
    text += "".join(f"\n(assert (<= X_{i} 1.0))\n(assert (>= X_{i} 0.1))" for i in (0, 1))
    (tmp_path / "spec.vnnlib").write_text(f"{text}\n(assert (>= Y_0 {bound}))\n")
    found = subprocess.run(
        [sys.executable, "-c", _ROUTE, str(tmp_path / "net.onnx"), str(tmp_path / "spec.vnnlib")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert found.stdout.strip() == word, found.stderr
