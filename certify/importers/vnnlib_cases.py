"""Formulas of a VNN-LIB file as input boxes, each with the clauses to refute inside it."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.decimals import Numeral
from certify.core.errors import BadInput, LimitExceeded
from certify.core.region import Box
from certify.core.spec import LARGEST_SPEC, Clause, Spec
from certify.importers.vnnlib_atoms import Bound, Conjunction, RowAtom, Symbols, Variable
from certify.importers.vnnlib_parser import Formula, check_expansion, merge
from certify.importers.vnnlib_text import Limits

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray


@dataclass(frozen=True, eq=False)
class Case:
    """One input box of a query and the unsafe set to refute inside it.

    Attributes:
        box: over the flattened inputs ``(num_inputs,)``, rounded outward to float64.
        spec: the clauses; its rows may mention the inputs.
        inner_lower: smallest float64 numbers not below the exact lower ends.
        inner_upper: largest float64 numbers not above the exact upper ends.
        exact_lower: the lower ends as the file states them.
        exact_upper: the upper ends as the file states them.
    """

    box: Box
    spec: Spec
    inner_lower: NDArray[np.float64]
    inner_upper: NDArray[np.float64]
    exact_lower: tuple[Decimal, ...] = field(repr=False)
    exact_upper: tuple[Decimal, ...] = field(repr=False)

    def contains(self, x: Any) -> NDArray[np.bool_]:
        """Which points ``(B, num_inputs)`` lie in the exact box, with no slack at all."""
        point = np.asarray(x, dtype=np.float64)
        inside = (point >= self.inner_lower) & (point <= self.inner_upper)
        return np.asarray(inside.all(axis=-1))


def inner(case: Case, dtype: DTypeLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """The smallest and largest numbers of a float type inside the exact box, per input.

    An input without any such number, typically one fixed to a decimal like 0.7, gets the decimal
    rounded to float64 and then to ``dtype`` in both places: that is the number a runtime reads
    from the file, and the only sensible input to run the network on. Such a point is not in the
    exact box; `Case.contains` says so.
    """
    kind = np.dtype(dtype)
    with np.errstate(over="ignore"):
        lower, upper = case.inner_lower.astype(kind), case.inner_upper.astype(kind)
    low, high = np.asarray(-np.inf, kind), np.asarray(np.inf, kind)
    lower = np.where(lower < case.inner_lower, np.nextafter(lower, high), lower)
    upper = np.where(upper > case.inner_upper, np.nextafter(upper, low), upper)
    for i in np.flatnonzero(lower > upper):
        lower[i] = upper[i] = np.float64(float(case.exact_lower[i])).astype(kind)
    return lower, upper


def inner_float32(case: Case) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`inner` for float32."""
    return inner(case, np.float32)


@dataclass
class _Ends:
    """Tightest bounds so far; the strict ones are remembered by variable and side."""

    lower: list[Numeral | None]
    upper: list[Numeral | None]
    strict: dict[tuple[int, bool], Numeral]

    def copy(self) -> _Ends:
        return _Ends(list(self.lower), list(self.upper), dict(self.strict))

    def tighten(self, bounds: Sequence[Bound]) -> None:
        for index, upper, value, strict in bounds:
            side = self.upper if upper else self.lower
            known = side[index]
            if known is None or (value < known if upper else known < value):
                side[index] = value
            if strict:
                before = self.strict.get((index, upper), value)
                self.strict[index, upper] = min(before, value) if upper else max(before, value)

    def empty(self) -> str | None:
        """What is wrong with the box if it has no point."""
        for i, (low, high) in enumerate(zip(self.lower, self.upper, strict=True)):
            if low is not None and high is not None and high < low:
                return (f"the input box is empty: X_{i} has lower bound {_shown(low)} above upper "
                        f"bound {_shown(high)}")
        for (i, upper), value in self.strict.items():
            other = self.lower[i] if upper else self.upper[i]
            if other is not None and not other < value and not value < other:
                return f"the input box is empty: X_{i} has a strict bound equal to its other bound"
        return None

    def key(self) -> Hashable:
        """Equal for equal exact boxes."""
        pairs = zip(self.lower, self.upper, strict=True)
        return (tuple(v.identity for pair in pairs for v in pair if v is not None),
                tuple(sorted((k, v.lo) for k, v in self.strict.items())))


