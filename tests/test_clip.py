"""Cutting boxes by planes: exactly nothing that satisfies every plane of a clause is lost."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from certify.search.clip import Clipped, Cuts, clip, least_value


def _cuts(generator: np.random.Generator, boxes: int, rows: int, inputs: int) -> Cuts:
    scale = np.exp2(generator.integers(-30, 30, (boxes, rows, inputs)).astype(float))
    A = generator.normal(size=(boxes, rows, inputs)) * scale
    A[generator.random(A.shape) < 0.2] = 0.0
    return Cuts(A, generator.normal(size=(boxes, rows)) * np.abs(A).sum(axis=2))


def _value(A: np.ndarray, c: float, x: list[Fraction]) -> Fraction:
    return sum((Fraction(a) * v for a, v in zip(A, x, strict=True)), Fraction(c))


def _points(
    generator: np.random.Generator, lower: np.ndarray, upper: np.ndarray
) -> list[list[Fraction]]:
    """Corners and points between, exactly inside."""
    found = []
    for _ in range(12):
        share = [Fraction(int(k), 8) for k in generator.integers(0, 9, len(lower))]
        pairs = zip(lower, upper, share, strict=True)
        found.append([Fraction(a) + s * (Fraction(b) - Fraction(a)) for a, b, s in pairs])
    return found


def _kept(found: Clipped, box: int, clause: int, x: list[Fraction]) -> bool:
    ends = zip(found.lower[box, clause], found.upper[box, clause], x, strict=True)
    return all(Fraction(a) <= v <= Fraction(b) for a, b, v in ends)


@pytest.mark.parametrize("seed", range(12))
def test_no_point_that_satisfies_a_clause_is_cut_off(seed: int) -> None:
    generator = np.random.default_rng(seed)
    boxes, inputs = 6, int(generator.integers(1, 5))
    group = np.array([0, 0, 1, 2, 2, 2])
    cuts = _cuts(generator, boxes, len(group), inputs)
    lower = generator.normal(size=(boxes, inputs))
    upper = lower + generator.exponential(size=lower.shape) * (generator.random(lower.shape) < 0.9)
    anchored = seed % 2 == 0
    seen = 0
    points = [_points(generator, lo, up) for lo, up in zip(lower, upper, strict=True)]
    if anchored:  # every row of clause 1 is exactly or nearly 0 at a point of the box
        for b in range(boxes):
            exact = -_value(cuts.A[b, 2], 0.0, points[b][0])
            cuts.c[b, 2] = np.nextafter(float(exact), -np.inf)
    found = clip(cuts, group, lower, upper)
    for b in range(boxes):
        for x in points[b]:
            values = [_value(cuts.A[b, r], cuts.c[b, r], x) for r in range(len(group))]
            for clause in range(3):
                rows = np.flatnonzero(group == clause)
                if all(values[r] <= 0 for r in rows):
                    assert _kept(found, b, clause, x)
                    assert not found.empty[b, clause]
                    assert all(Fraction(found.least[b, r]) <= values[r] for r in rows)
                    seen += 1
    assert seen > 5


@pytest.mark.parametrize("seed", range(6))
def test_the_least_value_is_below_the_exact_minimum(seed: int) -> None:
    generator = np.random.default_rng(seed)
    cuts = _cuts(generator, 20, 3, 4)
    lower = generator.normal(size=(20, 1, 4))
    upper = lower + generator.exponential(size=lower.shape)
    found = least_value(cuts, lower, upper)
    for b in range(20):
        for r in range(3):
            A = cuts.A[b, r]
            ends = [
                Fraction(lo if a >= 0 else up)
                for a, lo, up in zip(A, lower[b, 0], upper[b, 0], strict=True)
            ]
            exact = _value(A, cuts.c[b, r], ends)
            assert Fraction(found[b, r]) <= exact
            size = sum(abs(Fraction(a) * e) for a, e in zip(A, ends, strict=True))
            assert exact - Fraction(found[b, r]) <= Fraction(1e-12) * (
                size + abs(Fraction(cuts.c[b, r])) + Fraction(1e-100)
            )


def test_a_half_space_cuts_the_box_where_it_should() -> None:
    cuts = Cuts(np.array([[[1.0, 0.0], [0.0, -1.0]]]), np.array([[-0.25, 0.75]]))
    found = clip(cuts, np.array([0, 0]), np.zeros((1, 2)), np.ones((1, 2)))
    assert found.upper[0, 0] == pytest.approx([0.25, 1.0], abs=1e-12)
    assert found.lower[0, 0] == pytest.approx([0.0, 0.75], abs=1e-12)
    assert found.upper[0, 0, 0] >= 0.25 and found.lower[0, 0, 1] <= 0.75
    assert not found.empty.any()


def test_rows_that_exclude_each_other_leave_nothing() -> None:
    cuts = Cuts(np.array([[[1.0], [-1.0]]]), np.array([[-0.25, 0.75]]))  # x <= 1/4 and x >= 3/4
    together = clip(cuts, np.array([0, 0]), np.zeros((1, 1)), np.ones((1, 1)))
    apart = clip(cuts, np.array([0, 1]), np.zeros((1, 1)), np.ones((1, 1)))
    assert together.empty.all()
    assert not apart.empty.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_planes_that_are_not_finite_say_nothing(bad: float) -> None:
    lower, upper = np.zeros((2, 2)), np.ones((2, 2))
    A = np.array([[[bad, 1.0]], [[1.0, 1.0]]])
    c = np.array([[1.0], [bad if bad != np.inf else np.nan]])
    found = clip(Cuts(A, c), np.array([0]), lower, upper)
    assert (found.lower[:, 0] == lower).all() and (found.upper[:, 0] == upper).all()
    assert (found.least == -np.inf).all()


def test_many_boxes_are_cut_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    group = np.array([0, 1, 1])
    cuts = _cuts(generator, 40, 3, 2)
    lower = generator.normal(size=(40, 2))
    whole = clip(cuts, group, lower, lower + 1)
    monkeypatch.setattr("certify.search.clip._AT_ONCE", 7 * 6)
    pieces = clip(cuts, group, lower, lower + 1)
    assert all(np.array_equal(a, b) for a, b in zip(whole, pieces, strict=True))
