"""Spectral bounds that are proofs: a floating-point Cholesky decomposition that succeeds.

An eigenvalue from a library is an estimate. It is proposed here, and then proved: where Cholesky's
algorithm runs to the end on a matrix, the exact eigenvalues lie above a known, tiny negative number
(Rump 2006, "Verification of positive definiteness", BIT 46, theorem 2.3; for any order of
summation).
"""

from __future__ import annotations

import math

import numpy as np

_U = 2.0**-53
_TINY = 2.0**-500
_LARGEST_GRAM = 4500  # rows of a square matrix that is decomposed
_LARGEST_EXACT = 200  # and of one whose eigenvalues are all computed


def _gamma(n: int) -> float:
    return n * _U / (1 - n * _U) * (1 + 2.0**-40)


def is_semidefinite(matrix: np.ndarray) -> bool:
    """Whether a symmetric ``(n, n)`` float64 matrix is *proved* positive semidefinite.

    False where it is not, where it is so close to singular that rounding hides it, and where it is
    not finite. Only the lower triangle is read.
    """
    n = len(matrix)
    if not np.isfinite(matrix).all():
        return False
    diagonal = np.diagonal(matrix)
    if (diagonal < 0).any():
        return False
    shift = 2 * _gamma(n + 2) * float(diagonal.sum()) + n * _TINY
    from scipy.linalg import LinAlgError, cholesky

    try:
        cholesky(matrix - shift * np.eye(n), lower=True, check_finite=False)
    except LinAlgError:
        return False
    return True


def largest_eigenvalue(matrix: np.ndarray) -> float:
    """An upper bound of the largest eigenvalue of a symmetric ``(n, n)`` matrix, tight to 1e-9 of
    its size where it is well scaled."""
    n = len(matrix)
    if not np.isfinite(matrix).all():
        return math.inf
    size = float(np.abs(matrix).sum(1).max(initial=0.0)) * (1 + 2 * _gamma(n)) + _TINY
    guess, room = _guess(matrix), 1e-10 * size
    while guess + room < size:
        top = guess + room
        if is_semidefinite(top * np.eye(n) - matrix):
            return top * (1 + 4 * _U) + 4 * _U * size  # the difference was rounded
        room *= 32
    return size


def _guess(matrix: np.ndarray) -> float:
    if len(matrix) < _LARGEST_EXACT:
        return float(np.linalg.eigvalsh(matrix)[-1])
    from scipy.sparse.linalg import ArpackError, eigsh

    try:
        start = np.random.default_rng(0).normal(size=len(matrix))
        return float(eigsh(matrix, 1, which="LA", v0=start, return_eigenvectors=False)[0])
    except ArpackError:
        return math.inf  # no guess


def spectral_norm(matrix: np.ndarray) -> float:
    """An upper bound of the largest singular value of ``(m, n)`` float64 numbers.

    Proved from the smaller Gram matrix; for very large matrices, ``sqrt(|M|_1 |M|_inf)``.
    """
    if not np.isfinite(matrix).all():
        return math.inf
    if not matrix.size:
        return 0.0
    size = np.abs(matrix)
    m, n = matrix.shape
    quick = math.sqrt(float(size.sum(0).max()) * float(size.sum(1).max())) * (1 + 2 * _gamma(m + n))
    if min(m, n) > _LARGEST_GRAM or quick == 0.0:
        return quick + _TINY
    scaled = matrix / quick  # no overflow below; dividing is charged with the rest
    gram = scaled.T @ scaled if n <= m else scaled @ scaled.T
    lost = 2 * _gamma(max(m, n) + 8) * float((scaled**2).sum()) + _TINY
    top = math.sqrt(largest_eigenvalue(gram) + lost)
    return min(quick, top * quick * (1 + 2.0**-40)) + _TINY
