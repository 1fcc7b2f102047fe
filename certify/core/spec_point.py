"""Whether concrete points satisfy the rows of clauses: exact, in floats wherever that decides."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from certify.core.arrays import is_tensor
from certify.core.decimals import as_fraction, enclose
from certify.core.errors import BadInput
from certify.core.outward import UNDERFLOW, dot_error

if TYPE_CHECKING:
    from numpy.typing import NDArray


class RowsLike(Protocol):
    """What this file needs of a clause."""

    y: NDArray[np.float64]
    x: NDArray[np.float64] | None
    bound: NDArray[np.float64]
    strict: NDArray[np.bool_]
    exact: tuple[Decimal, ...] | None


def satisfied(clauses: Sequence[Any], x: Any, y: Any) -> NDArray[np.bool_]:
    """For each point whether all rows of any clause hold: bool ``(B,)``.

    A float64 evaluation decides where it is further from the threshold than its rounding error;
    rational arithmetic decides the rest. A threshold too long for that counts as not reached.
    """
    outputs = _points(y, clauses[0].y.shape[2], "outputs")
    needs_x = any(c.x is not None for c in clauses)
    inputs = None
    if needs_x:
        if x is None:
            raise BadInput("this specification mentions the inputs: give x")
        inputs = _points(x, next(c.x.shape[2] for c in clauses if c.x is not None), "inputs")
    batch = max(len(outputs), *(c.y.shape[0] for c in clauses),
                *(len(c.bound) for c in clauses if c.bound.ndim == 2))
    result = np.zeros(batch, dtype=bool)
    for clause in clauses:
        result |= _clause(clause, inputs, outputs, batch)
    sane = np.isfinite(outputs).all(1)
    if inputs is not None:
        sane = sane & np.isfinite(inputs).all(1)
    return result & sane


def _points(value: Any, width: int, what: str) -> NDArray[np.float64]:
    plain = value.detach().cpu().numpy() if is_tensor(value) else value
    array = np.asarray(plain, dtype=np.float64)
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] != width:
        raise BadInput(f"points of shape {array.shape}, expected (batch, {width}) flattened {what}")
    return array


def _clause(clause: RowsLike, x: Any, y: NDArray[np.float64], batch: int) -> NDArray[np.bool_]:
    used_x = None if clause.x is None else x
    with np.errstate(all="ignore"):
        value = np.einsum("brn,bn->br", clause.y, y)
        size = np.einsum("brn,bn->br", abs(clause.y), abs(y))
        if clause.x is not None:
            value = value + np.einsum("brn,bn->br", clause.x, x)
            size = size + np.einsum("brn,bn->br", abs(clause.x), abs(x))
        terms = y.shape[1] + (0 if used_x is None else used_x.shape[1])
        error = dot_error(terms + 2) * (size + abs(clause.bound)) + terms * UNDERFLOW
        below, above = value + error < clause.bound, value - error > clause.bound
    value, below, above = (np.broadcast_to(v, (batch, v.shape[1])) for v in (value, below, above))
    holds = below.copy()
    for b, r in np.argwhere(~below & ~above):
        holds[b, r] = not above[b].any() and _exactly(clause, used_x, y, int(b), int(r))
    return np.asarray(holds.all(axis=1))


def _exactly(clause: RowsLike, x: Any, y: NDArray[np.float64], b: int, r: int) -> bool:
    pairs = [(clause.y, y)] + ([] if clause.x is None else [(clause.x, x)])
    total = Fraction(0)
    for coefficients, point in pairs:
        row, at = coefficients[b % len(coefficients), r], point[b % len(point)]
        if not np.isfinite(at).all():
            return False
        for i in np.flatnonzero(row):
            total += Fraction(float(row[i])) * Fraction(float(at[i]))
    strict = bool(clause.strict[r])
    if clause.exact is None:
        bound = clause.bound[b, r] if clause.bound.ndim == 2 else clause.bound[r]
        threshold = Fraction(float(bound))
        return total < threshold if strict else total <= threshold
    return _below(total, clause.exact[r], strict)


def _below(total: Fraction, threshold: Decimal, strict: bool) -> bool:
    """``total < threshold`` (or ``<=``); False when the comparison would be too expensive."""
    exact = as_fraction(threshold)
    if exact is not None:
        return total < exact if strict else total <= exact
    around = enclose(threshold)
    return total < Fraction(around.lo) or (total == Fraction(around.lo) and (
        around.lo < around.hi or not strict))
