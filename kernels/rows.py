"""Rows of linear bounds through a relaxation, and onto a box: one pass over memory instead of six.

Coefficients keep their precision; sums run in float64 whatever the coefficients are. Sums may be
reassociated (the a-priori error bounds hold in any order); NaN and infinity keep their meaning.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_FAST = {"reassoc", "contract", "nsz"}


@njit(cache=True, nogil=True, fastmath=_FAST)
def relax_dense(A: Any, low: Any, low_c: Any, up: Any, up_c: Any, cost: Any, out: Any, sums: Any) -> None:
    """``out = A * (low where A >= 0 else up)``; ``sums[r] = (sum of A * intercept, |A| . cost)``.

    ``A, out``: (R, n); ``low, up, low_c, up_c``: (1 or R, n); ``cost``: (n,); ``sums``: (R, 2) float64.
    """
    R, n = A.shape
    per_low, per_up = low.shape[0] > 1, up.shape[0] > 1
    per_low_c, per_up_c = low_c.shape[0] > 1, up_c.shape[0] > 1
    for r in range(R):
        a, o = A[r], out[r]
        lo, hi = low[r if per_low else 0], up[r if per_up else 0]
        lc, uc = low_c[r if per_low_c else 0], up_c[r if per_up_c else 0]
        bias, size = 0.0, 0.0
        for j in range(n):
            v = a[j]
            positive = v >= 0
            o[j] = v * (lo[j] if positive else hi[j])
            bias += np.float64(v) * np.float64(lc[j] if positive else uc[j])
            size += abs(np.float64(v)) * np.float64(cost[j])
        sums[r, 0] = bias
        sums[r, 1] = size


@njit(cache=True, nogil=True, fastmath=_FAST)
def relax_windows(
    A: Any, top: Any, left: Any, low: Any, low_c: Any, up: Any, up_c: Any, cost: Any, out: Any, sums: Any
) -> None:
    """As `relax_dense` for windows ``A, out (R, C, h, w)`` at ``top, left (R,)`` of maps ``(C, H, W)``."""
    R, C, h, w = A.shape
    H, W = low.shape[1], low.shape[2]
    for r in range(R):
        bias, size = 0.0, 0.0
        y0, x0 = top[r], left[r]
        for c in range(C):
            for y in range(h):
                row = y0 + y
                if row < 0 or row >= H:
                    for x in range(w):
                        out[r, c, y, x] = 0
                    continue
                for x in range(w):
                    column = x0 + x
                    if column < 0 or column >= W:
                        out[r, c, y, x] = 0
                        continue
                    v = A[r, c, y, x]
                    positive = v >= 0
                    out[r, c, y, x] = v * (low[c, row, column] if positive else up[c, row, column])
                    bias += np.float64(v) * np.float64(
                        low_c[c, row, column] if positive else up_c[c, row, column]
                    )
                    size += abs(np.float64(v)) * np.float64(cost[c, row, column])
        sums[r, 0] = bias
        sums[r, 1] = size


@njit(cache=True, nogil=True, fastmath=_FAST)
def dot_windows(A: Any, top: Any, left: Any, first: Any, second: Any, sums: Any) -> None:
    """``sums[r] = (A . first, |A| . second)`` for windows of maps ``first, second (C, H, W)``."""
    R, C, h, w = A.shape
    H, W = first.shape[1], first.shape[2]
    for r in range(R):
        signed, size = 0.0, 0.0
        y0, x0 = top[r], left[r]
        ya, yb = max(0, -y0), min(h, H - y0)
        xa, xb = max(0, -x0), min(w, W - x0)
        for c in range(C):
            for y in range(ya, yb):
                for x in range(xa, xb):
                    v = np.float64(A[r, c, y, x])
                    signed += v * np.float64(first[c, y0 + y, x0 + x])
                    size += abs(v) * np.float64(second[c, y0 + y, x0 + x])
        sums[r, 0] = signed
        sums[r, 1] = size


@njit(cache=True, nogil=True, fastmath=_FAST)
def dot_dense(A: Any, first: Any, second: Any, sums: Any) -> None:
    """``sums[r] = (A . first, |A| . second)`` for rows ``A (R, n)``."""
    R, n = A.shape
    for r in range(R):
        a = A[r]
        signed, size = 0.0, 0.0
        for j in range(n):
            v = np.float64(a[j])
            signed += v * np.float64(first[j])
            size += abs(v) * np.float64(second[j])
        sums[r, 0] = signed
        sums[r, 1] = size
