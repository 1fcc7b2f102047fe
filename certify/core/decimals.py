"""Decimal numerals of untrusted text, enclosed by float64 numbers at bounded cost.

``Fraction("1e-10000000")`` takes seconds and a binary float rounds to nearest, so neither will do:
a lower end must be rounded down and an upper end up. `decimal.Decimal` holds any numeral exactly in
the size of its text, and its comparisons are exact and cheap whatever the exponents.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import (
    Clamped,
    Context,
    Decimal,
    DecimalException,
    Inexact,
    InvalidOperation,
    Overflow,
    Subnormal,
    Underflow,
)
from fractions import Fraction

from certify.core.errors import BadInput, LimitExceeded, Unsupported, one_line

_NUMERAL = re.compile(r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?+")
LONGEST_NUMERAL = 100_000
_EXACT_DIGITS = 2_000  # sums whose exact result needs more digits are refused
_CHEAP_EXPONENT = 2_000
_EXACT = Context(prec=_EXACT_DIGITS, Emin=-(10**6), Emax=10**6,
                 traps=[Inexact, InvalidOperation, Overflow, Underflow, Subnormal, Clamped])


@dataclass(frozen=True, slots=True)
class Numeral:
    """A decimal number and the float64 numbers around it.

    Attributes:
        lo: largest float64 not above it.
        hi: smallest float64 not below it; equal to ``lo`` exactly when the number is a float64.
        exact: the number.
    """

    lo: float
    hi: float
    exact: Decimal

    def __neg__(self) -> Numeral:
        return Numeral(-self.hi, -self.lo, self.exact.copy_negate())

    def __lt__(self, other: Numeral) -> bool:
        """Exact order; decided by the floats unless both numbers share them."""
        if self.lo != other.lo:
            return self.lo < other.lo
        if self.hi != other.hi:
            return self.hi < other.hi
        return self.lo != self.hi and self.exact < other.exact

    @property
    def identity(self) -> float | Decimal:
        """Equal for equal numbers, whatever their spelling."""
        return self.lo if self.lo == self.hi else self.exact


def parse_numeral(token: str) -> Numeral:
    """A decimal numeral such as ``-0.5``, ``3``, ``1e-6``.

    Raises:
        BadInput: not a numeral, or beyond the range of float64.
        LimitExceeded: longer than `LONGEST_NUMERAL` characters, or an exponent beyond 10**18.
    """
    if len(token) > LONGEST_NUMERAL:
        raise LimitExceeded(f"a numeral of {len(token)} characters (at most {LONGEST_NUMERAL})")
    if _NUMERAL.fullmatch(token) is None:
        raise BadInput(f"{_short(token)} is not a decimal number")
    try:
        return enclose(Decimal(token), float(token))
    except DecimalException as error:
        raise LimitExceeded(f"the exponent of {_short(token)} is too large") from error
    except OverflowError as error:
        raise BadInput(f"{_short(token)} is beyond the range of float64") from error


def enclose(exact: Decimal, near: float | None = None) -> Numeral:
    """The float64 numbers around ``exact``; ``near`` is the nearest one, if known.

    Raises:
        OverflowError: beyond the range of float64.
    """
    near = float(exact) if near is None else near
    if math.isinf(near):
        raise OverflowError("beyond float64")
    stored = Decimal(near)
    if stored == exact:
        return Numeral(near, near, exact)
    lo, hi = (near, math.nextafter(near, math.inf)) if stored < exact else (
        math.nextafter(near, -math.inf), near)
    if math.isinf(lo) or math.isinf(hi):
        raise OverflowError("beyond float64")
    return Numeral(lo, hi, exact)


def exact_sum(a: Decimal, b: Decimal) -> Decimal:
    """``a + b`` without rounding.

    Raises:
        Unsupported: the exact result needs more than 2000 digits.
    """
    if not a or not b:
        return a or b
    try:
        return _EXACT.add(a, b)
    except DecimalException as error:
        raise Unsupported("an exact sum of these numerals needs too many digits: "
                          "write numbers of similar size") from error


def exact_product(a: Decimal, b: Decimal) -> Decimal:
    """``a * b`` without rounding; raises as `exact_sum`."""
    if a.copy_abs() == 1:
        return b if a > 0 else b.copy_negate()
    if b.copy_abs() == 1:
        return a if b > 0 else a.copy_negate()
    try:
        return _EXACT.multiply(a, b)
    except DecimalException as error:
        raise Unsupported("an exact product of these numerals needs too many digits: "
                          "write shorter numbers") from error


def as_fraction(number: Decimal) -> Fraction | None:
    """The number as a fraction, or None where its size would make that expensive."""
    _, digits, exponent = number.as_tuple()
    cheap = isinstance(exponent, int) and abs(exponent) + len(digits) <= _CHEAP_EXPONENT
    return Fraction(number) if cheap else None


def _short(token: str) -> str:
    return one_line(token if len(token) <= 40 else f"{token[:37]}...")
