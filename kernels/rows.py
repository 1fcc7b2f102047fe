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
def relax_dense(
    A: Any, low: Any, low_c: Any, up: Any, up_c: Any, cost: Any, out: Any, sums: Any
) -> None:
    """``out = A * (low where A >= 0 else up)``; ``sums[r] = (sum of A * intercept, |A| . cost)``.

    ``A, out``: (R, n); ``low, up, low_c, up_c``: (1 or R, n); ``cost``: (n,);
    ``sums``: (R, 2) float64.
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
    A: Any,
    top: Any,
    left: Any,
    low: Any,
    low_c: Any,
    up: Any,
    up_c: Any,
    cost: Any,
    out: Any,
    sums: Any,
) -> None:
    """As `relax_dense` for windows ``A, out (R, h, w, C)`` of maps ``(H, W, C)``.

    ``top, left (R,)``: row and column of each window's first entry; may be negative.
    """
    R, h, w, C = A.shape
    H, W = low.shape[0], low.shape[1]
    for r in range(R):
        bias, size = 0.0, 0.0
        for y in range(h):
            row = top[r] + y
            for x in range(w):
                column = left[r] + x
                o = out[r, y, x]
                if row < 0 or row >= H or column < 0 or column >= W:
                    o[:] = 0
                    continue
                a, lo, hi = A[r, y, x], low[row, column], up[row, column]
                lc, uc, price = low_c[row, column], up_c[row, column], cost[row, column]
                for c in range(C):
                    v = a[c]
                    positive = v >= 0
                    o[c] = v * (lo[c] if positive else hi[c])
                    bias += np.float64(v) * np.float64(lc[c] if positive else uc[c])
                    size += abs(np.float64(v)) * np.float64(price[c])
        sums[r, 0] = bias
        sums[r, 1] = size


@njit(cache=True, nogil=True, fastmath=_FAST)
def dot_windows(A: Any, top: Any, left: Any, first: Any, second: Any, sums: Any) -> None:
    """``sums[r] = (A . first, |A| . second)`` for windows of maps ``first, second (H, W, C)``."""
    R, h, w, C = A.shape
    H, W = first.shape[0], first.shape[1]
    for r in range(R):
        signed, size = 0.0, 0.0
        y0, x0 = top[r], left[r]
        for y in range(max(0, -y0), min(h, H - y0)):
            for x in range(max(0, -x0), min(w, W - x0)):
                a, one, two = A[r, y, x], first[y0 + y, x0 + x], second[y0 + y, x0 + x]
                for c in range(C):
                    v = np.float64(a[c])
                    signed += v * np.float64(one[c])
                    size += abs(v) * np.float64(two[c])
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
