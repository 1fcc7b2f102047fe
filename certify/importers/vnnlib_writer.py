"""Writing a box and a specification as VNN-LIB 1.0."""

from __future__ import annotations

import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from certify.core.arrays import is_tensor
from certify.core.atomic import write_whole
from certify.core.errors import BadInput
from certify.core.region import Box
from certify.core.spec import Clause, Spec


def write_vnnlib(path: str | os.PathLike[str], box: Box, spec: Spec) -> None:
    """Write the property that no point of ``box`` is unsafe; every number is written exactly.

    Args:
        path: replaced only once the new file is complete.
        box: one example; its elements become ``X_0, X_1, ...`` in row-major order.
        spec: not per example.

    Raises:
        BadInput: a batch of examples, which one file cannot state.
        CannotWrite: the file system refused.
    """
    if spec.batch != 1 or (box.shape is not None and box.batch != 1):
        raise BadInput("a VNN-LIB file states one example: write one file per example")
    text = "\n".join(_lines(box, spec)) + "\n"
    write_whole(Path(path), text.encode("ascii"))


def _lines(box: Box, spec: Spec) -> Iterator[str]:
    lower, upper = (_flat(e) for e in (box.lower, box.upper))
    if spec.num_inputs not in (None, len(lower)):
        raise BadInput(f"the specification mentions {spec.num_inputs} inputs, the box has "
                       f"{len(lower)}")
    yield from (f"(declare-const X_{i} Real)" for i in range(len(lower)))
    yield from (f"(declare-const Y_{i} Real)" for i in range(spec.num_outputs))
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        yield f"(assert (>= X_{i} {_number(low)}))"
        yield f"(assert (<= X_{i} {_number(high)}))"
    if len(spec.clauses) == 1:
        yield from (f"(assert {row})" for row in _rows(spec.clauses[0]))
        return
    yield "(assert (or"
    yield from (f"  (and {' '.join(_rows(clause))})" for clause in spec.clauses)
    yield "))"


def _flat(values: Any) -> np.ndarray:
    plain = values.detach().cpu().numpy() if is_tensor(values) else values
    return np.asarray(plain, dtype=np.float64).reshape(-1)


def _rows(clause: Clause) -> Iterator[str]:
    for r in range(len(clause.bound)):
        terms = _terms(clause.y[0, r], "Y")
        if clause.x is not None:
            terms += _terms(clause.x[0, r], "X")
        exact = Decimal(float(clause.bound[r])) if clause.exact is None else clause.exact[r]
        yield _row(terms, exact, "<" if clause.strict[r] else "<=")


def _terms(coefficients: np.ndarray, letter: str) -> list[tuple[str, float]]:
    return [(f"{letter}_{i}", float(coefficients[i])) for i in np.flatnonzero(coefficients)]


def _row(terms: list[tuple[str, float]], bound: Decimal, operator: str) -> str:
    """``sum of terms operator bound``, in the plainest form there is."""
    flipped = operator.replace("<", ">")
    if len(terms) == 1 and terms[0][1] == 1:
        return f"({operator} {terms[0][0]} {_text(bound)})"
    if len(terms) == 1 and terms[0][1] == -1:
        return f"({flipped} {terms[0][0]} {_text(bound.copy_negate())})"
    if not bound and sorted(c for _, c in terms) == [-1, 1]:
        (less, _), (more, _) = sorted(terms, key=lambda term: -term[1])
        return f"({operator} {less} {more})"
    parts = [name if c == 1 else f"(* {_number(c)} {name})" for name, c in terms]
    total = parts[0] if len(parts) == 1 else f"(+ {' '.join(parts)})"
    return f"({operator} {total} {_text(bound)})"


def _number(value: float) -> str:
    """A float exactly: its decimal expansion is finite."""
    return _text(Decimal(float(value)))


def _text(value: Decimal) -> str:
    return str(value + 0) if not value else str(value)
