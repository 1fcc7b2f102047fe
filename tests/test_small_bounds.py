"""Kernels of small networks: equal to the reference, and sound at every neuron, to the last bit."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from certify.core.spec import Row, Spec
from certify.search.small.affine_form import Form, Part, added, mapped, stacked
from certify.search.small.network import lower

pytest.importorskip("numba")

from certify.kernels import box_search, boxes

from certify.search.small import reference
from certify.search.small.memory import Memory, Question
from tests.small_nets import chain, ladder_net, run

SEEDS = range(6)


def _question(graph, spec, low, high):
    layers = lower(graph, spec.rows())
    assert layers is not None
    return Question.of(layers, spec.rows(), low, high)


def _spec(outputs, inputs, rng):
    rows = [Row(rng.normal(size=outputs), float(rng.normal()), x=rng.normal(size=inputs))]
    rows += [Row(rng.normal(size=outputs), float(rng.normal()), strict=True)]
    return Spec.unsafe([rows, [Row(rng.normal(size=outputs), 0.25)]], outputs, inputs)


def _nets(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 6))
    widths = [n, *rng.integers(2, 9, size=int(rng.integers(1, 4))), int(rng.integers(1, 4))]
    scale = 10.0 ** rng.uniform(-3, 3)
    graph = (chain, ladder_net)[seed % 2](widths, rng, scale)
    low = rng.normal(size=n) * scale
    high = low + rng.uniform(0, 2, size=n) * (rng.random(n) < 0.8) * scale
    return rng, graph, _spec(widths[-1], n, rng), low, high


def _bound(question):
    memory = Memory(question)
    memory.frame[0][0], memory.frame[0][1] = question.lower, question.upper
    boxes.halve_sides(memory.frame[0])
    net, free = question.net, question.free
    rows = boxes.forward(net, free, memory.frame[0], memory.state, memory.inputs, memory.work)
    boxes.row_planes(
        net,
        free,
        memory.frame[0],
        memory.state,
        memory.work,
        rows,
        memory.frame[4],
        memory.frame[2],
        memory.frame[3],
    )
    return memory


@pytest.mark.parametrize("seed", SEEDS)
def test_kernels_equal_the_reference(seed):
    _, graph, spec, low, high = _nets(seed)
    question = _question(graph, spec, low, high)
    memory = _bound(question)
    want = reference.bound_box(question.net, question.free, low, high)
    R = len(question.strict)
    size = 1e-12 * (1 + abs(want.high) + abs(want.low))
    assert (abs(memory.state[0] - want.low) <= size).all()
    assert (abs(memory.state[1] - want.high) <= size).all()
    scale = 1e-11 * (1 + abs(want.planes).sum(axis=1))
    assert (abs(memory.frame[3][:R] - want.margins) <= scale).all()
    assert (abs(memory.frame[2][:R] - want.planes) <= scale[:, None]).all()


def _exact_layers(net, x):
    """Every neuron at a rational point, exactly, from the lowered weights."""
    widths, inward, _, _, biases, _, leak, _ = net
    at, to, values, found = 0, 0, x, []
    for k in range(1, len(widths)):
        n, m = int(widths[k - 1]), int(widths[k])
        W = inward[at : at + n * m].reshape(n, m)
        z = [
            sum((Fraction(float(W[i, j])) * values[i] for i in range(n) if W[i, j]), Fraction(0))
            + Fraction(float(biases[to + j]))
            for j in range(m)
        ]
        found += z
        values = [v if v > 0 else v * Fraction(float(leak[to + j])) for j, v in enumerate(z)]
        at, to = at + n * m, to + m
    return found


def _points(rng, low, high, count):
    for k in range(count):
        share = rng.integers(0, 2, size=len(low)) if k % 2 else rng.random(len(low))
        yield np.clip(low + share * (high - low), low, high)


@pytest.mark.oracle
@pytest.mark.parametrize("seed", SEEDS)
def test_every_neuron_and_plane_is_sound_in_exact_arithmetic(seed):
    rng, graph, spec, low, high = _nets(seed)
    question = _question(graph, spec, low, high)
    memory = _bound(question)
    sides, planes, margins = memory.frame[0], memory.frame[2], memory.frame[3]
    R = len(question.strict)
    start = memory.state.shape[1] - int(question.net[0][-1])
    for x in _points(rng, low, high, 30):
        exact = [Fraction(float(v)) for v in x]
        z = _exact_layers(question.net, exact)
        assert all(Fraction(float(a)) <= v for a, v in zip(memory.state[0], z, strict=True))
        assert all(v <= Fraction(float(b)) for b, v in zip(memory.state[1], z, strict=True))
        for r in range(R):
            value = Fraction(float(planes[r, 0]))
            for f, i in enumerate(question.free):
                share = (exact[i] - Fraction(float(sides[2, i]))) / Fraction(float(sides[3, i]))
                value += Fraction(float(planes[r, 1 + f])) * share
            assert value <= z[start + r]
            assert Fraction(float(margins[r])) <= z[start + r]


@pytest.mark.oracle
@pytest.mark.parametrize("seed", SEEDS)
def test_lowered_weights_enclose_the_network(seed):
    """Exact evaluation of the graph lies within what the layers admit, at every point."""
    rng, graph, spec, low, high = _nets(seed)
    question = _question(graph, spec, low, high)
    for x in _points(rng, low, high, 6):
        memory = _bound(
            Question(question.net, x, x, np.zeros(0, np.int64), question.starts, question.strict)
        )
        exact = [Fraction(float(v)) for v in x]
        y = run(graph, exact)
        rows = spec.rows()
        start = memory.state.shape[1] - int(question.net[0][-1])
        for r in range(len(rows.bound)):
            value = sum(Fraction(float(c)) * v for c, v in zip(rows.y[0, r], y, strict=True))
            value += sum(Fraction(float(c)) * v for c, v in zip(rows.x[0, r], exact, strict=True))
            value -= Fraction(float(rows.bound[r]))
            assert Fraction(float(memory.state[0, start + r])) <= value
            assert value <= Fraction(float(memory.state[1, start + r]))


def test_affine_forms_bound_their_rounding():
    rng = np.random.default_rng(3)
    a = Form((3,), {"x": Part(rng.normal(size=(3, 4)))}, rng.normal(size=3), np.zeros(3))
    b = Form((3,), {"x": Part(rng.normal(size=(3, 4)) * 1e9)}, rng.normal(size=3), np.zeros(3))
    T = rng.normal(size=(2, 3)) * 1e5
    found = mapped(T, added(a, b), (2,))
    part = found.parts["x"]
    exact = np.vectorize(Fraction, otypes=[object])
    want = exact(T) @ (exact(a.parts["x"].value) + exact(b.parts["x"].value))
    assert (abs(want - exact(part.value)) <= exact(part.error)).all()
    constant = exact(T) @ (exact(a.constant) + exact(b.constant))
    assert (abs(constant - exact(found.constant)) <= exact(found.error)).all()
    both = stacked([a, found], (5,), {"x": 4})
    assert both.parts["x"].value.shape == (5, 4)


def test_mixes_of_rows_are_sound_too():
    rng, graph, spec, low, high = _nets(0)
    question = _question(graph, spec, low, high)
    memory = _bound(question)
    sides, _, planes, _, mix, _, _ = memory.frame
    mix[:] = rng.random(len(mix))
    least = boxes.backward(
        question.net, question.free, sides, memory.state, mix, memory.work[3], planes[0]
    )
    start = memory.state.shape[1] - int(question.net[0][-1])
    for x in _points(rng, low, high, 30):
        z = _exact_layers(question.net, [Fraction(float(v)) for v in x])[start:]
        total = sum(Fraction(float(v)) * z[r] for r, v in enumerate(mix))
        assert Fraction(float(least)) <= total


@pytest.mark.parametrize("seed", range(30))
def test_clipping_keeps_every_unsafe_point(seed):
    rng = np.random.default_rng(seed)
    free, clauses = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    sizes = rng.integers(1, 4, size=clauses)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    R = int(starts[-1])
    planes = np.zeros((R + clauses, 1 + free))
    planes[:R, 1:] = rng.normal(size=(R, free))
    planes[:R, 0] = rng.normal(size=R) + 0.5
    strict = rng.random(R) < 0.5
    shares = np.zeros((9, free))
    shares[0], shares[1] = -1.0, 1.0
    closed = box_search.clip(planes, starts, strict, 0, False, shares, 0)
    points = rng.uniform(-1, 1, size=(4000, free))
    values = planes[:R, 0] + points @ planes[:R, 1:].T
    met = np.where(strict, values < 0, values <= 0)
    unsafe = np.logical_and.reduceat(met, starts[:-1], axis=1)
    for c in range(clauses):
        if closed >= 0 and (closed >> c) & 1:
            assert not unsafe[:, c].any()
    if closed < 0:
        assert not unsafe.any()
        return
    inside = ((points >= shares[0]) & (points <= shares[1])).all(axis=1)
    assert not (unsafe.any(axis=1) & ~inside).any()
    assert (shares[0] >= -1).all() and (shares[1] <= 1).all()


def test_clipping_is_exact_for_one_plane():
    planes = np.array([[0.5, 1.0, 0.0], [0.0, 0.0, 0.0]])
    shares = np.zeros((9, 2))
    shares[0], shares[1] = -1.0, 1.0
    starts, strict = np.array([0, 1]), np.array([False])
    assert box_search.clip(planes, starts, strict, 0, False, shares, 0) == 0
    assert shares[1, 0] >= -0.5 and shares[1, 0] == pytest.approx(-0.5, abs=1e-12)
    assert shares[0, 0] == -1.0 and shares[1, 1] == 1.0
    planes[0, 0] = 1.0 + 1e-9
    assert box_search.clip(planes, starts, strict, 0, False, shares, 0) == -1


def test_nan_refutes_nothing():
    planes = np.full((2, 2), np.nan)
    shares = np.zeros((9, 1))
    shares[0], shares[1] = -1.0, 1.0
    found = box_search.clip(planes, np.array([0, 1]), np.array([True]), 0, False, shares, 0)
    assert found == 0 and shares[0, 0] == -1.0 and shares[1, 0] == 1.0


def test_no_torch_is_imported(tmp_path):
    code = (
        "import sys\n"
        "import certify.small_route, certify.search.small.reference\n"
        "import certify.kernels.box_search, certify.search.outcome\n"
        "assert 'torch' not in sys.modules\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False
    )
    assert found.returncode == 0, found.stderr
