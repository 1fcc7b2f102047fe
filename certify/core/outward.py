"""Outward rounding of single operations, and the error terms of sums.

With unit roundoff ``u = 2**-53`` a sum of n rounded products differs from the exact one by at most
``gamma_n = n u / (1 - n u)`` times the sum of their absolute values, in any order, with or without
fused multiply-add (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from certify.core.arrays import is_tensor, where
from certify.core.graph import Array

UNIT = 2.0**-53
UNDERFLOW = 2.0**-500  # per term; far above the smallest normal number, so flushing cannot matter
POW_SLACK = 2.0**-40  # assumed relative accuracy of the library's power function, times many


def dot_error(terms: int) -> float:
    """Twice ``gamma_(terms + 8)``: pays for a dot product and a handful of further roundings."""
    product = (terms + 8) * UNIT
    return float("inf") if product >= 0.5 else 2 * product / (1 - product) * (1 + 2.0**-40)


def _tail(a: Array, b: Array, total: Array) -> Array:
    """The exact error of ``total = fl(a + b)`` (Knuth's TwoSum)."""
    back = total - a
    return (a - (total - back)) + (b - back)


def _step(value: Array, direction: float) -> Array:
    if is_tensor(value):
        import torch

        return torch.nextafter(value, torch.full_like(value, direction))
    return np.nextafter(value, direction)


def _directed_sum(a: Array, b: Array, direction: float) -> Array:
    total = a + b
    if not is_tensor(total):
        error = _tail(a, b, total)
        return np.where(error < 0 if direction < 0 else error > 0, _step(total, direction), total)
    import torch

    with torch.no_grad():  # nextafter has no derivative; adding a constant step has
        error = _tail(a, b, total)
        off = error < 0 if direction < 0 else error > 0
        stepped = torch.where(off, _step(total, direction), total)
        shift = stepped - total
    return total + shift if total.requires_grad else stepped


def add_down(a: Array, b: Array) -> Array:
    """Largest float64 not above the exact ``a + b``."""
    return _directed_sum(a, b, -np.inf)


def add_up(a: Array, b: Array) -> Array:
    """Smallest float64 not below the exact ``a + b``."""
    return _directed_sum(a, b, np.inf)


def narrow(value: Array, dtype: Any, direction: float) -> Array:
    """A float64 array in a narrower dtype, rounded towards ``direction`` (-inf or inf)."""
    if not is_tensor(value):
        cast = np.asarray(value).astype(dtype)
        back = cast.astype(np.float64)
        off = back > value if direction < 0 else back < value
        return np.where(off, np.nextafter(cast, np.asarray(direction, cast.dtype)), cast)
    import torch

    cast = value.to(dtype)
    if dtype == torch.float64:
        return cast
    with torch.no_grad():
        back = cast.double()
        off = back > value if direction < 0 else back < value
        stepped = torch.where(off, _step_any(cast, direction), cast)
        shift = stepped - cast
    return cast + shift if cast.requires_grad else stepped


def _step_any(value: Any, direction: float) -> Any:
    import torch

    if value.dtype in (torch.float32, torch.float64):
        return _step(value, direction)
    info = torch.finfo(value.dtype)  # nextafter does not exist for the half types everywhere
    size = value.abs() * info.eps + info.tiny
    return value - size if direction < 0 else value + size


def midpoint_radius(lower: Array, upper: Array) -> tuple[Array, Array]:
    """float64 ``(mid, rad)`` with ``[mid - rad, mid + rad]`` containing ``[lower, upper]``."""
    mid = where(lower == upper, lower, 0.5 * lower + 0.5 * upper)
    below, above = mid - lower, upper - mid
    # a subnormal difference is exact; any other one has a relative error below 2 u
    return mid, where(below >= above, below, above) * (1 + 2.0**-50)
