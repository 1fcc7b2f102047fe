"""Decimal numerals: enclosed by the tightest floats, ordered exactly, refused when malformed."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certify.core.decimals import parse_numeral
from certify.core.errors import BadInput


def exact(token):
    return Fraction(token)


decimals = st.builds(
    lambda s, a, b, e: f"{s}{a}.{b}{e}",
    st.sampled_from(["", "-", "+"]),
    st.integers(0, 10**9),
    st.integers(0, 10**25).map(str),
    st.sampled_from(["", "e-5", "E+3", "e-300", "e290"]),
)


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(
        decimals,
        st.floats(allow_nan=False, allow_infinity=False).map(repr),
        st.integers(-(10**30), 10**30).map(str),
    )
)
def test_numerals_are_enclosed_as_tightly_as_floats_allow(token):
    number = parse_numeral(token)
    assert Fraction(number.lo) <= exact(token) <= Fraction(number.hi)
    assert number.hi <= math.nextafter(number.lo, math.inf)
    assert (number.lo == number.hi) == (Fraction(number.lo) == exact(token))


@settings(max_examples=300, deadline=None)
@given(decimals, decimals)
def test_numerals_are_ordered_exactly(a, b):
    assert (parse_numeral(a) < parse_numeral(b)) == (exact(a) < exact(b))
    nearby = a + "1" if "e" not in a.lower() else a
    assert (parse_numeral(a) < parse_numeral(nearby)) == (exact(a) < exact(nearby))


@pytest.mark.parametrize(
    "token",
    [
        "1e-999999999",
        "-1e-999999999",
        "0." + "3" * 5000,
        "-" + "9" * 300 + "." + "9" * 3000,
        "1e-400",
        "0e999999999999",
    ],
)
def test_extreme_numerals_are_enclosed_quickly(token):
    start = time.perf_counter()
    number = parse_numeral(token)
    assert time.perf_counter() - start < 0.1
    assert number.lo <= number.hi <= math.nextafter(number.lo, math.inf)
    if len(token) > 1000:
        middle = Fraction(*number.exact.as_integer_ratio())
        assert Fraction(number.lo) < middle < Fraction(number.hi)


@pytest.mark.parametrize(
    "token",
    [
        "1e999",
        "-1e400",
        "1" + "0" * 400,
        "inf",
        "nan",
        "0x10",
        "1_0",
        "1,5",
        ".",
        "e5",
        "1e",
        "--1",
        "\u0661",
        "1e99999999999999999999",
        "1" * 100_001,
    ],
)
def test_bad_numerals_are_refused(token):
    with pytest.raises(BadInput):
        parse_numeral(token)
