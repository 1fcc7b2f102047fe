"""Norms and definiteness are proved: never too small, never wrongly yes."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from certify.bounds.definite import is_semidefinite, largest_eigenvalue, spectral_norm


@pytest.mark.parametrize("shape", [(1, 1), (3, 9), (9, 3), (40, 40), (250, 300)])
@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e150])
def test_norms_are_no_smaller_than_the_library_finds_and_close(
    shape: tuple[int, int], scale: float
) -> None:
    rng = np.random.default_rng(sum(shape))
    for rank in (1, min(shape)):
        matrix = scale * rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
        expected = float(np.linalg.svd(matrix / scale, compute_uv=False)[0]) * scale
        found = spectral_norm(matrix)
        assert expected * (1 - 1e-14) <= found <= expected * (1 + 1e-7)


def test_a_norm_known_exactly_is_not_undercut() -> None:
    """``[[a, b], [b, a]]`` has norm ``a + b``, here a sum that floats round down."""
    for a, b in ((1.0, 2.0**-53), (3.0, 2.0**-52), (0.1, 0.2)):
        norm = Fraction(a) + Fraction(b)
        assert Fraction(spectral_norm(np.array([[a, b], [b, a]]))) >= norm


def test_very_large_matrices_have_a_norm_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certify.bounds.definite._LARGEST_GRAM", 10)
    matrix = np.random.default_rng(0).normal(size=(20, 30))
    assert spectral_norm(matrix) >= np.linalg.svd(matrix, compute_uv=False)[0]


def test_what_is_not_finite_has_no_norm() -> None:
    assert spectral_norm(np.array([[np.nan]])) == math.inf
    assert spectral_norm(np.array([[np.inf, 1.0]])) == math.inf
    assert 0 <= spectral_norm(np.zeros((2, 3))) < 1e-100
    assert largest_eigenvalue(np.array([[np.nan]])) == math.inf


def test_only_what_is_semidefinite_passes() -> None:
    rng = np.random.default_rng(1)
    for n in (1, 2, 5, 30):
        root = rng.normal(size=(n, n))
        gram = root @ root.T + 0.1 * np.eye(n)
        least = float(np.linalg.eigvalsh(gram)[0])
        assert is_semidefinite(gram)
        assert is_semidefinite(gram - 0.999 * least * np.eye(n))
        assert not is_semidefinite(gram - (least + 1e-9) * np.eye(n))
        assert not is_semidefinite(-gram)
    assert not is_semidefinite(np.array([[np.nan]]))
    assert not is_semidefinite(np.array([[1.0, 0.0], [2.0, 1.0]]))  # the lower triangle counts


def test_eigenvalues_from_above() -> None:
    rng = np.random.default_rng(2)
    for n in (1, 3, 20, 260):
        matrix = rng.normal(size=(n, n))
        matrix = matrix + matrix.T
        expected = float(np.linalg.eigvalsh(matrix)[-1])
        found = largest_eigenvalue(matrix)
        assert expected - 1e-12 * n <= found <= expected + 1e-7 * np.abs(matrix).sum(1).max()
