"""VNN-LIB files: meaning, exact rounding, hostile input, and the competition's own files."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
import os
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certify.core.errors import BadInput, CannotWrite, CertifyError, LimitExceeded, Unsupported
from certify.core.region import Box
from certify.core.spec import Row, Spec
from certify.importers.vnnlib import Limits, inner, inner_float32, read_vnnlib, write_vnnlib

DATA = Path(os.environ.get("CERTIFY_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data folder at {DATA}")


def read(tmp_path, body, inputs=2, outputs=2, **settings):
    names = [f"X_{i}" for i in range(inputs)] + [f"Y_{i}" for i in range(outputs)]
    text = "".join(f"(declare-const {n} Real)\n" for n in names) + body
    path = tmp_path / "case.vnnlib"
    path.write_text(text)
    return read_vnnlib(path, **settings)


BOX = "(assert (and (>= X_0 -1) (<= X_0 1) (>= X_1 0) (<= X_1 0.5)))\n"


# -- meaning ------------------------------------------------------------------------------------

def test_conjunction_is_one_clause(tmp_path):
    query = read(tmp_path, BOX + "(assert (<= Y_0 Y_1)) ; comment (\n(assert (> Y_1 0.25))")
    (case,) = query
    assert case.box.lower.tolist() == [-1, 0]
    assert case.box.upper.tolist() == [1, 0.5]
    (clause,) = case.spec.clauses
    assert clause.y.tolist() == [[[1, -1], [0, -1]]]
    assert clause.bound.tolist() == [0, -0.25]
    assert clause.strict.tolist() == [False, True]
    assert (query.num_inputs, query.num_outputs, len(query)) == (2, 2, 1)


def test_disjunction_plus_extra_conjunct_must_both_hold(tmp_path):
    (case,) = read(tmp_path, BOX + "(assert (or (and (>= Y_0 3)) (<= Y_0 -3)))"
                   "(assert (<= Y_1 0.5))")
    assert len(case.spec.clauses) == 2
    assert case.spec.violated(None, np.array([[3.0, 0.5], [3.0, 0.6], [-3.0, 0.0], [0.0, 0.0]])
                              ).tolist() == [True, False, True, False]


def test_disjuncts_with_their_own_boxes(tmp_path):
    first = "(and (>= X_0 0) (<= X_0 1) (>= X_1 0) (<= X_1 1) (<= Y_0 0))"
    same = "(and (>= X_0 0.0) (<= X_0 1.) (>= X_1 0e5) (<= X_1 1) (<= Y_1 0))"
    other = "(and (>= X_0 0) (<= X_0 1) (>= X_1 0) (<= X_1 2) (<= Y_0 0) (>= Y_1 7))"
    query = read(tmp_path, f"(assert (or {first} {same} {other}))(assert (<= Y_0 9))")
    assert [len(c.spec.clauses) for c in query] == [2, 1]
    assert query[1].box.upper.tolist() == [1, 2]
    assert [len(c.bound) for c in query[0].spec.clauses] == [2, 2]
    assert len(query[1].spec.clauses[0].bound) == 3


def test_boxes_times_outputs_and_narrowing(tmp_path):
    query = read(tmp_path, BOX + "(assert (or (>= X_0 0.5) (<= X_0 -0.5)))"
                 "(assert (or (<= Y_0 0) (<= Y_1 0) (and (>= Y_0 1) (>= Y_1 1))))")
    assert [(c.box.lower[0], c.box.upper[0]) for c in query] == [(0.5, 1), (-1, -0.5)]
    assert all(len(c.spec.clauses) == 3 for c in query)
    twice = read(tmp_path, BOX + "(assert (or (>= X_0 0.5) (<= X_0 -0.5)))"
                 "(assert (or (>= X_0 0.7) (<= X_0 -0.7)))(assert (<= Y_0 0))")
    assert len(twice) == 2  # the contradictory combinations are dropped


def test_linear_expressions_equations_and_mixed_rows(tmp_path):
    (case,) = read(tmp_path, BOX + "(assert (<= (+ (* 2 Y_0) (- Y_1) 1 (* 0.1 X_0)) (- 3 X_1)))"
                   "(assert (= Y_0 0.5))(assert (<= (* 4 X_0) 2))(assert (>= 0.25 X_1))")
    (clause,) = case.spec.clauses
    assert case.box.upper.tolist() == [1, 0.25]
    # the row with 0.1 is scaled by ten, so that every coefficient is exact
    assert clause.y.tolist() == [[[20, -10], [1, 0], [-1, 0], [0, 0]]]
    assert clause.x.tolist() == [[[1, 10], [0, 0], [0, 0], [4, 0]]]
    assert clause.bound.tolist() == [20, 0.5, -0.5, 2]


def test_strict_input_bounds_close_the_box_and_stay_strict_in_the_clause(tmp_path):
    (case,) = read(tmp_path, BOX + "(assert (< X_0 0.5))(assert (<= Y_0 0))")
    assert case.box.upper[0] == 0.5
    x, y = np.array([[0.5, 0.0], [0.25, 0.0]]), np.zeros((2, 2))
    assert case.spec.violated(x, y).tolist() == [False, True]


def test_repeated_bounds_take_the_tightest(tmp_path):
    (case,) = read(tmp_path, BOX + "(assert (<= X_0 0.5))(assert (<= X_0 0.75))(assert (<= Y_0 0))")
    assert case.box.upper[0] == 0.5


# -- rounding -----------------------------------------------------------------------------------


def test_boxes_and_thresholds_are_rounded_so_that_the_unsafe_set_grows(tmp_path):
    (case,) = read(tmp_path, "(assert (>= X_0 0.7))(assert (<= X_0 0.7))(assert (>= X_1 0.1))"
                   "(assert (<= X_1 0.3))(assert (<= Y_0 0.1))(assert (>= Y_1 0.7))")
    for low, high, inside_low, inside_high, a, b in zip(
            case.box.lower, case.box.upper, case.inner_lower, case.inner_upper,
            case.exact_lower, case.exact_upper, strict=True):
        assert Fraction(low) <= Fraction(a) <= Fraction(inside_low)
        assert Fraction(inside_high) <= Fraction(b) <= Fraction(high)
    first, second = case.spec.clauses[0].bound
    assert Fraction(first) >= Fraction("0.1")
    assert Fraction(second) >= Fraction("-0.7")
    # a counterexample must satisfy the decimals, not their roundings
    at = [math.nextafter(0.1, 0), 0.1]  # 0.1 as a float64 is above one tenth
    y = np.array([[v, 1.0] for v in at])
    assert case.spec.violated(None, y).tolist() == [True, False]
    assert not case.contains([[0.7, 0.2]])[0]  # no float64 is 0.7
    assert case.box.batched((2,)).contains(np.array([[[0.7, 0.2]]]))[0, 0]


def test_inner_float32_is_inside_or_what_a_runtime_reads(tmp_path):
    (case,) = read(tmp_path, "(assert (>= X_0 0.7))(assert (<= X_0 0.7))(assert (>= X_1 0.1))"
                   "(assert (<= X_1 0.3))(assert (<= Y_0 0.1))")
    low, high = inner_float32(case)
    assert low.dtype == np.float32
    assert low[0] == high[0] == np.float32(0.7)
    assert Fraction("0.1") <= Fraction(float(low[1]))
    assert Fraction(float(np.nextafter(low[1], np.float32(-1)))) < Fraction("0.1")
    assert Fraction(float(high[1])) <= Fraction("0.3")
    assert Fraction(float(np.nextafter(high[1], np.float32(1)))) > Fraction("0.3")
    low64, high64 = inner(case, np.float64)
    assert low64[0] == high64[0] == 0.7
    assert low64[1] == case.inner_lower[1]


# -- writing ------------------------------------------------------------------------------------

def test_round_trip_is_exact(tmp_path):
    rng = np.random.default_rng(0)
    box = Box(rng.normal(size=5) - 3, rng.normal(size=5) + 3)
    specs = [Spec.classify(2, 4), Spec.linear(rng.normal(size=(3, 4)), rng.normal(size=3)),
             Spec.unsafe([[Row({0: 1.0}, 0.1), Row({1: -1.0}, 1e-310, x={4: 0.3}, strict=True)],
                          [Row({3: -1.0}, -0.7)]], 4, num_inputs=5)]
    for spec in specs:
        path = tmp_path / "out.vnnlib"
        write_vnnlib(path, box, spec)
        (case,) = read_vnnlib(path)
        assert np.array_equal(case.box.lower, box.lower)
        assert np.array_equal(case.box.upper, box.upper)
        old, new = spec.rows(), case.spec.rows()
        for a, b in zip(old, new, strict=True):
            assert (a is None and b is None) or np.array_equal(a, b)
    assert [p.name for p in tmp_path.iterdir()] == ["out.vnnlib"]


def test_exact_thresholds_survive_a_round_trip(tmp_path):
    (case,) = read(tmp_path, BOX + "(assert (<= Y_0 0.1))(assert (>= Y_1 0.7))")
    write_vnnlib(tmp_path / "again.vnnlib", case.box, case.spec)
    (again,) = read_vnnlib(tmp_path / "again.vnnlib")
    assert again.spec.clauses[0].exact == case.spec.clauses[0].exact


def test_what_cannot_be_written_says_so(tmp_path):
    box = Box([0.0], [1.0])
    with pytest.raises(CannotWrite, match="cannot be written"):
        write_vnnlib(tmp_path / "nowhere" / "out.vnnlib", box, Spec.classify(0, 2))
    with pytest.raises(BadInput, match="one example"):
        write_vnnlib(tmp_path / "out.vnnlib", box, Spec.classify([0, 1], 2))


# -- bad input ----------------------------------------------------------------------------------

@pytest.mark.parametrize(("body", "error", "words"), [
    ("", BadInput, "no assertion"),
    (BOX, BadInput, "constrain the outputs"),
    (BOX + "(assert (or (<= Y_0 0) (<= X_0 0)))", BadInput, "constrain the outputs"),
    ("(assert (<= Y_0 0))", BadInput, "X_0 has no lower bound"),
    (BOX + "(assert (<= Y_0 Y_0))", BadInput, "line 6: .*without a variable"),
    (BOX + "(assert (<= (* Y_0 Y_1) 0))", Unsupported, "line 6: .*product"),
    (BOX + "(assert (<= (/ Y_0 3) 0))", Unsupported, "'/'"),
    (BOX + "(assert (and))", BadInput, "'and'"),
    (BOX + "(assert (or (<= Y_0 0) Y_1))", BadInput, "'or'"),
    (BOX + "(assert)", BadInput, "0 formulas|'assert'"),
    (BOX + "(assert (<= Y_0))", BadInput, "two operands"),
    (BOX + "(and (<= Y_0 0) (<= Y_1 0))", BadInput, "assert|not allowed"),
    (BOX + "(<= Y_0 0)", BadInput, "outside"),
    (BOX + "hello", BadInput, "hello stands outside"),
    (BOX + "(assert (<= (<= Y_0 0) 1))", BadInput, "number is expected"),
    (BOX + "(declare-const Z_0 Real)", BadInput, "Z_0"),
    (BOX + "(declare-const X_01 Real)", BadInput, "X_01"),
    (BOX + "(declare-const X_5 Real)(assert (<= Y_0 0))", BadInput, "X_2 is not declared"),
    (BOX + "(declare-const X_2 Int)", Unsupported, "Int"),
    (BOX + "(vnnlib-version <2.0>)", Unsupported, "vnnlib-version"),
    (BOX + "(assert (or (and (<= X_0 -2) (<= Y_0 0)) (<= Y_1 0)))", BadInput, "empty: X_0"),
    (BOX + "(assert (< X_0 -1))(assert (<= Y_0 0))", BadInput, "empty: X_0"),
    (BOX + "(assert (<= (* 0.333333333333333333333 Y_0) 1))", Unsupported, "coefficient of Y_0"),
    (BOX + "(assert (<= (+ Y_0 1e-3000 1) 1))", Unsupported, "digits"),
])
def test_malformed_files_are_named(tmp_path, body, error, words):
    with pytest.raises(error, match=words) as caught:
        read(tmp_path, body)
    assert "case.vnnlib" in str(caught.value)
    assert len(str(caught.value)) <= 300
    assert str(caught.value).isprintable()


def test_limits_are_checked_before_work_is_done(tmp_path):
    start = time.perf_counter()
    choice = "(assert (or (<= Y_0 0) (<= Y_1 0)))"
    with pytest.raises(LimitExceeded, match="clauses"):
        read(tmp_path, BOX + choice * 60)
    with pytest.raises(LimitExceeded, match="clauses"):
        inner_choices = "(or (<= Y_0 0) (<= Y_1 0))" * 60
        read(tmp_path, BOX + f"(assert (or (<= Y_0 0) (and {inner_choices})))")
    with pytest.raises(LimitExceeded, match="nested"):
        read(tmp_path, BOX + "(assert " + "(and " * 200_000)
    with pytest.raises(LimitExceeded, match="characters"):
        read(tmp_path, BOX + f"(assert (<= Y_0 0.{'1' * 10_000_000}))")
    with pytest.raises(LimitExceeded, match="size"):
        read(tmp_path, BOX + ";" + "x" * 2000, limits=Limits(size=1000))
    with pytest.raises(LimitExceeded, match="comparisons"):
        read(tmp_path, BOX + choice * 6, limits=Limits(atoms=100))
    bomb = tmp_path / "bomb.vnnlib.gz"
    bomb.write_bytes(gzip.compress(b" " * (200 << 20), 1))
    with pytest.raises(LimitExceeded, match="size"):
        read_vnnlib(bomb)
    assert time.perf_counter() - start < 6


def test_a_long_comment_is_read_quickly(tmp_path):
    body = BOX + ";" + "x (y " * 6_000_000 + "\n(assert (<= Y_0 0))"
    start = time.perf_counter()
    assert len(read(tmp_path, body)) == 1
    assert time.perf_counter() - start < 2


def test_deep_but_legal_nesting(tmp_path):
    body = "(or (<= Y_0 0) (and (<= Y_1 0) " * 200 + "(<= Y_0 -1)" + "))" * 200
    (case,) = read(tmp_path, BOX + f"(assert {body})")
    assert len(case.spec.clauses) == 201
    assert case.spec.violated(None, np.array([[0.0, 5.0], [1.0, 0.0], [1.0, 1.0]])
                              ).tolist() == [True, False, False]


def test_compressed_files(tmp_path):
    text = (b"(declare-const X_0 Real)(declare-const Y_0 Real)\r\n"
            b"(assert (and (>= X_0 0) (<= X_0 1)))(assert (<= Y_0 0))")
    path = tmp_path / "a.vnnlib.gz"
    packed = gzip.compress(text)
    path.write_bytes(packed)
    assert read_vnnlib(path).sha256 == hashlib.sha256(text).hexdigest()
    path.write_bytes(packed + gzip.compress(b"(assert (>= Y_0 0))"))
    assert len(read_vnnlib(path)[0].spec.clauses[0].bound) == 2
    for damaged in (packed[:-3], packed[:30], packed + b"junk"):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match="gzip"):
            read_vnnlib(path)


def test_what_is_no_file(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        read_vnnlib(tmp_path / "missing.vnnlib")
    with pytest.raises(BadInput, match="regular"):
        read_vnnlib(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="regular"):
        read_vnnlib(tmp_path / "pipe")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["(", ")", "assert", "and", "or", "<=", ">=", "=", "X_0", "Y_0",
                                 "declare-const", "Real", "1", "0.5", "-", "+", "*", "\n", ";",
                                 " ", "1e5", "not", "\u00e9", "(assert (<= Y_0 1))"]), max_size=40))
def test_random_text_is_read_or_refused(tokens):
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".vnnlib") as file:
        head = ("(declare-const X_0 Real)(declare-const Y_0 Real)"
                "(assert (and (>= X_0 0) (<= X_0 1)))")
        file.write((head + " ".join(tokens)).encode())
        file.flush()
        try:
            assert len(read_vnnlib(file.name)) >= 1
        except CertifyError as error:
            assert str(error).isprintable()


# -- shared data --------------------------------------------------------------------------------

def bad_files():
    manifest = DATA / "badinputs" / "manifest.json"
    cases = json.loads(manifest.read_text()) if manifest.is_file() else []
    return [c for c in cases if c["kind"] == "vnnlib"]


@needs_data
def test_bad_files_are_listed():
    assert len(bad_files()) >= 25


@pytest.mark.parametrize("case", bad_files(), ids=lambda c: Path(c["file"]).stem)
def test_bad_file_gets_its_class_and_word(case):
    classes = {"malformed": BadInput, "inconsistent": BadInput, "limit": LimitExceeded,
               "unsupported": Unsupported}
    start = time.perf_counter()

    def load():
        query = read_vnnlib(DATA / "badinputs" / case["file"])
        query.check_sizes(4, 3)
        return query

    if case["expect"] == "accept":
        assert len(load()) >= 1
    else:
        with pytest.raises(classes[case["expect"]]) as caught:
            load()
        assert case["message_mentions"] in str(caught.value)
        assert str(caught.value).isprintable()
    assert time.perf_counter() - start < 2


PUBLIC = DATA / "vnncomp_public"
SHAPES = [  # file, inputs, outputs, boxes, clauses of each box, rows of each clause
    ("acasxu/prop_6.vnnlib", 5, 5, 2, 4, 1),
    ("test/test_prop.vnnlib", 5, 5, 1, 1, 4),
    ("test/test_small.vnnlib", 1, 1, 1, 1, 1),
    ("lsnc/vnnlib/quadrotor2d_output_0.vnnlib.gz", 8, 10, 1, 17, 2),
    ("nn4sys/vnnlib/cardinality_0_500_128.vnnlib.gz", 154, 1, 500, 2, 1),
]


@needs_data
@pytest.mark.parametrize(("name", "inputs", "outputs", "boxes", "clauses", "rows"), SHAPES)
def test_competition_shapes(name, inputs, outputs, boxes, clauses, rows):
    query = read_vnnlib(PUBLIC / name)
    query.check_sizes(inputs, outputs)
    assert len(query) == boxes
    assert {len(c.spec.clauses) for c in query} == {clauses}
    assert {len(k.bound) for c in query for k in c.spec.clauses} == {rows}


@needs_data
def test_every_competition_file_is_read(tmp_path):
    with (PUBLIC / "instances.csv").open() as file:
        files = {r["vnnlib"]: r["vnnlib_sha256"] for r in csv.DictReader(file)}
    chosen = sorted(files)[::4] + ["nn4sys/vnnlib/cardinality_0_500_128.vnnlib.gz"]
    slowest = 0.0
    for name in chosen:
        start = time.perf_counter()
        query = read_vnnlib(PUBLIC / name)
        slowest = max(slowest, time.perf_counter() - start)
        assert query.sha256 == files[name]
        for case in query.cases[:3]:
            low, high = inner_float32(case)
            assert (low <= high).all()
    assert slowest < 3
