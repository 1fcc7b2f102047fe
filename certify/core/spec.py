"""Specifications: the unsafe set as data.

A specification *holds* when no input of the region, with its output, lies in the unsafe set. The
unsafe set is a union of clauses, a clause an intersection of half-spaces (rows)
``y . Y + x . X <= bound`` (``<`` when strict) over the flattened outputs Y and inputs X.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from certify.core.arrays import is_tensor
from certify.core.errors import BadInput, LimitExceeded
from certify.core.spec_point import satisfied

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

LARGEST_SPEC = 50_000_000  # coefficients: 400 MB


_MOST_SETS = 10_000  # combinations of classes in a top-k specification

@dataclass(frozen=True, eq=False)
class Row:
    """One half-space, for building clauses by hand.

    Attributes:
        y: coefficients of the flattened outputs, all of them or ``{index: coefficient}``.
        bound: the threshold; a float is meant exactly.
        x: coefficients of the flattened inputs, or None for none.
        strict: ``<`` instead of ``<=``.
    """

    y: Any
    bound: float = 0.0
    x: Any = None
    strict: bool = False


@dataclass(frozen=True, eq=False)
class Clause:
    """All of its rows together describe one unsafe piece.

    Attributes:
        y: ``(B or 1, r, num_outputs)`` float64 coefficients.
        x: ``(1, r, num_inputs)``, or None when no row mentions the inputs.
        bound: ``(r,)`` thresholds, rounded up where the original is no float64: the unsafe set
            only grows. Or ``(B, r)``, B > 1, for thresholds of every example's own.
        strict: ``(r,)`` bool.
        exact: the original thresholds of all examples, or None where ``bound`` is exact.
    """

    y: NDArray[np.float64]
    x: NDArray[np.float64] | None
    bound: NDArray[np.float64]
    strict: NDArray[np.bool_]
    exact: tuple[Decimal, ...] | None = None

    def __post_init__(self) -> None:
        if not len(self.strict):
            raise BadInput("a clause without a row makes every input unsafe: give at least one row")
        shared = self.bound.shape == self.strict.shape
        if not shared and (self.bound.ndim != 2 or len(self.bound) < 2 or self.exact is not None
                           or self.bound.shape[1:] != self.strict.shape):
            raise BadInput(f"thresholds of shape {self.bound.shape} for {len(self.strict)} rows: "
                           "give one per row, or one per example and row")
        parts = (("coefficient", self.y), ("coefficient", self.x), ("bound", self.bound))
        for what, values in parts:
            if values is not None and not np.isfinite(values).all():
                raise BadInput(f"a specification has a {what} that is NaN or infinite")
        blank = ~self.y.any(axis=-1)
        if self.x is not None:
            blank &= ~self.x.any(axis=-1)
        if blank.any():
            row = int(np.argwhere(blank)[0][1])
            raise BadInput(f"row {row} of a clause has only zero coefficients: remove it")

    @property
    def batches(self) -> set[int]:
        """Numbers of examples that coefficients or thresholds differ for; empty for none."""
        return {len(self.y), len(self.bound) if self.bound.ndim == 2 else 1} - {1}


class Rows(NamedTuple):
    """All rows of a specification, stacked clause by clause.

    A lower bound above 0 (at least 0 when strict) of ``g = y.Y + x.X - bound`` refutes a row.

    Attributes:
        y: ``(B or 1, R, num_outputs)``.
        x: ``(1, R, num_inputs)`` or None.
        bound: ``(R,)``, or ``(B, R)`` where thresholds differ per example.
        strict: ``(R,)`` bool.
        group: ``(R,)`` index of the clause each row belongs to, ascending.
    """

    y: NDArray[np.float64]
    x: NDArray[np.float64] | None
    bound: NDArray[np.float64]
    strict: NDArray[np.bool_]
    group: NDArray[np.int64]

    def refuted(self, margins: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Examples ``(B,)`` whose every clause has a row refuted by ``margins (B, R)``.

        ``margins`` are lower bounds of ``g``; NaN refutes nothing.
        """
        single = np.where(self.strict, margins >= 0, margins > 0)
        return np.asarray(np.logical_or.reduceat(single, self._starts(), axis=1).all(axis=1))

    def clause_margins(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """The best row of each clause, ``(B, clauses)``."""
        return np.asarray(np.maximum.reduceat(margins, self._starts(), axis=1))

    def _starts(self) -> NDArray[np.int64]:
        return np.searchsorted(self.group, np.arange(self.group[-1] + 1))


@dataclass(frozen=True, eq=False)
class Spec:
    """Holds when every clause is refuted, and a clause is refuted by any one of its rows.

    Attributes:
        clauses: the pieces of the unsafe set, at least one.
        num_outputs: number of elements of the flattened output.
    """

    clauses: tuple[Clause, ...]
    num_outputs: int

    def __post_init__(self) -> None:
        if not self.clauses:
            raise BadInput("a specification without a clause holds vacuously: give at least one")
        widths = {c.y.shape[2] for c in self.clauses}
        if widths != {self.num_outputs}:
            raise BadInput(f"clauses over {sorted(widths)} outputs in a specification over "
                           f"{self.num_outputs}")
        batches = set[int]().union(*(c.batches for c in self.clauses))
        if len(batches) > 1:
            raise BadInput(f"clauses for batches of {sorted(batches)} examples do not match")
        _check_size(max(batches, default=1), sum(len(c.strict) for c in self.clauses),
                    self.num_outputs)

    # -- ways to make one ---------------------------------------------------------------------

    @classmethod
    def classify(cls, label: int | ArrayLike, num_classes: int) -> Spec:
        """Output ``label`` stays the strictly largest of ``num_classes``.

        Unsafe is ``Y_j >= Y_label`` for any other j: a tie is unsafe.

        Args:
            label: one class, or one per example ``(B,)``.

        Raises:
            BadInput: a label outside the classes, or fewer than two classes.
        """
        labels = np.atleast_1d(np.asarray(_plain(label)))
        if num_classes < 2:
            raise BadInput(f"a classification needs at least 2 classes, got {num_classes}")
        if labels.ndim != 1 or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
            raise BadInput("labels must be one whole number or one per example, got "
                           f"shape {labels.shape} of {labels.dtype}")
        if ((labels < 0) | (labels >= num_classes)).any():
            raise BadInput(f"label {int(labels[(labels < 0) | (labels >= num_classes)][0])} is not "
                           f"one of the classes 0..{num_classes - 1}")
        batch, rivals = len(labels), num_classes - 1
        _check_size(batch, rivals, num_classes)
        others = np.arange(rivals) + (np.arange(rivals) >= labels[:, None])  # skips the label
        y = np.zeros((batch, rivals, num_classes))
        example, rival = np.arange(batch)[:, None], np.arange(rivals)
        y[example, rival, labels[:, None]] = 1.0
        y[example, rival, others] = -1.0
        return cls(_single_rows(y, np.zeros(rivals), strict=False), num_classes)

    @classmethod
    def top_k(cls, label: int, k: int, num_classes: int) -> Spec:
        """Fewer than k outputs are above or equal to output ``label``.

        Unsafe is, for any k others, ``Y_j >= Y_label`` for all of them.

        Raises:
            BadInput: a label or k outside the classes, or too many combinations.
        """
        if not 0 <= label < num_classes or not 1 <= k < num_classes:
            raise BadInput(f"top-{k} of {num_classes} classes with label {label}: the label must "
                           "be one of them, and k from 1 to one less")
        if math.comb(num_classes - 1, k) > _MOST_SETS:
            raise BadInput(f"top-{k} of {num_classes} classes has more than {_MOST_SETS} "
                           "combinations; give a smaller k")
        others = [j for j in range(num_classes) if j != label]
        clauses = []
        for chosen in itertools.combinations(others, k):
            y = np.zeros((1, k, num_classes))
            y[0, :, label] = 1.0
            y[0, np.arange(k), chosen] = -1.0
            clauses.append(Clause(y, None, np.zeros(k), np.zeros(k, dtype=bool)))
        return cls(tuple(clauses), num_classes)

    @classmethod
    def linear(cls, C: ArrayLike, d: ArrayLike) -> Spec:
        """``C y >= d`` in every row: unsafe is ``C_i y < d_i`` for any i.

        Args:
            C: ``(R, num_outputs)``, or ``(B, R, num_outputs)`` for one matrix per example.
            d: ``(R,)`` or one number, or ``(B, R)`` for thresholds per example.

        Raises:
            BadInput: shapes that do not fit each other.
        """
        y = np.array(_plain(C), dtype=np.float64)
        y = y[None] if y.ndim == 2 else y
        if y.ndim != 3 or not y.size:
            raise BadInput("C must be (rows, outputs) or (batch, rows, outputs), got "
                           f"{np.shape(C)}")
        bound = np.array(_plain(d), dtype=np.float64)
        bound = bound[0] if bound.ndim == 2 and len(bound) == 1 else bound
        each = bound.ndim == 2 and len(y) in (1, len(bound)) and bound.shape[1] == y.shape[1]
        if not each and bound.shape not in ((), (y.shape[1],)):
            raise BadInput(f"d has shape {bound.shape} for {y.shape[1]} rows of C, which has shape "
                           f"{np.shape(C)}")
        if not each:
            bound = np.broadcast_to(bound, y.shape[1:2])
        return cls(_single_rows(y, bound, strict=True), y.shape[2])

    @classmethod
    def unsafe(cls, clauses: Sequence[Sequence[Row]], num_outputs: int,
               num_inputs: int | None = None) -> Spec:
        """Any union of intersections of rows.

        Args:
            clauses: each a sequence of `Row`; an input is unsafe if all rows of one are satisfied.
            num_inputs: needed when a row mentions the inputs.
        """
        total = sum(len(rows) for rows in clauses)
        _check_size(1, total, num_outputs + (num_inputs or 0))
        return cls(tuple(_clause(rows, num_outputs, num_inputs) for rows in clauses), num_outputs)

    # -- deciding -----------------------------------------------------------------------------

    @property
    def batch(self) -> int:
        """Number of examples the rows differ for; 1 when they serve all."""
        return max((n for c in self.clauses for n in c.batches), default=1)

    def only(self, example: int) -> Spec:
        """One example's own specification, of batch 1."""
        if self.batch == 1:
            return self
        clauses = tuple(
            replace(c, y=c.y[example : example + 1] if len(c.y) > 1 else c.y,
                    bound=c.bound[example] if c.bound.ndim == 2 else c.bound)
            for c in self.clauses
        )
        return Spec(clauses, self.num_outputs)

    @property
    def num_inputs(self) -> int | None:
        """Number of flattened inputs the rows mention, or None when they mention none."""
        return next((c.x.shape[2] for c in self.clauses if c.x is not None), None)

    def rows(self) -> Rows:
        """All rows stacked; computed once."""
        return self._stacked

    @cached_property
    def _stacked(self) -> Rows:
        sizes, width = [len(c.strict) for c in self.clauses], self.num_inputs
        count = sum(sizes)
        y, x = np.empty((max(len(c.y) for c in self.clauses), count, self.num_outputs)), None
        if width is not None:
            _check_size(1, count, width)
            x = np.zeros((1, count, width))
        start = 0
        for clause in self.clauses:
            stop = start + len(clause.strict)
            y[:, start:stop] = clause.y
            if x is not None and clause.x is not None:
                x[:, start:stop] = clause.x
            start = stop
        bounds = [c.bound for c in self.clauses]
        if any(b.ndim == 2 for b in bounds):
            bounds = [np.broadcast_to(b, (self.batch, b.shape[-1])) for b in bounds]
        return Rows(y, x, np.concatenate(bounds, axis=-1),
                    np.concatenate([c.strict for c in self.clauses]),
                    np.repeat(np.arange(len(sizes)), sizes))

    def decided(self, margins: Any) -> Any:
        """Which examples the lower bounds prove.

        Args:
            margins: ``(B, R)`` lower bounds of ``g`` for the rows of `rows`, numpy or torch. NaN
                refutes nothing.

        Returns:
            bool ``(B,)``, of the same kind.
        """
        rows = self.rows()
        if margins.ndim != 2 or margins.shape[1] != len(rows.strict):
            raise BadInput(f"margins of shape {tuple(margins.shape)} for {len(rows.strict)} rows: "
                           "give (batch, rows)")
        if not is_tensor(margins):
            return rows.refuted(margins)
        import torch

        strict = torch.from_numpy(rows.strict).to(margins.device)
        refuted = torch.where(strict, margins >= 0, margins > 0)
        if len(self.clauses) == len(rows.strict):
            return refuted.all(1)
        group = torch.from_numpy(rows.group).to(margins.device)
        count = torch.zeros(len(margins), len(self.clauses), dtype=torch.int32,
                            device=margins.device)
        return (count.index_add(1, group, refuted.int()) > 0).all(1)

    def violated(self, x: Any, y: Any) -> NDArray[np.bool_]:
        """Which concrete points lie in the unsafe set, decided exactly on the numbers given.

        Args:
            x: flattened inputs ``(B, num_inputs)``, or None when no row mentions them.
            y: flattened outputs ``(B, num_outputs)``; a point that is not finite is never unsafe.
        """
        return satisfied(self.clauses, x, y)


def _check_size(batch: int, rows: int, width: int) -> None:
    if batch * rows * width > LARGEST_SPEC:
        raise LimitExceeded(f"a specification of {batch} x {rows} rows over {width} elements has "
                            f"more than {LARGEST_SPEC} coefficients: use smaller batches or "
                            "fewer rows")


def _single_rows(y: NDArray[np.float64], bound: NDArray[np.float64],
                 strict: bool) -> tuple[Clause, ...]:
    """One clause per row of ``(B, R, n)``; ``bound`` is ``(R,)`` or ``(B, R)``."""
    flag = np.array([strict])
    return tuple(Clause(y[:, i : i + 1], None, bound[..., i : i + 1], flag)
                 for i in range(y.shape[1]))


def _plain(values: Any) -> Any:
    """What numpy can read: a tensor without its gradient, on the CPU; anything else as it is."""
    return values.detach().cpu().numpy() if is_tensor(values) else values


def _clause(rows: Sequence[Row], num_outputs: int, num_inputs: int | None) -> Clause:
    x = None
    if any(r.x is not None for r in rows):
        if num_inputs is None:
            raise BadInput("a row mentions the inputs: give num_inputs")
        x = np.stack([_dense(r.x, num_inputs, "input") for r in rows])[None]
    y = np.zeros((1, len(rows), num_outputs))
    for i, row in enumerate(rows):
        y[0, i] = _dense(row.y, num_outputs, "output")
    bound, strict = [float(r.bound) for r in rows], [r.strict for r in rows]
    return Clause(y, x, np.array(bound), np.array(strict, dtype=bool))


def _dense(given: Any, width: int, what: str) -> NDArray[np.float64]:
    if given is None:
        return np.zeros(width)
    if not isinstance(given, Mapping):
        array = np.array(given, dtype=np.float64)
        if array.shape != (width,):
            raise BadInput(f"{what} coefficients of shape {array.shape}, expected ({width},)")
        return array
    dense = np.zeros(width)
    for index, value in given.items():
        if not 0 <= index < width:
            raise BadInput(f"{what} {index} of {width} does not exist")
        dense[index] = value
    return dense