def build(symbols: Symbols, formula: Formula, limits: Limits) -> tuple[Case, ...]:
    """The cases of a query; disjuncts with the same input box share one.

    Raises:
        BadInput: an input without a bound, an empty box, or a disjunct that does not constrain the
            outputs.
        LimitExceeded: too many clauses or coefficients.
    """
    num_inputs, num_outputs = symbols.count(True), symbols.count(False)
    check_expansion(formula, limits)
    common = _Ends([None] * num_inputs, [None] * num_inputs, {})
    common.tighten(formula.bounds)
    if (problem := common.empty()) is not None:
        raise BadInput(problem)
    found: dict[Hashable, tuple[_Ends, list[list[RowAtom]]]] = {}
    shared_key = None if formula.choices else common.key()
    for picked in itertools.product(*formula.choices):
        ends = _narrowed(common, picked)
        if ends is None:
            continue
        if ends is common:
            shared_key = shared_key or common.key()
        key = shared_key if ends is common else ends.key()
        clause = [*formula.rows, *merge(picked).rows]
        if not clause:
            raise BadInput("a disjunct does not constrain the outputs: every input would be unsafe")
        found.setdefault(key, (ends, []))[1].append(clause)
    if not found:
        raise BadInput("every combination of the input constraints is empty")
    return _cases(list(found.values()), num_inputs, num_outputs)


def _narrowed(common: _Ends, picked: tuple[Conjunction, ...]) -> _Ends | None:
    """The box of one combination of disjuncts; None where two of them contradict each other."""
    sources = [p.bounds for p in picked if p.bounds]
    if not sources:
        return common
    ends = common.copy()
    for bounds in sources:
        ends.tighten(bounds)
    problem = ends.empty()
    if problem is None:
        return ends
    if len(sources) > 1:
        return None  # the file combines disjunctions over inputs: some combinations must be empty
    raise BadInput(problem)


def _cases(found: list[tuple[_Ends, list[list[RowAtom]]]], num_inputs: int,
           num_outputs: int) -> tuple[Case, ...]:
    strict_rows = sum(len(e.strict) * len(clauses) for e, clauses in found)
    rows = sum(len(c) for _, clauses in found for c in clauses) + strict_rows
    mixed = strict_rows or any(v.is_input for _, clauses in found for c in clauses
                               for row in c for v, _ in row.terms)
    if rows * (num_outputs + (num_inputs if mixed else 0)) > LARGEST_SPEC:
        raise LimitExceeded(f"{rows} rows over {num_outputs} outputs have more than {LARGEST_SPEC} "
                            "coefficients: split the file into several")
    return tuple(_case(e, clauses, num_inputs, num_outputs) for e, clauses in found)


def _case(ends: _Ends, clauses: list[list[RowAtom]], num_inputs: int, num_outputs: int) -> Case:
    lower, upper = _complete(ends.lower, "lower"), _complete(ends.upper, "upper")
    extra = [_strict_row(i, upper_side, v) for (i, upper_side), v in ends.strict.items()]
    spec = Spec(tuple(_clause([*c, *extra], num_inputs, num_outputs) for c in clauses), num_outputs)
    box = Box(np.array([v.lo for v in lower]), np.array([v.hi for v in upper]))
    return Case(box, spec, np.array([v.hi for v in lower]), np.array([v.lo for v in upper]),
                tuple(v.exact for v in lower), tuple(v.exact for v in upper))


def _complete(side: list[Numeral | None], name: str) -> list[Numeral]:
    for i, value in enumerate(side):
        if value is None:
            raise BadInput(f"X_{i} has no {name} bound")
    return [v for v in side if v is not None]


def _strict_row(index: int, upper: bool, value: Numeral) -> RowAtom:
    """``X < v`` as a row: the box is closed, the exact set is not."""
    sign = 1.0 if upper else -1.0
    return RowAtom(((Variable(True, index), sign),), value if upper else -value, True)


def _clause(rows: list[RowAtom], num_inputs: int, num_outputs: int) -> Clause:
    y = np.zeros((1, len(rows), num_outputs))
    mixed = any(v.is_input for row in rows for v, _ in row.terms)
    x = np.zeros((1, len(rows), num_inputs)) if mixed else None
    outputs = False
    for r, row in enumerate(rows):
        for variable, coefficient in row.terms:
            if not variable.is_input:
                outputs = True
                y[0, r, variable.number] = coefficient
            elif x is not None:
                x[0, r, variable.number] = coefficient
    if not outputs:
        raise BadInput("a disjunct does not constrain the outputs: every input would be unsafe")
    exact = None if all(row.bound.lo == row.bound.hi for row in rows) else (
        tuple(row.bound.exact for row in rows))
    return Clause(y, x, np.array([row.bound.hi for row in rows]),
                  np.array([row.strict for row in rows]), exact)


def _shown(value: Numeral) -> str:
    text = str(value.exact)
    return text if len(text) <= 40 else f"{value.lo!r}..."
