"""Lines and intervals of every elementwise function hold exactly, for the stored floats."""

from __future__ import annotations

import math
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch
from scalar_cases import CASES, REFERENCE, Case, boxes, points

from certify.ops.record import Interval

BOXES = 2000
DTYPES = (torch.float32, torch.float64)
SUSPECTS, OTHERS = 40, 15


def _column(t: torch.Tensor, index: torch.Tensor) -> list[float]:
    return [float(v) for v in t[index]]


def _at_most(k: float, z: float, c: float, value: Any, sign: int) -> bool:
    """``sign (k z + c) <= sign value`` in exact arithmetic, escalating where it is close."""
    if math.isinf(c):
        return sign * c < 0
    for digits in (60, 700):
        with mp.workdps(digits):
            line = mp.mpf(k) * mp.mpf(z) + mp.mpf(c)
            exact = value(z)
            gap = sign * (exact - line)
            scale = abs(mp.mpf(k) * mp.mpf(z)) + abs(mp.mpf(c)) + abs(exact)
            if abs(gap) > scale * mp.mpf(10) ** (10 - digits):
                return bool(gap > 0)
    return bool(gap >= -scale * mp.mpf(10) ** -600)  # equal to 600 digits: touching


def _suspects(
    k: torch.Tensor, z: torch.Tensor, c: torch.Tensor, f: torch.Tensor, sign: int
) -> torch.Tensor:
    """Places where the line comes closest to the function, judged in float64, and some others."""
    gap = sign * (f - (k * z + c)) / ((k * z).abs() + c.abs() + f.abs() + 1e-300)
    order = torch.where(gap.isnan(), torch.inf, gap).argsort()  # NaN: an infinite side
    rest = np.random.default_rng(3).choice(len(order), OTHERS)
    return torch.cat([order[:SUSPECTS], torch.as_tensor(rest)])


def _check_lines(case: Case, x: Interval, lines: Any, z: torch.Tensor, dtype: torch.dtype) -> None:
    flat_z, f = z.double().flatten(), case.forward(z.double()).flatten()
    for sign, k, c in ((1, lines.low[0], lines.low_c), (-1, lines.up[0], lines.up_c)):
        assert k.dtype == dtype and bool(k.isfinite().all())
        c = torch.zeros_like(k) if c is None else c
        assert c.dtype == dtype and not bool(c.isnan().any())
        kk, cc = (t[:, 0].expand(x.lower.shape).expand(z.shape).double().flatten() for t in (k, c))
        some = _suspects(kk, flat_z, cc, f, sign)
        for a, b, d in zip(
            _column(kk, some), _column(flat_z, some), _column(cc, some), strict=True
        ):
            if case.exact(b, dtype) is not None:
                assert _at_most(a, b, d, lambda v: case.exact(v, dtype), sign), (
                    case.label,
                    sign,
                    a,
                    b,
                    d,
                )


def test_every_elementwise_operator_has_a_reference() -> None:
    assert {c.op.name for c in CASES} == set(REFERENCE)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.label)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lines_hold(case: Case, dtype: torch.dtype) -> None:
    x = boxes(case, dtype, BOXES)
    z = points(x, 9)
    _check_lines(case, x, case.relax(None, x), z, dtype)
    if case.op.relaxed.slopes is not None:
        share = torch.rand(x.lower.shape, generator=torch.Generator().manual_seed(5), dtype=dtype)
        given = tuple(s.low + (s.high - s.low) * share for s in case.slopes(x))
        given = tuple(
            torch.minimum(torch.maximum(k, s.low), s.high)
            for k, s in zip(given, case.slopes(x), strict=True)
        )
        _check_lines(case, x, case.relax(given, x), z, dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.label)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_intervals_hold(case: Case, dtype: torch.dtype) -> None:
    x = boxes(case, dtype, BOXES, seed=7)
    z, found = points(x, 9), case.interval(x)
    assert found.lower.dtype == dtype and not bool(
        (found.lower.isnan() | found.upper.isnan()).any()
    )
    zero = torch.zeros_like(z).double().flatten()
    f = case.forward(z.double()).flatten()
    for sign, c in ((1, found.lower), (-1, found.upper)):
        cc = c.expand(z.shape).double().flatten()
        some = _suspects(zero, z.double().flatten(), cc, f, sign)
        for b, d in zip(_column(z.double().flatten(), some), _column(cc, some), strict=True):
            if case.exact(b, dtype) is not None:
                assert _at_most(0.0, b, d, lambda v: case.exact(v, dtype), sign), (
                    case.label,
                    sign,
                    b,
                    d,
                )
