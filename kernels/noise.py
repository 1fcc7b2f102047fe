"""Counter-based random words and normal noise: the same words for a key, whoever draws them.

Philox4x32-10 (Salmon et al. 2011). Sample ``i`` of a stream has the counters
``(block, i mod 2^32, i / 2^32, 0)``; word ``w`` of block ``j`` is element ``w * blocks + j``, so
that loops over blocks run on vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_LOW = np.uint64(0xFFFFFFFF)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_32 = np.uint64(32)
_FAST = {"contract", "nsz"}
_ROUNDS = 10

# erfinv(x) = x P(w), w = -ln(1 - x^2), for w < 5 and above (Giles 2010, single precision)
_NEAR = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_FAR = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)
# ln(1 + t) on [sqrt(1/2) - 1, sqrt(2) - 1] (Cephes, single precision)
_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_N = tuple(np.float32(c) for c in _NEAR)
_F = tuple(np.float32(c) for c in _FAR)
_L = tuple(np.float32(c) for c in _LOG)


@njit(cache=True, nogil=True)
def fill_words(out: Any, key: int, sample: int) -> None:
    """``out (4 * blocks,)`` uint32: all words of one sample of the stream ``key`` (64 bits)."""
    blocks = out.shape[0] // 4
    k0, k1 = np.uint64(key) & _LOW, np.uint64(key) >> _32
    low, high = np.uint64(sample) & _LOW, np.uint64(sample) >> _32
    for j in range(blocks):
        c0, c1, c2, c3 = np.uint64(j), low, high, np.uint64(0)
        a, b = k0, k1
        for _ in range(_ROUNDS):
            p0, p1 = _M0 * c0, _M1 * c2
            c0, c1, c2, c3 = ((p1 >> _32) ^ c1 ^ a, p1 & _LOW, (p0 >> _32) ^ c3 ^ b, p0 & _LOW)
            a, b = (a + _W0) & _LOW, (b + _W1) & _LOW
        out[j] = np.uint32(c0)
        out[blocks + j] = np.uint32(c1)
        out[2 * blocks + j] = np.uint32(c2)
        out[3 * blocks + j] = np.uint32(c3)


@njit(cache=True, nogil=True)
def words(out: Any, key: int, first: int) -> None:
    """``out (N, 4 * blocks)`` uint32: the words of samples ``first`` to ``first + N - 1``."""
    for i in range(out.shape[0]):
        fill_words(out[i], key, first + i)


@njit(cache=True, nogil=True, fastmath=_FAST)
def add_normal(x: Any, scale: float, key: int, first: int, out: Any) -> None:
    """``out (N, n)`` float32: ``x (n,)`` plus ``scale`` times standard normal noise, by inversion.

    The upper 24 bits of a word choose the quantile; what is farther out than 5.4 does not occur.
    """
    n = x.shape[0]
    w = np.empty(4 * ((n + 3) // 4), np.uint32)
    y, v = np.empty(n, np.float32), np.empty(n, np.float32)
    bits = v.view(np.int32)
    exponent = np.empty(n, np.float32)
    root, one, half = np.float32(scale * 1.4142135623730951), np.float32(1), np.float32(0.5)
    unit, ln2 = np.float32(2.0**-23), np.float32(0.6931471805599453)
    for i in range(out.shape[0]):
        fill_words(w, key, first + i)
        o = out[i]
        for j in range(n):
            a = (np.float32(np.int32(w[j] >> np.uint32(8)) - np.int32(8388608)) + half) * unit
            y[j] = a
            v[j] = (one - a) * (one + a)
        for j in range(n):  # v = 2^e m with m in [sqrt(1/2), sqrt(2)]
            e = (bits[j] - np.int32(0x3F3504F3)) >> np.int32(23)
            exponent[j] = np.float32(e)
            bits[j] = bits[j] - (e << np.int32(23))
        for j in range(n):
            t = v[j] - one
            z = t * t
            p = _L[0]
            for k in range(1, 9):
                p = p * t + _L[k]
            s = -(exponent[j] * ln2 + (t + (p * t * z - half * z)))
            near, far = s - np.float32(2.5), np.sqrt(s) - np.float32(3)
            c, f = _N[0], _F[0]
            for k in range(1, 9):
                c = c * near + _N[k]
                f = f * far + _F[k]
            o[j] = x[j] + root * y[j] * (c if s < np.float32(5) else f)


@njit(cache=True, nogil=True)
def add_grid_normal(x: Any, table: Any, unit: float, key: int, first: int, out: Any) -> None:
    """``out (N, n)`` float32: ``unit * (x + e)`` for whole numbers ``x (n,)`` int64 and noise e.

    ``table`` int64, ascending: ``table[k] = 2^63 P(|e| <= k)``. 63 bits choose |e|, one the sign.
    """
    n = x.shape[0]
    blocks = (2 * n + 3) // 4
    w = np.empty(4 * blocks, np.uint32)
    for i in range(out.shape[0]):
        fill_words(w, key, first + i)
        for j in range(n):
            bits = (np.uint64(w[2 * j]) << _32) | np.uint64(w[2 * j + 1])
            e = np.searchsorted(table, np.int64(bits >> np.uint64(1)), side="right")
            e = -e if bits & np.uint64(1) else e
            out[i, j] = np.float32(unit * np.float64(x[j] + e))
