"""Einstein sums as transposes, reshapes and matrix products, two operands at a time."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from certify.core.errors import BadInput, Unsupported
from certify.ops.arguments import listed
from certify.ops.builder import Builder, Call, Value
from certify.ops.moves import permuted, reshaped
from certify.ops.record import REGISTRY, Composite
from certify.ops.select import moved


class Term(NamedTuple):
    """A tensor with one label per axis."""

    value: Value
    labels: str


def _parsed(call: Call, equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Labels of every operand and of the result; an ellipsis becomes capital-free spare letters.

    Raises:
        BadInput: the equation does not fit the operands.
    """
    where = call.where or call.name
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise BadInput(f"{where}: equation {equation!r} for {len(ranks)} operands")
    spare = [c for c in string.ascii_letters if c not in equation]
    widest = max(
        (
            rank - len(t.replace("...", ""))
            for t, rank in zip(terms, ranks, strict=True)
            if "..." in t
        ),
        default=0,
    )
    if widest < 0 or widest > len(spare):
        raise BadInput(
            f"{where}: equation {equation!r} does not fit operands of ranks {tuple(ranks)}"
        )
    hidden = "".join(spare[:widest])
    found = []
    for term, rank in zip(terms, ranks, strict=True):
        count = rank - len(term.replace("...", ""))
        full = term.replace("...", hidden[widest - count :] if count > 0 else "", 1)
        if len(full) != rank or not (full.isalpha() or not full):
            raise BadInput(f"{where}: term {term!r} of {equation!r} for an operand of rank {rank}")
        found.append(full)
    if arrow:
        return found, right.replace("...", hidden, 1)
    joined = "".join(found)
    once = sorted(c for c in set(joined) if joined.count(c) == 1 and c not in hidden)
    return found, hidden + "".join(once)


def _diagonals(b: Builder, call: Call, term: Term) -> Term:
    """Repeated labels within one operand: its diagonal."""
    labels = "".join(dict.fromkeys(term.labels))
    if labels == term.labels:
        return term
    numbers = {c: k for k, c in enumerate(labels)}

    def move(positions: np.ndarray) -> np.ndarray:
        subscripts = [numbers[c] for c in term.labels]
        return np.asarray(np.einsum(positions, subscripts, list(range(len(labels)))))

    return Term(moved(b, call, term.value, move), labels)


def _summed(b: Builder, term: Term, kept: str) -> Term:
    """Sums away every label that nobody else needs."""
    gone = [k for k, c in enumerate(term.labels) if c not in kept]
    if not gone:
        return term
    axes = tuple(k - len(term.labels) for k in gone)
    value = b.add("reduce_sum", term.value, axes=axes, keepdims=False)
    return Term(value, "".join(c for c in term.labels if c in kept))


def _ordered(b: Builder, term: Term, labels: str) -> Value:
    return permuted(b, term.value, [term.labels.index(c) for c in labels])


def _squeezed(b: Builder, term: Term, other: Term) -> Term:
    """Drops axes of size 1 that only broadcast against a longer axis of the other operand."""
    sizes = dict(zip(other.labels, other.value.shape, strict=True))
    kept = [
        k
        for k, c in enumerate(term.labels)
        if not (term.value.shape[k] == 1 and sizes.get(c, 1) > 1)
    ]
    shape = [term.value.shape[k] for k in kept]
    return Term(reshaped(b, term.value, shape), "".join(term.labels[k] for k in kept))


def _contracted(b: Builder, call: Call, one: Term, two: Term, kept: str) -> Term:
    """The product of two terms, summed over the labels outside ``kept``."""
    one, two = _squeezed(b, one, two), _squeezed(b, two, one)
    one = _summed(b, one, kept + two.labels)
    two = _summed(b, two, kept + one.labels)
    sizes = dict(zip(one.labels, one.value.shape, strict=True))
    for c, n in zip(two.labels, two.value.shape, strict=True):
        if sizes.setdefault(c, n) != n:
            raise BadInput(f"{call.where or call.name}: label {c!r} has sizes {sizes[c]} and {n}")
    both = [c for c in one.labels if c in two.labels]
    batch = "".join(c for c in both if c in kept)
    inner = "".join(c for c in both if c not in kept)
    rows = "".join(c for c in one.labels if c not in both)
    columns = "".join(c for c in two.labels if c not in both)

    def size(labels: str) -> int:
        return math.prod(sizes[c] for c in labels)

    lead = tuple(sizes[c] for c in batch)
    left = reshaped(b, _ordered(b, one, batch + rows + inner), (*lead, size(rows), size(inner)))
    right = reshaped(
        b, _ordered(b, two, batch + inner + columns), (*lead, size(inner), size(columns))
    )
    product = b.add("matmul", left, right)
    labels = batch + rows + columns
    return Term(reshaped(b, product, tuple(sizes[c] for c in labels)), labels)


def einsum(b: Builder, call: Call, equation: str, values: Sequence[Value]) -> Value:
    """The Einstein sum of ``values``.

    Raises:
        BadInput: the equation does not fit the operands.
        Unsupported: a label of the result is missing from every operand.
    """
    labels, result = _parsed(call, equation, [v.rank for v in values])
    if len(set(result)) != len(result) or any(c not in "".join(labels) for c in result):
        raise Unsupported(f"{call.where or call.name}: equation {equation!r}")
    terms = [_diagonals(b, call, Term(v, s)) for v, s in zip(values, labels, strict=True)]
    while len(terms) > 1:
        one, two, *rest = terms
        kept = result + "".join(t.labels for t in rest)
        terms = [_contracted(b, call, one, two, kept), *rest]
    return _ordered(b, _summed(b, terms[0], result), result)


def _onnx(b: Builder, call: Call) -> Value:
    return einsum(b, call, str(call.attr("equation")), listed(call, call.inputs))


def _aten(b: Builder, call: Call) -> Value:
    return einsum(b, call, str(call.inputs[0]), listed(call, call.inputs[1]))


REGISTRY.add(
    Composite(
        "einsum",
        onnx={"Einsum": _onnx},
        aten={"aten.einsum.default": _aten},
        summary="Einstein sums: transpose, reshape, matmul",
    )
)
