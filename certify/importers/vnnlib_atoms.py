"""Comparisons of a VNN-LIB file as bounds of one input, or as rows over inputs and outputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from certify.core.decimals import Numeral, enclose, exact_product, exact_sum, parse_numeral
from certify.core.errors import BadInput, Unsupported, one_line

_VARIABLE = re.compile(r"([XY])_(0|[1-9][0-9]{0,8})")
COMPARISONS = ("<=", ">=", "<", ">", "=")


class Variable(NamedTuple):
    """``X_number`` or ``Y_number``."""

    is_input: bool
    number: int


class Bound(NamedTuple):
    """``X_number <= value`` (upper) or ``X_number >= value``; strict for ``<`` and ``>``."""

    number: int
    upper: bool
    value: Numeral
    strict: bool


class RowAtom(NamedTuple):
    """``sum of coefficient * variable <= bound``; coefficients are exact floats."""

    terms: tuple[tuple[Variable, float], ...]
    bound: Numeral
    strict: bool


class Conjunction(NamedTuple):
    """Comparisons that must all hold."""

    bounds: tuple[Bound, ...] | list[Bound]
    rows: tuple[RowAtom, ...] | list[RowAtom]


class Linear(NamedTuple):
    """``sum of coefficient * variable + constant``, exactly."""

    terms: dict[Variable, Decimal]
    constant: Decimal

    def plus(self, other: Linear, factor: Decimal = Decimal(1)) -> Linear:
        """``self + factor * other``."""
        terms = dict(self.terms)
        for variable, value in other.terms.items():
            own = terms.get(variable, Decimal(0))
            terms[variable] = exact_sum(own, exact_product(factor, value))
        return Linear(terms, exact_sum(self.constant, exact_product(factor, other.constant)))


@dataclass
class Symbols:
    """The declared variables, and the numerals met so far."""

    variables: dict[str, Variable] = field(default_factory=dict)
    numerals: dict[str, Numeral] = field(default_factory=dict)

    def declare(self, name: str, kind: str) -> None:
        """Enter a variable.

        Raises:
            BadInput: a name that is not X_i or Y_i, or one declared before.
            Unsupported: a type other than Real.
        """
        match = _VARIABLE.fullmatch(name)
        if match is None:
            raise BadInput(f"variable {_short(name)}: names must be X_<number> or Y_<number>")
        if kind != "Real":
            raise Unsupported(f"{name} has type {_short(kind)}: only Real is supported")
        if name in self.variables:
            raise BadInput(f"{name} is declared twice")
        self.variables[name] = Variable(match[1] == "X", int(match[2]))

    def count(self, is_input: bool) -> int:
        """How many inputs (or outputs) are declared.

        Raises:
            BadInput: none, or an index is left out.
        """
        letter = "X" if is_input else "Y"
        indices = {v.number for v in self.variables.values() if v.is_input == is_input}
        if not indices:
            raise BadInput(f"no variable {letter}_0 is declared")
        if len(indices) != max(indices) + 1:
            missing = next(i for i in range(len(indices)) if i not in indices)
            raise BadInput(f"{letter}_{missing} is not declared, but {letter}_{max(indices)} is")
        return len(indices)

    def numeral(self, token: str) -> Numeral:
        """The number a token stands for."""
        known = self.numerals.get(token)
        if known is None:
            known = self.numerals[token] = parse_numeral(token)
        return known

    def linear(self, token: str) -> Linear:
        """A variable or a number as an expression."""
        variable = self.variables.get(token)
        if variable is not None:
            return Linear({variable: Decimal(1)}, Decimal(0))
        if _VARIABLE.fullmatch(token):
            raise BadInput(f"{token} is not declared")
        return Linear({}, self.numeral(token).exact)

    def atom(self, operator: str, left: str, right: str) -> Conjunction:
        """A comparison of two words; a bound of one input takes the short way."""
        variable = self.variables.get(left)
        if variable is not None and variable.is_input and operator != "=" and right[:1] not in "XY":
            return Conjunction((Bound(variable.number, operator[0] == "<", self.numeral(right),
                                      len(operator) == 1),), ())
        return compare(operator, self.linear(left), self.linear(right))


def compare(operator: str, left: Linear, right: Linear) -> Conjunction:
    """``left operator right`` as bounds and rows; an equation is two inequalities.

    Raises:
        BadInput: no variable is left in the comparison.
        Unsupported: a coefficient that no power of ten makes an exact float64.
    """
    gap = left.plus(right, Decimal(-1))
    strict = len(operator) == 1 and operator != "="
    sides = []
    if operator[0] in "<=":
        sides.append(_atom(gap, strict))
    if operator[0] in ">=":
        sides.append(_atom(Linear({}, Decimal(0)).plus(gap, Decimal(-1)), strict))
    return Conjunction(tuple(s for s in sides if isinstance(s, Bound)),
                       tuple(s for s in sides if isinstance(s, RowAtom)))


def _atom(gap: Linear, strict: bool) -> Bound | RowAtom:
    """``gap <= 0`` (or ``< 0``)."""
    terms = {v: c for v, c in gap.terms.items() if c}
    if not terms:
        raise BadInput("a comparison without a variable: remove it")
    limit = gap.constant.copy_negate()
    if len(terms) == 1:
        ((variable, factor),) = terms.items()
        if variable.is_input and abs(factor) == 1:
            value = _enclosed(exact_product(factor, limit))
            return Bound(variable.number, factor > 0, value, strict)
    scale = _whole(terms)
    exact = {v: exact_product(c, scale) for v, c in terms.items()}
    rounded = {v: _enclosed(c) for v, c in exact.items()}
    inexact = [v for v, c in rounded.items() if c.lo != c.hi]
    if inexact:
        name = "XY"[not inexact[0].is_input] + f"_{inexact[0].number}"
        raise Unsupported(f"the coefficient of {name} is no float64 number, also after scaling: "
                          "write it with fewer digits")
    return RowAtom(tuple((v, c.lo) for v, c in rounded.items()),
                   _enclosed(exact_product(limit, scale)), strict)


def _whole(terms: dict[Variable, Decimal]) -> Decimal:
    """1, or the power of ten that makes every coefficient a whole number where one is inexact."""
    inexact = [c for c in terms.values() if (e := _enclosed(c)).lo != e.hi]
    places = max((-int(c.normalize().as_tuple().exponent) for c in inexact), default=0)
    return Decimal(1).scaleb(min(max(places, 0), 400))


def _enclosed(number: Decimal) -> Numeral:
    try:
        return enclose(number)
    except OverflowError as error:
        raise BadInput(f"{_short(str(number))} is beyond the range of float64") from error


def add(operands: list[Linear]) -> Linear:
    """Sum of expressions."""
    return _folded(operands, lambda a, b: a.plus(b))


def subtract(operands: list[Linear]) -> Linear:
    """Difference of expressions; of one, its negative."""
    if len(operands) == 1:
        return Linear({}, Decimal(0)).plus(operands[0], Decimal(-1))
    return _folded(operands, lambda a, b: a.plus(b, Decimal(-1)))


def multiply(operands: list[Linear]) -> Linear:
    """Product of expressions of which at most one has variables.

    Raises:
        Unsupported: a product of variables.
    """

    def product(a: Linear, b: Linear) -> Linear:
        if a.terms and b.terms:
            raise Unsupported("a product of variables: only linear constraints are supported")
        many, one = (a, b) if a.terms else (b, a)
        return Linear({}, Decimal(0)).plus(many, one.constant)

    return _folded(operands, product)


def _folded(operands: list[Linear], step: Callable[[Linear, Linear], Linear]) -> Linear:
    total = operands[0]
    for operand in operands[1:]:
        total = step(total, operand)
    return total


def _short(text: str) -> str:
    return one_line(text if len(text) <= 40 else f"{text[:37]}...")
