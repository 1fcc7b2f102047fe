"""Specifications whose rows or thresholds are every example's own."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

import certify
from certify.bounds.decide import Means, decide
from certify.core.certificate import Verdict
from certify.core.claim import spec_from_dict, spec_to_dict
from certify.core.errors import BadInput
from certify.core.region import Box
from certify.core.spec import Clause, Row, Spec
from certify.importers.vnnlib_writer import write_vnnlib
from certify.search.target import Target
from certify.targets import groups, question

C = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 2.0]])
D = np.array([[0.5, -2.0], [0.25, 1.0], [-1.0, 0.0]])
Y = np.array([[0.5, 2.0, 0.0], [0.2, 0.0, 5.0], [-1.0, 0.0, 0.0]])


def _matrices() -> np.ndarray:
    return np.stack([C, -C, 3 * C])


@pytest.mark.parametrize("each", [False, True])
def test_thresholds_per_example_mean_one_specification_each(each):
    matrices = _matrices()
    spec = Spec.linear(matrices if each else C, D)
    alone = [Spec.linear(matrices[b] if each else C, D[b]) for b in range(3)]
    assert spec.batch == 3
    points = np.concatenate([Y, np.random.default_rng(0).normal(size=(60, 3))])
    for point in points:
        wanted = [bool(one.violated(None, point)[0]) for one in alone]
        assert spec.violated(None, point).tolist() == wanted
    for b, one in enumerate(alone):
        mine = spec.only(b)
        assert mine.batch == 1
        for found, expected in zip(mine.rows(), one.rows(), strict=True):
            assert (found is expected) or np.array_equal(found, expected)


def test_each_point_is_compared_with_its_own_threshold_exactly():
    spec = Spec.linear([[1.0, 1.0]], [[0.3], [0.5]])
    touching = np.array([[0.1, 0.2], [0.25, 0.25]])  # 0.1 + 0.2 > 0.3 in real arithmetic
    assert spec.violated(None, touching).tolist() == [False, False]
    under = np.array([[0.1, 0.2 - 2**-54], [0.25, np.nextafter(0.25, 0)]])
    assert sum(map(Fraction, under[0])) < Fraction(0.3)
    assert spec.violated(None, under).tolist() == [True, True]
    assert spec.violated(None, touching[::-1]).tolist() == [False, True]


def test_rows_hold_the_thresholds_of_every_example():
    rows = Spec.linear(C, D).rows()
    assert rows.y.shape == (1, 2, 3)
    assert np.array_equal(rows.bound, D)
    assert rows.strict.tolist() == [True, True]
    assert np.array_equal(Spec.linear(C, D[:1]).rows().bound, D[0])  # a batch of one is plain


def test_shared_and_own_thresholds_stand_side_by_side():
    strict = np.array([True])
    own = Clause(C[None, :1], None, D[:, :1], strict)
    shared = Clause(C[None, 1:], None, np.array([7.0]), strict)
    rows = Spec((own, shared), 3).rows()
    assert rows.bound.tolist() == [[0.5, 7.0], [0.25, 7.0], [-1.0, 7.0]]


def test_decided_takes_margins_that_are_already_relative():
    spec = Spec.linear(C, D)
    margins = np.array([[0.0, 1.0], [-1e-9, 1.0], [2.0, 3.0]])
    assert spec.decided(margins).tolist() == [True, False, True]
    assert spec.decided(torch.tensor(margins)).tolist() == [True, False, True]


def test_tensors_with_gradients_make_a_specification():
    spec = Spec.linear(torch.tensor(C, requires_grad=True), torch.tensor(D, requires_grad=True))
    assert np.array_equal(spec.rows().bound, D)


def test_a_certificate_keeps_the_thresholds():
    spec = Spec.linear(_matrices(), D)
    back = spec_from_dict(spec_to_dict(spec))
    assert np.array_equal(back.rows().bound, D)
    assert np.array_equal(back.rows().y, spec.rows().y)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Spec.linear(_matrices(), D[:2]),
        lambda: Spec.linear(C, D.T),
        lambda: Spec.linear(C, D[None]),
        lambda: Clause(C[None], None, D[:1], np.array([True, True])),
        lambda: Clause(C[None], None, D[:, :1], np.array([True, True])),
        lambda: Spec((Spec.linear(C, D).clauses[0], Spec.linear(C, D[:2]).clauses[1]), 3),
        lambda: Spec.linear(C, np.where(D == 1.0, np.nan, D)),
    ],
)
def test_thresholds_that_do_not_fit_are_refused(make):
    with pytest.raises(BadInput):
        make()


def test_exact_decimals_are_for_shared_thresholds_only():
    clause = Spec.linear(C, D).clauses[0]
    with pytest.raises(BadInput, match="thresholds of shape"):
        replace(clause, exact=())


def test_one_file_states_one_example(tmp_path):
    box = Box(np.zeros(2), np.ones(2))
    with pytest.raises(BadInput, match="one example"):
        write_vnnlib(tmp_path / "p.vnnlib", box, Spec.linear(C, D))
    write_vnnlib(tmp_path / "p.vnnlib", box, Spec.linear(C, D).only(2))


def _net() -> certify.Graph:
    torch.manual_seed(3)
    return certify.from_torch(
        torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)),
        torch.zeros(2),
    )


def _margins(graph, region, spec, method="crown"):
    targets = [Target(0, b, region.rows([b]), spec, None) for b in range(region.batch)]
    (group,) = groups(graph, targets)
    return decide(graph, question(group), method, Means())


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_a_batch_is_decided_as_its_examples_are(method):
    graph, centre = _net(), np.random.default_rng(1).normal(size=(3, 2))
    region = Box(centre - 0.1, centre + 0.1).batched((2,))
    together = _margins(graph, region, Spec.linear(_matrices(), D), method)
    for b in range(3):
        alone = _margins(graph, region.rows([b]), Spec.linear(_matrices()[b], D[b]), method)
        np.testing.assert_allclose(together.margins[b], alone.margins[0], rtol=0, atol=1e-9)
        assert together.proved[b] == alone.proved[0]


@pytest.mark.parametrize("broken", [None, 0, 2])
def test_verify_proves_or_refutes_thresholds_of_every_example(broken):
    graph, centre = _net(), np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)
    region = Box(centre - np.float32(0.05), centre + np.float32(0.05)).batched((2,))
    with torch.no_grad():
        bounds = certify.bound(graph, region, rows=C)
    d = bounds.lower.numpy() - 0.01
    if broken is not None:
        d[broken] = bounds.upper.numpy()[broken] + 0.01
    found = certify.verify(graph, region, Spec.linear(C, d), timeout=20)
    if broken is None:
        assert found.verdict is Verdict.HOLDS
    else:
        assert found.verdict is Verdict.VIOLATED
        assert found.counterexample.example == broken


def test_one_label_per_example_is_one_specification_each():
    graph, centre = _net(), np.random.default_rng(2).normal(size=(4, 2))
    region = Box(centre - 0.05, centre + 0.05).batched((2,))
    labels = np.array([0, 1, 2, 1])
    together = _margins(graph, region, Spec.classify(labels, 3))
    for b, label in enumerate(labels):
        alone = _margins(graph, region.rows([b]), Spec.classify(int(label), 3))
        np.testing.assert_allclose(together.margins[b], alone.margins[0], rtol=0, atol=1e-9)


def test_rows_by_hand_stay_shared():
    spec = Spec.unsafe([[Row({0: 1.0}, 0.5)]], 3)
    assert spec.only(0) is spec


def test_intervals_alone_decide_rows_that_name_inputs_of_a_large_network() -> None:
    """Large enough that intermediate bounds are found in float32 and not again."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3000), torch.nn.ReLU(), torch.nn.Linear(3000, 1))
    graph = certify.from_torch(net, torch.zeros(1, 2))
    region = certify.Linf(np.array([[0.2, -0.1]]), 0.01)
    y = float(net(torch.tensor([[0.2, -0.1]])).detach())
    for margin, wanted in ((3.0, certify.Verdict.HOLDS), (-3.0, certify.Verdict.UNKNOWN)):
        # unsafe where y + 5 x_0 <= its value at the centre - margin
        spec = certify.Spec.unsafe([[Row([1.0], y + 1.0 - margin, x=[5.0, 0.0])]], 1, 2)
        found = certify.verify(graph, region, spec, method="ibp", attack=False)
        assert found.verdict is wanted
