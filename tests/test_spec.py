"""Specifications: what they mean, when they are decided, and exact evaluation of points."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from certify.core.errors import BadInput, LimitExceeded
from certify.core.spec import Row, Spec

NAN = float("nan")


def test_classify_means_strictly_largest():
    spec = Spec.classify(1, 3)
    y = np.array([[0.0, 1.0, 0.5], [0.0, 1.0, 1.0], [2.0, 1.0, 0.0], [NAN, 0.0, 5.0]])
    assert spec.violated(None, y).tolist() == [False, True, True, False]
    rows = spec.rows()
    assert rows.y.tolist() == [[[-1, 1, 0], [0, 1, -1]]]
    assert rows.group.tolist() == [0, 1]
    assert not rows.strict.any()
    assert rows.x is None


def test_classify_with_one_label_per_example():
    spec = Spec.classify(np.array([0, 2, 1]), 3)
    assert spec.batch == 3
    y = np.array([[3.0, 1.0, 0.0]] * 3)
    assert spec.violated(None, y).tolist() == [False, True, True]
    margins = np.einsum("brn,bn->br", spec.rows().y, y)
    assert margins.tolist() == [[2, 3], [-3, -1], [-2, 1]]
    assert spec.decided(margins).tolist() == [True, False, False]
    same = Spec.classify(torch.tensor([0, 2, 1]), 3)
    assert np.array_equal(same.rows().y, spec.rows().y)


def test_linear_is_violated_strictly_below():
    spec = Spec.linear([[1.0, 0.0], [0.0, -1.0]], [0.5, -2.0])
    y = np.array([[0.5, 2.0], [np.nextafter(0.5, 0), 0.0], [0.5, np.nextafter(2.0, 3.0)]])
    assert spec.violated(None, y).tolist() == [False, True, True]
    assert spec.decided(np.array([[0.0, 0.0], [-1e-9, 1.0]])).tolist() == [True, False]


@pytest.mark.parametrize("kind", [np.array, lambda m: torch.tensor(m, dtype=torch.float64)])
def test_decided_follows_the_definition_and_nan_decides_nothing(kind):
    spec = Spec.unsafe([[Row({0: 1.0}), Row({1: 1.0}, strict=True)], [Row({2: 1.0})]], 3)
    cases = [([1.0, -1.0, 1.0], True), ([-1.0, 0.0, 1.0], True), ([0.0, -1.0, 1.0], False),
             ([1.0, 1.0, 0.0], False), ([NAN, 0.0, 1.0], True), ([NAN, NAN, 1.0], False),
             ([1.0, 1.0, NAN], False), ([-1.0, -1.0, -1.0], False)]
    decided = spec.decided(kind([margins for margins, _ in cases]))
    assert decided.tolist() == [expected for _, expected in cases]
    single = Spec.classify(0, 3)
    found = single.decided(kind([[1.0, 1.0], [NAN, 1.0], [0.0, 1.0]]))
    assert found.tolist() == [True, False, False]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=1, max_size=5), st.data())
def test_decided_matches_a_plain_loop(shape, data):
    spec = Spec.unsafe([[Row({0: 1.0}, strict=s) for s in clause] for clause in shape], 1)
    flat = [s for clause in shape for s in clause]
    value = st.sampled_from([-1.0, 0.0, 1.0, NAN])
    margins = [data.draw(value) for _ in flat]
    refuted = [m >= 0 if s else m > 0 for m, s in zip(margins, flat, strict=True)]
    expected, start = True, 0
    for clause in shape:
        expected &= any(refuted[start : start + len(clause)])
        start += len(clause)
    assert spec.decided(np.array([margins])).tolist() == [expected]
    assert spec.decided(torch.tensor([margins])).tolist() == [expected]


numbers = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=200, deadline=None)
@given(st.lists(numbers, min_size=3, max_size=3), st.lists(numbers, min_size=3, max_size=3),
       st.integers(-2, 2), st.booleans())
def test_violated_is_exact_next_to_the_threshold(c, y, steps, strict):
    exact = sum(Fraction(a) * Fraction(b) for a, b in zip(c, y, strict=True))
    bound = float(exact)
    for _ in range(abs(steps)):
        bound = float(np.nextafter(bound, np.inf if steps > 0 else -np.inf))
    if not any(c):
        return
    spec = Spec.unsafe([[Row(c, bound, strict=strict)]], 3)
    expected = exact < Fraction(bound) if strict else exact <= Fraction(bound)
    assert spec.violated(None, np.array([y])).tolist() == [expected]


def test_violated_needs_every_row_of_one_clause_and_the_inputs():
    spec = Spec.unsafe([[Row({0: 1.0}, 1.0), Row(None, 0.25, x={1: 1.0})], [Row({0: -1.0}, -5.0)]],
                       1, num_inputs=2)
    x = np.array([[9.0, 0.25], [9.0, 0.3], [9.0, 0.3]], dtype=np.float32)
    y = np.array([[1.0], [1.0], [5.0]], dtype=np.float32)
    assert spec.violated(x, y).tolist() == [True, False, True]
    assert spec.num_inputs == 2
    assert spec.rows().x.tolist() == [[[0, 0], [0, 1], [0, 0]]]
    with pytest.raises(BadInput, match="give x"):
        spec.violated(None, y)


@pytest.mark.parametrize(("make", "error", "words"), [
    (lambda: Spec((), 3), BadInput, "without a clause"),
    (lambda: Spec.unsafe([], 3), BadInput, "without a clause"),
    (lambda: Spec.unsafe([[]], 3), BadInput, "without a row"),
    (lambda: Spec.unsafe([[Row({0: NAN})]], 3), BadInput, "NaN"),
    (lambda: Spec.unsafe([[Row({0: 1.0}, float("inf"))]], 3), BadInput, "bound"),
    (lambda: Spec.unsafe([[Row({0: 0.0})]], 3), BadInput, "zero coefficients"),
    (lambda: Spec.unsafe([[Row({3: 1.0})]], 3), BadInput, "output 3 of 3"),
    (lambda: Spec.unsafe([[Row([1.0, 2.0])]], 3), BadInput, "expected"),
    (lambda: Spec.unsafe([[Row({0: 1.0}, x={0: 1.0})]], 3), BadInput, "num_inputs"),
    (lambda: Spec.classify(3, 3), BadInput, "label 3"),
    (lambda: Spec.classify(-1, 3), BadInput, "label -1"),
    (lambda: Spec.classify(0, 1), BadInput, "2 classes"),
    (lambda: Spec.classify(0.5, 3), BadInput, "whole"),
    (lambda: Spec.classify(np.zeros(2000, int), 1000), LimitExceeded, "coefficients"),
    (lambda: Spec.linear([1.0, 2.0], 0.0), BadInput, "rows"),
    (lambda: Spec.linear([[1.0, 2.0]], [0.0, 1.0]), BadInput, "1 rows"),
    (lambda: Spec.linear([[1.0, 2.0]], NAN), BadInput, "bound"),
    (lambda: Spec.classify(0, 3).decided(np.zeros((1, 3))), BadInput, "2 rows"),
    (lambda: Spec.classify(0, 3).violated(None, np.zeros((1, 4))), BadInput, "flattened outputs"),
])
def test_bad_input_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()
