"""Tensors of a network as affine functions of its inputs and activations, all rounding bounded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from certify.core.outward import UNDERFLOW, dot_error

Matrix = np.ndarray
_UP = 1 + 2.0**-30  # far more than the rounding of a computed sum of error terms


@dataclass(frozen=True, eq=False)
class Part:
    """Coefficients of one block of variables: the exact ones lie in ``value`` +- ``error``.

    Attributes:
        value: ``(n, size)``; None stands for the identity.
        error: ``(n, size)``, not negative; None for zero.
    """

    value: Matrix | None
    error: Matrix | None = None

    def dense(self, size: int) -> tuple[Matrix, Matrix]:
        """Both as arrays; ``size`` is the number of variables."""
        value = np.eye(size) if self.value is None else self.value
        return value, np.zeros_like(value) if self.error is None else self.error


@dataclass(frozen=True, eq=False)
class Form:
    """``sum of value[b] @ variables[b] + constant``, within ``error`` of the exact tensor.

    Attributes:
        shape: of the tensor; the form is over its elements in row-major order.
        parts: by the name of the block of variables.
        constant, error: ``(n,)``.
    """

    shape: tuple[int, ...]
    parts: dict[str, Part]
    constant: Matrix
    error: Matrix

    def level(self, levels: dict[str, int]) -> int:
        """The highest level of the blocks it depends on."""
        return max((levels[name] for name in self.parts), default=0)


def variable(name: str, shape: tuple[int, ...]) -> Form:
    """A block of variables itself."""
    zeros = np.zeros(math.prod(shape))
    return Form(shape, {name: Part(None)}, zeros, zeros)


def constant(value: Matrix, shape: tuple[int, ...]) -> Form:
    """A constant of any shape that can be broadcast to ``shape``."""
    flat = np.broadcast_to(value, shape).reshape(-1).astype(np.float64)
    return Form(shape, {}, flat, np.zeros_like(flat))


def mapped(T: Matrix, form: Form, shape: tuple[int, ...]) -> Form:
    """``T (m, n)``, exact, times a form; each product's rounding is bounded a priori."""
    parts = {name: _product(T, part) for name, part in form.parts.items()}
    value, error = _times(T, form.constant[:, None], form.error[:, None])
    return Form(shape, parts, value[:, 0], error[:, 0])


def _product(T: Matrix, part: Part) -> Part:
    if part.value is None:
        return Part(T)
    error = np.zeros_like(part.value) if part.error is None else part.error
    return Part(*_times(T, part.value, error))


def _times(T: Matrix, value: Matrix, error: Matrix) -> tuple[Matrix, Matrix]:
    size = abs(T)
    terms = int((size > 0).sum(axis=1).max(initial=0))
    if not value.any() and not error.any():
        return T @ value, error[:1] * np.zeros((len(T), 1))
    spread = size @ (dot_error(terms) * abs(value) + error) + (terms + 1) * UNDERFLOW
    return T @ value, spread * _UP


def picked(form: Form, index: Matrix, shape: tuple[int, ...]) -> Form:
    """The elements ``index`` of a form: moved, repeated or left out, exactly."""
    flat = index.reshape(-1)
    if np.array_equal(flat, np.arange(len(form.constant))):
        return Form(shape, form.parts, form.constant, form.error)
    parts = {}
    for name, part in form.parts.items():
        size = len(form.constant) if part.value is None else part.value.shape[1]
        value = np.eye(size)[flat] if part.value is None else part.value[flat]
        parts[name] = Part(value, None if part.error is None else part.error[flat])
    return Form(shape, parts, form.constant[flat], form.error[flat])


def negated(form: Form) -> Form:
    """``-form``, exactly."""
    parts = {}
    for name, part in form.parts.items():
        value = part.dense(len(form.constant))[0] if part.value is None else part.value
        parts[name] = Part(-value, part.error)
    return Form(form.shape, parts, -form.constant, form.error)


def added(a: Form, b: Form) -> Form:
    """``a + b`` of one shape; every sum is rounded once."""
    parts = dict(a.parts)
    for name, part in b.parts.items():
        parts[name] = _sum(parts[name], part, len(a.constant)) if name in parts else part
    total = a.constant + b.constant
    both = a.constant.any() and b.constant.any()
    error = a.error + b.error + (2.0**-52 * abs(total) if both else 0.0)
    return Form(a.shape, parts, total, error * _UP)


def _sum(a: Part, b: Part, size: int) -> Part:
    (one, e), (two, f) = a.dense(size), b.dense(size)
    total = one + two
    return Part(total, (e + f + 2.0**-52 * abs(total)) * _UP)


def stacked(forms: list[Form], shape: tuple[int, ...], sizes: dict[str, int]) -> Form:
    """Forms one after the other."""
    names = {name: None for form in forms for name in form.parts}
    parts = {}
    for name in names:
        pairs = [_dense_part(form, name, sizes[name]) for form in forms]
        value, error = (np.concatenate(side) for side in zip(*pairs, strict=True))
        parts[name] = Part(value, error if error.any() else None)
    return Form(
        shape,
        parts,
        np.concatenate([f.constant for f in forms]),
        np.concatenate([f.error for f in forms]),
    )


def _dense_part(form: Form, name: str, size: int) -> Any:
    if name in form.parts:
        return form.parts[name].dense(size)
    return np.zeros((len(form.constant), size)), np.zeros((len(form.constant), size))
