"""Search by linear programs: its rows, its bounds, and solvers that do not tell the truth."""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from certify import ops
from certify.bounds import evaluate
from certify.bounds.budget import Limits
from certify.bounds.program import prepare
from certify.core.certificate import Verdict
from certify.core.region import L2, Box
from certify.core.semantics import Semantics
from certify.core.spec import Row, Spec
from certify.ops.builder import Builder
from certify.search.milp import solve_milp, suits
from certify.search.milp_encoding import bounded, encode
from certify.search.milp_programs import Advice, Programs
from certify.search.problem import Problem
from certify.search.safe_lp import Affine, Curves, Ranges, confined, propagated, safe_lp_bound
from tests.small_nets import chain

ops.load()
DIFFERENCE = {0: 1.0, 1: -1.0}


def single(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def dense(b, x, outputs, rng):
    weight = single(rng, outputs, x.shape[-1])
    return b.add("linear", x, b.constant(weight), b.constant(single(rng, outputs) * 0.3))


def two_pieces(op, rng, **attrs):
    b = Builder()
    z = dense(b, b.input("x", (1, 3)), 6, rng)
    z = dense(b, b.add(op, z, **attrs), 4, rng)
    return b.finish(dense(b, b.add(op, z, **attrs), 2, rng))


def branches(rng):
    """Two branches that meet, one of them straight from the inputs."""
    b = Builder()
    x = b.input("x", (1, 3))
    first = b.add("relu", dense(b, x, 5, rng))
    second = b.add("abs", b.add("sub", dense(b, first, 5, rng), first))
    return b.finish(b.add("add", dense(b, second, 2, rng), dense(b, x, 2, rng)))


def nets():
    rng = np.random.default_rng(3)
    return {
        "chain": chain([4, 7, 6, 5, 2], rng),
        "branches": branches(rng),
        "abs": two_pieces("abs", rng),
        "leaky": two_pieces("leaky_relu", rng, alpha=0.1),
        "relu": two_pieces("relu", rng),
    }


NETS = nets()


def spec(*clauses, inputs=None):
    """Clauses of ``(y, threshold, strict)``: unsafe is ``y.Y <= threshold``."""
    rows = [[Row(y, t, None, s) for y, t, s in clause] for clause in clauses]
    return Spec.unsafe(rows, 2, inputs)


def problem(graph, asked, width=0.7, **more):
    n = graph.input_shapes[0][1]
    centre = np.linspace(-0.3, 0.3, n).reshape(1, 1, n)
    region = Box(centre - width, centre + width).batched((1, n))
    limits = Limits(deadline=time.monotonic() + 20)
    task = Problem(graph, region, asked.rows(), limits=limits, **more)
    return replace(task, suspect=lambda x: bool(unsafe(task, x[None])[0]))


def points(task, count=400):
    """Points of the region, half of them corners."""
    low, high = (np.asarray(e).reshape(-1) for e in task.region.bounding_box())
    draw = np.random.default_rng(1).random((count, len(low)))
    draw[: count // 2] = draw[: count // 2].round()
    return low + draw * (high - low)


def values(graph, x, index=None):
    program = prepare(graph, torch.float64)
    found = evaluate.run(program, (torch.from_numpy(x).reshape(-1, *graph.input_shapes[0]),))
    return found[program.output if index is None else index].reshape(len(x), -1).numpy()


def margins(task, x):
    """Rows g at points, ``(N, R)``."""
    return values(task.graph, x) @ task.rows.y[0].T - task.rows.bound


def unsafe(task, x):
    g = margins(task, x)
    met = np.where(task.rows.strict, g < 0, g <= 0)
    count = int(task.rows.group[-1]) + 1
    return np.any([met[:, task.rows.group == k].all(axis=1) for k in range(count)], axis=0)


def encoded(task):
    found = encode(task, bounded(task, task.limits))
    assert found is not None and found.units > 0
    return found


@pytest.mark.parametrize("name", NETS)
def test_the_rows_are_the_network(name):
    task = problem(NETS[name], spec([(DIFFERENCE, 0.5, False)]))
    code, x = encoded(task), points(task, 60)
    for at, g in zip(x, margins(task, x), strict=True):
        rows, z = code.values(at)
        assert np.abs(rows - g).max() <= code.rows.error[:1].max() + 1e-12 * (1 + np.abs(g).max())
        assert (z >= code.ranges.z_low - 1e-12).all() and (z <= code.ranges.z_high + 1e-12).all()


def exact_least(rows, ranges, weights, slopes, side=None):
    """The exact minimum over one input and one layer; ``side = (unit, sign)`` confines a unit."""
    M, offset = ([Fraction(v) for v in a] for a in (rows.M[:, 0].tolist(), rows.offset.tolist()))
    low, high = Fraction(float(ranges.x_low[0])), Fraction(float(ranges.x_high[0]))
    at = {low, high} | {-d / a for a, d in zip(M[1:], offset[1:], strict=True) if a}
    found = []
    for x in at:
        z = [a * x + d for a, d in zip(M[1:], offset[1:], strict=True)]
        if low <= x <= high and (side is None or z[side[0]] * side[1] >= 0):
            total = M[0] * x + offset[0]
            for i, (value, (left, right)) in enumerate(zip(z, slopes, strict=True)):
                factor = Fraction(left if value < 0 else right)
                total += Fraction(float(rows.M[0, 1 + i])) * factor * value
            found.append(total * Fraction(float(weights[0])))
    return min(found, default=None)


def test_no_multipliers_give_a_bound_above_the_exact_minimum():
    rng = np.random.default_rng(5)
    tight = 0
    for case in range(150):
        m, scale = int(rng.integers(1, 4)), 2.0 ** rng.integers(-30, 30)
        M = np.zeros((1 + m, 1 + m))
        M[0], M[1:, 0] = rng.normal(size=1 + m) * scale, rng.normal(size=m)
        rows = Affine(M, np.r_[rng.normal() * scale, rng.normal(size=m) * 0.5], np.zeros(1 + m))
        slopes = [[(0.0, 1.0), (-1.0, 1.0), (0.125, 1.0)][k] for k in rng.integers(0, 3, m)]
        left, right = np.array(slopes).T
        curves = Curves(left, right, np.zeros(m))
        start = Ranges(-rng.random(1), rng.random(1), np.full(m, -9.0), np.full(m, 9.0))
        ranges = propagated(rows, curves, start)
        for size in (0.0, 1.0, 1e3):
            mu, weights = rng.normal(size=m) * scale * size, np.array([rng.random()])
            if case % 2 and m == 1:
                chord = M[0, 1] * rng.random()
                mu = np.array([chord * weights[0]])
            dual = safe_lp_bound(rows, curves, ranges, weights, mu)
            least = exact_least(rows, ranges, weights, slopes)
            assert Fraction(dual.bound) <= least
            tight += float(least) - dual.bound < 1e-9 * scale
            for half, sign in ((dual.below, -1), (dual.above, 1)):
                for i in range(m):
                    confined_least = exact_least(rows, ranges, weights, slopes, (i, sign))
                    if confined_least is not None:
                        assert half[i] <= confined_least
    assert tight > 20  # the bound is not trivially far below


@pytest.mark.parametrize("name", NETS)
def test_bounds_are_below_samples_and_cuts_keep_every_counterexample(name):
    graph, rng = NETS[name], np.random.default_rng(2)
    task = problem(graph, spec([(DIFFERENCE, 0.0, False)]))
    least = float(np.quantile(margins(task, points(task)), 0.05))
    task = problem(graph, spec([(DIFFERENCE, least, False)]))
    code, x = encoded(task), points(task)
    g = margins(task, x)[:, 0]
    advice = Programs(code).relaxed(0, code.ranges, 10.0)
    assert advice is not None
    for spread in (0.0, 0.01, 0.3, 3.0):
        mu = advice.mu * (1 + spread * rng.normal(size=code.units))
        dual = safe_lp_bound(code.rows, code.curves, code.ranges, advice.weights, mu)
        assert dual.bound <= g.min() + 1e-12
        cut = propagated(code.rows, code.curves, confined(code.ranges, dual))
        for at in x[g <= 0]:
            z = code.values(at)[1]
            assert (at >= cut.x_low).all() and (at <= cut.x_high).all()
            assert (z >= cut.z_low - 1e-12).all() and (z <= cut.z_high + 1e-12).all()


def test_negative_or_undefined_multipliers_give_nothing():
    code = encoded(problem(NETS["relu"], spec([(DIFFERENCE, 0.0, False)])))
    zero, one = np.zeros(code.units), np.ones(1)
    assert np.isfinite(safe_lp_bound(code.rows, code.curves, code.ranges, one, zero).bound)
    for weights, mu in ((-one, zero), (one * np.nan, zero), (one, zero + np.inf)):
        bound = safe_lp_bound(code.rows, code.curves, code.ranges, weights, mu).bound
        assert bound == -np.inf


CLAUSES = {
    "one row": lambda t: [[(DIFFERENCE, t, False)]],
    "strict": lambda t: [[(DIFFERENCE, t, True)]],
    "all of two": lambda t: [[(DIFFERENCE, t, False), ({0: 1.0}, t + 1, True)]],
    "any of two": lambda t: [[(DIFFERENCE, t, False)], [({1: -1.0}, t - 2, False)]],
}


@pytest.mark.parametrize("kind", CLAUSES)
@pytest.mark.parametrize("name", NETS)
def test_answers_agree_with_samples(name, kind):
    graph = NETS[name]
    base = problem(graph, spec([(DIFFERENCE, 0.0, False)]))
    g = margins(base, points(base))
    seen = set()
    for threshold in (g.min() - 3, g.min() - 0.3, float(np.quantile(g, 0.3))):
        task = problem(graph, spec(*CLAUSES[kind](float(threshold))))
        found = solve_milp(task)
        seen.add(found.verdict)
        known_unsafe = bool(unsafe(task, points(task)).any())
        assert found.verdict in (Verdict.HOLDS, Verdict.VIOLATED)
        assert found.verdict is Verdict.VIOLATED or not known_unsafe
        silent = solve_milp(replace(task, suspect=None))
        assert silent.verdict is not Verdict.VIOLATED
        if found.verdict is Verdict.HOLDS:
            assert silent.verdict is Verdict.HOLDS and found.open_share == 0
        else:
            assert silent.verdict is not Verdict.HOLDS
    assert Verdict.HOLDS in seen


LIES = ["noise", "contradiction", "undefined", "negative", "foreign rows", "silence"]


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_solver_never_proves_what_is_false(lie, monkeypatch):
    rng = np.random.default_rng(11)

    def relaxed(self, clause, ranges, seconds):
        K, m = len(self.code.group), self.code.units
        mu = rng.normal(size=m) * 10.0 ** rng.integers(-3, 6)
        weights = {"contradiction": np.zeros(K), "negative": -np.ones(K)}.get(lie, rng.random(K))
        if lie == "foreign rows":
            weights = np.where(self.code.group == clause, 0.0, 1.0)
        if lie == "undefined":
            mu[0] = np.nan
        return None if lie == "silence" else Advice(weights, mu)

    monkeypatch.setattr(Programs, "relaxed", relaxed)
    monkeypatch.setattr(Programs, "point", lambda *_: ("none", None))
    for name in ("relu", "abs", "chain"):
        base = problem(NETS[name], spec([(DIFFERENCE, 0.0, False)]))
        g = margins(base, points(base))
        for threshold in (g.min(), np.median(g)):
            asked = spec([(DIFFERENCE, float(threshold), False)], [({0: 1.0}, -1e3, False)])
            limits = Limits(deadline=time.monotonic() + 0.5)
            task = replace(problem(NETS[name], asked), limits=limits)
            assert bool(unsafe(task, points(task)).any())
            assert solve_milp(task).verdict is not Verdict.HOLDS


def test_a_claimed_point_is_only_a_suspicion(monkeypatch):
    task = problem(NETS["relu"], spec([(DIFFERENCE, -1e3, False)]))
    low = np.asarray(task.region.bounding_box()[0]).reshape(-1)
    monkeypatch.setattr(Programs, "point", lambda *_: ("found", low - 5))
    assert solve_milp(task).verdict is Verdict.HOLDS
    tried = []
    base = margins(task, points(task)).min() - 1e3
    task = problem(NETS["relu"], spec([(DIFFERENCE, float(base) + 0.1, False)]))
    refused = replace(task, suspect=lambda x: bool(tried.append(x)))
    assert solve_milp(refused).verdict is not Verdict.VIOLATED
    assert tried and all((x >= low).all() for x in tried)


def test_deployed_float32_needs_more_room():
    graph = NETS["leaky"]
    real = problem(graph, spec([(DIFFERENCE, 0.0, False)]))
    deployed = replace(real, semantics=Semantics.FLOAT32)
    assert (encoded(deployed).rows.error > 100 * encoded(real).rows.error).all()
    assert (encoded(deployed).curves.stray > 0).all()
    assert not encoded(real).curves.stray.any()


def test_what_does_not_suit_is_left_alone():
    asked = spec([(DIFFERENCE, 0.0, False)])
    rng = np.random.default_rng(0)
    smooth = problem(two_pieces("sigmoid", rng), asked)
    ball = problem(NETS["relu"], asked)
    ball = replace(ball, region=L2(np.zeros((1, 1, 3)), 0.5).batched((1, 3)))
    for task in (smooth, ball):
        assert not suits(task)
        found = solve_milp(task)
        assert found.verdict is Verdict.UNKNOWN and found.reason
    task = problem(NETS["relu"], asked)
    assert suits(task)
    late = solve_milp(replace(task, limits=Limits(deadline=time.monotonic() - 1)))
    assert late.verdict is Verdict.TIMEOUT and late.open_share == 1.0


def test_a_network_without_undecided_units_is_one_program():
    for margin, verdict in ((-1e-3, Verdict.HOLDS), (0.2, Verdict.VIOLATED)):
        base = problem(NETS["relu"], spec([(DIFFERENCE, 0.0, False)]), width=1e-4)
        least = float(margins(base, points(base)).min())
        task = replace(base, rows=spec([(DIFFERENCE, least + margin, False)]).rows())
        assert encode(task, bounded(task, task.limits)).units == 0
        task = replace(task, suspect=lambda x, task=task: bool(unsafe(task, x[None])[0]))
        found = solve_milp(task)
        assert found.verdict is verdict and found.leaves == 1


def test_rows_that_mention_the_inputs():
    graph = NETS["relu"]
    base = problem(graph, spec([(DIFFERENCE, 0.0, False)]))
    x = points(base)
    g = margins(base, x)[:, 0] + 0.5 * x[:, 1]
    for threshold, verdict in ((g.min() - 2, Verdict.HOLDS), (np.median(g), Verdict.VIOLATED)):
        row = Row(DIFFERENCE, float(threshold), {1: 0.5})
        asked = Spec.unsafe([[row]], 2, 3).rows()

        def suspect(p, threshold=threshold):
            return bool(margins(base, p[None])[0, 0] + 0.5 * p[1] <= threshold)

        assert solve_milp(replace(base, rows=asked, suspect=suspect)).verdict is verdict


def test_rounding_and_errors_are_paid_for_where_terms_cancel():
    rng, none = np.random.default_rng(8), np.zeros(0)
    curves = Curves(none, none, none)
    for _ in range(200):
        M, x = rng.normal(size=(2, 5)), rng.normal(size=5)
        offset, weights = -(M @ x), rng.random(2) * 1e3
        ranges = Ranges(x, x, none, none)
        exact = sum(
            Fraction(w) * (sum(Fraction(a) * Fraction(v) for a, v in zip(r, x, strict=True)) + b)
            for w, r, b in zip(weights, M, map(Fraction, offset), strict=True)
        )
        sure = safe_lp_bound(Affine(M, offset, np.zeros(2)), curves, ranges, weights, none).bound
        assert exact - Fraction(1e-9) < Fraction(sure) <= exact
        error = rng.random(2)
        rows = Affine(M, offset, error)
        unsure = safe_lp_bound(rows, curves, ranges, weights, none).bound
        assert unsure <= sure - (1 - 1e-12) * (weights @ error)
