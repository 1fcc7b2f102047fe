"""VNN-LIB 1.0 text to formulas, in one pass without recursion.

A formula is kept as the comparisons that must hold plus a list of disjunctions, each a list of
conjunctions: the shape the competition's files have, so that nothing is multiplied out before it
must be, and never beyond a stated number of clauses.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from certify.core.errors import BadInput, CertifyError, LimitExceeded, Unsupported, one_line
from certify.importers import vnnlib_atoms as atoms
from certify.importers.vnnlib_atoms import COMPARISONS, Conjunction, Linear, Symbols, compare
from certify.importers.vnnlib_text import Limits, Text

_TOKEN = re.compile(
    r"\(\s*+(<=|>=|<|>|=)\s++([^\s()]++)\s++([^\s()]++)\s*+\)"  # a comparison of two words
    r"|(\()\s*+([^\s()]++)?+"  # an opening parenthesis and its operator
    r"|(\))"
    r"|([^\s()]++)")
_ATOM, _BARE, _OPEN, _CLOSE, _WORD = 3, 4, 5, 6, 7  # Match.lastindex of each
_DEEPEST = 1000
_ARITHMETIC: dict[str, Callable[[list[Linear]], Linear]] = {
    "+": atoms.add, "-": atoms.subtract, "*": atoms.multiply}
_FOREIGN = {"not", "=>", "xor", "ite", "let", "distinct", "/", "!=", "==", "^", "vnnlib-version",
            "declare-network", "declare-fun", "define-fun", "forall", "exists"}
_KNOWN = {"assert", "declare-const", "and", "or", *COMPARISONS, *_ARITHMETIC}


class Formula(NamedTuple):
    """``bounds`` and ``rows`` hold, and one conjunction of each disjunction in ``choices``."""

    bounds: tuple[atoms.Bound, ...] | list[atoms.Bound]
    rows: tuple[atoms.RowAtom, ...] | list[atoms.RowAtom]
    choices: tuple[list[Conjunction], ...] | list[list[Conjunction]]


@dataclass
class _Frame:
    head: str
    position: int
    items: list[Formula | Linear | str] = field(default_factory=list)


def parse(text: Text, limits: Limits) -> tuple[Symbols, Formula]:
    """Declared symbols and the conjunction of all assertions.

    Raises:
        BadInput: malformed text; the message starts with the line number.
        Unsupported: valid VNN-LIB or SMT-LIB beyond linear constraints joined by and/or.
        LimitExceeded: too many clauses, or nesting too deep.
    """
    reader = _Reader(limits)
    position = 0
    try:
        for match in _TOKEN.finditer(text.plain):
            position = match.start()
            reader.take(match)
        position = len(text.plain.rstrip())
        reader.finish()
    except CertifyError as error:
        raise type(error)(f"line {text.line(reader.blame or position)}: {error}") from error
    if not reader.asserted:
        raise BadInput("no assertion: nothing to verify")
    return reader.symbols, _conjoin(reader.asserted)


class _Reader:
    """The stack of open parentheses."""

    def __init__(self, limits: Limits) -> None:
        self.symbols, self.limits = Symbols(), limits
        self.asserted: list[Formula] = []
        self.blame = 0  # position of the construct at fault, where it is not the current token
        self._frames: list[_Frame] = []
        self._seen: dict[str, Formula] = {}

    def take(self, match: re.Match[str]) -> None:
        """The next token."""
        kind = match.lastindex
        if kind == _ATOM:
            self._atom(match)
        elif kind == _CLOSE:
            self._close()
        elif kind == _OPEN:
            self._open(match[5], match.start())
        elif kind == _BARE:
            raise BadInput("'(' must be followed by an operator")
        elif not self._frames:
            raise BadInput(f"{_short(match[7])} stands outside of any parentheses")
        else:
            self._frames[-1].items.append(match[7])

    def finish(self) -> None:
        """End of the text."""
        if self._frames:
            self.blame = self._frames[-1].position
            raise BadInput(f"'({_short(self._frames[-1].head)}' is never closed: ')' is missing")

    def _atom(self, match: re.Match[str]) -> None:
        if not self._frames:
            raise BadInput("a comparison outside of (assert ...)")
        text = match[0]
        known = self._seen.get(text)
        if known is None:
            found = self.symbols.atom(match[1], match[2], match[3])
            known = self._seen[text] = Formula(found.bounds, found.rows, ())
        self._frames[-1].items.append(known)

    def _open(self, head: str, position: int) -> None:
        if head in _FOREIGN:
            raise Unsupported(f"'{head}' is not supported: write VNN-LIB 1.0 with linear "
                              "comparisons, and, or")
        if head not in _KNOWN:
            what = "operator" if self._frames else "command"
            raise BadInput(f"unknown {what} {_short(head)}")
        if (head in ("assert", "declare-const")) == bool(self._frames):
            raise BadInput(f"'{head}' is not allowed here")
        if len(self._frames) >= _DEEPEST:
            raise LimitExceeded(f"parentheses are nested deeper than {_DEEPEST}")
        self._frames.append(_Frame(head, position))

    def _close(self) -> None:
        if not self._frames:
            raise BadInput("')' without a matching '('")
        frame = self._frames.pop()
        self.blame = frame.position
        result = self._reduce(frame.head, frame.items)
        if result is not None:
            self._frames[-1].items.append(result)
        self.blame = 0

    def _reduce(self, head: str, items: list[Formula | Linear | str]) -> Formula | Linear | None:
        if head == "declare-const":
            if len(items) != 2 or not all(isinstance(i, str) for i in items):
                raise BadInput("a declaration must read (declare-const <name> Real)")
            self.symbols.declare(str(items[0]), str(items[1]))
            return None
        if head in ("assert", "and", "or"):
            return self._logic(head, items)
        operands = [self._operand(i) for i in items]
        if head in _ARITHMETIC:
            if not operands:
                raise BadInput(f"'{head}' without an operand")
            return _ARITHMETIC[head](operands)
        if len(operands) < 2:
            raise BadInput(f"'{head}' needs two operands")
        pairs = [compare(head, a, b) for a, b in itertools.pairwise(operands)]
        return _conjoin([Formula(p.bounds, p.rows, ()) for p in pairs])

    def _logic(self, head: str, items: list[Formula | Linear | str]) -> Formula | None:
        formulas = [i for i in items if isinstance(i, Formula)]
        if len(formulas) != len(items) or not items:
            raise BadInput(f"'{head}' needs comparisons, or and/or of them, as operands")
        if head == "assert":
            if len(formulas) != 1:
                raise BadInput(f"an assertion of {len(formulas)} formulas: join them with and")
            self.asserted.append(formulas[0])
            return None
        if len(formulas) == 1:
            return formulas[0]
        if head == "and":
            return _conjoin(formulas)
        joined = [c for f in formulas for c in conjunctions(f, self.limits)]
        if len(joined) > self.limits.clauses:
            raise _too_many(len(joined), self.limits)
        return Formula((), (), [joined])

    def _operand(self, item: Formula | Linear | str) -> Linear:
        if isinstance(item, str):
            return self.symbols.linear(item)
        if isinstance(item, Linear):
            return item
        raise BadInput("a comparison where a number is expected")


def conjunctions(formula: Formula, limits: Limits) -> list[Conjunction]:
    """The disjunctive normal form.

    Raises:
        LimitExceeded: more clauses or comparisons than ``limits`` allow; found before expanding.
    """
    if not formula.choices:
        return [Conjunction(formula.bounds, formula.rows)]
    check_expansion(formula, limits)
    own = Conjunction(formula.bounds, formula.rows)
    return [merge((own, *picked)) for picked in itertools.product(*formula.choices)]


def check_expansion(formula: Formula, limits: Limits) -> None:
    """Raise `LimitExceeded` if multiplying out the choices would pass the limits."""
    count = math.prod(len(c) for c in formula.choices)
    if count > limits.clauses:
        raise _too_many(count, limits)
    size = sum(count // len(choice) * sum(len(c.bounds) + len(c.rows) for c in choice)
               for choice in formula.choices)
    if size > limits.atoms:
        raise LimitExceeded(f"and/or expand to {size} comparisons in {count} clauses "
                            f"(at most {limits.atoms} comparisons)")


def merge(parts: tuple[Conjunction, ...]) -> Conjunction:
    """All comparisons of all parts."""
    return Conjunction([b for p in parts for b in p.bounds], [r for p in parts for r in p.rows])


def _conjoin(formulas: list[Formula]) -> Formula:
    return Formula([b for f in formulas for b in f.bounds], [r for f in formulas for r in f.rows],
                   [c for f in formulas for c in f.choices])


def _too_many(count: int, limits: Limits) -> LimitExceeded:
    shown = str(count) if count < 10**9 else f"2^{count.bit_length() - 1} or more"
    return LimitExceeded(f"and/or expand to {shown} clauses (at most {limits.clauses})")


def _short(text: str) -> str:
    return one_line(text if len(text) <= 40 else f"{text[:37]}...")
