"""Putting a point into a region in the model's own precision, with no slack at all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from certify.core.arrays import is_tensor
from certify.core.graph import Shape
from certify.core.outward import narrow
from certify.core.region import Region, as_inputs
from certify.core.region_ball import Ball
from certify.importers.vnnlib_cases import Case, inner

_BACK = (0.0, 2.0**-23, 2.0**-20, 2.0**-16, 2.0**-12)  # shares of the way to the centre
_POWER_SLACK = 2.0**-40  # relative: the library's power function and the sum around it


def precision(name: str) -> Any:
    """The numpy type of a model's inputs; float32 where numpy has none of that name."""
    return np.dtype(name if name in ("float16", "float32", "float64") else "float32")


def into_case(case: Case, x: np.ndarray, dtype: Any) -> np.ndarray:
    """The flat point ``x`` moved into the exact box of a property file, as numbers of ``dtype``.

    An input that no number of this type fits takes the nearest one; see `inner`.
    """
    lower, upper = inner(case, dtype)
    return np.asarray(np.clip(x.astype(dtype), lower, upper))


def into_region(
    region: Region, shapes: list[Shape], example: int, x: np.ndarray, dtype: Any
) -> np.ndarray | None:
    """The flat point ``x`` moved into one example's region, as numbers of ``dtype``.

    Returns:
        The point, or None when no number of this type was found inside.
    """
    parts = as_inputs(region, shapes)
    stops = np.cumsum([0, *(math.prod(s) for s in shapes)])
    found = []
    for part, (a, b) in zip(parts, itertools.pairwise(stops), strict=True):
        own = part.rows(example if part.batch > 1 else 0)
        point = next((p for p in _moves(own, x[a:b], dtype) if _inside(own, p)), None)
        if point is None:
            return None
        found.append(point.reshape(-1))
    return np.concatenate(found)


def _moves(part: Region, x: np.ndarray, dtype: Any) -> Iterator[np.ndarray]:
    """The point, then points ever nearer to the centre, each within the ranges of its elements."""
    shape = part.shape or ()
    lower, upper = (_plain(e)[0] for e in part.inner_ends())
    low, high = narrow(lower, dtype, np.inf), narrow(upper, dtype, -np.inf)
    point = np.clip(x.reshape(shape).astype(dtype), low, high)
    yield point
    if isinstance(part, Ball):
        centre = np.clip(_plain(part.center)[0], lower, upper)
        gap = point.astype(np.float64) - centre
        scale = min(1.0, _radius(part) / max(_norm(part, gap), np.finfo(np.float64).tiny))
        for share in _BACK:
            yield np.clip((centre + (1 - share) * scale * gap).astype(dtype), low, high)


def _inside(part: Region, point: np.ndarray) -> bool:
    if not bool(np.asarray(_plain(part.contains(point[None, None]))).all()):
        return False
    return not isinstance(part, Ball) or _surely_in_ball(part, point)


def _surely_in_ball(part: Ball, point: np.ndarray) -> bool:
    """Whether the norm, rounded up, is at most the radius: `Ball.contains` rounds to nearest."""
    gap = point.astype(np.float64) - _plain(part.center)[0]
    norm = _norm(part, gap)
    return bool(norm * (1 + _POWER_SLACK + gap.size * 2.0**-50) <= _radius(part))


def _norm(part: Ball, gap: np.ndarray) -> float:
    size = np.abs(gap).reshape(-1)
    largest = float(size.max(initial=0.0))
    if largest == 0.0:
        return 0.0
    scaled = size / largest  # no overflow, and underflow only where it cannot matter
    return largest * float((scaled**part.exponent).sum() ** (1 / part.exponent))


def _radius(part: Ball) -> float:
    return float(_plain(part.eps).reshape(-1)[0])


def _plain(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu().numpy() if is_tensor(value) else value)
