"""Rows through relaxations, onto vectors and onto boxes, in one pass where kernels are at hand.

Everything here returns None where the plain tensor code has to do the work: small tensors, other
devices, gradients, several operands, infinite intercepts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from certify.bounds import kernels
from certify.bounds.patches import PatchRows
from certify.bounds.program import to_tensor
from certify.bounds.rounding import UNIT64, gamma
from certify.core.region import Region
from certify.core.region_box import BoxShaped
from certify.ops.families import Lines


def relax_rows(rows: Any, lines: Lines, cost: Tensor | None) -> tuple[Any, Tensor, Tensor] | None:
    """Rows through elementwise lines: new rows, then bias and ``|A| . cost``.

    Bias and cost are ``(B, R)`` float64.
    """
    values = rows.values if isinstance(rows, PatchRows) else rows
    given = [t for t in (*lines.low, lines.low_c, *lines.up, lines.up_c) if t is not None]
    if (
        len(lines.low) != 1
        or lines.site.shapes[0] != lines.site.shape
        or not kernels.usable(values[0], *given)  # one call per example
    ):
        return None
    zero = values.new_zeros((1, 1) + (1,) * len(lines.site.shape))
    four = [zero if t is None else t for t in (lines.low[0], lines.low_c, lines.up[0], lines.up_c)]
    if not all(bool(t.isfinite().all()) for t in four):
        return None
    if isinstance(rows, PatchRows) and any(t.shape[1] != 1 for t in four):
        return None
    B, shape = values.shape[0], lines.site.shape
    order = _Order(rows, shape)
    full = [t.expand(B, t.shape[1], *shape) for t in four]
    price = (values.new_zeros(()) if cost is None else cost).expand(B, *shape)
    found = []
    for b in range(B):
        maps = tuple(order.maps(t[b]) for t in full)
        expense = order.maps(price[b : b + 1])[0]
        if isinstance(rows, PatchRows):
            maps = tuple(t[0] for t in maps)
            found.append(kernels.relax_windows(values[b], rows.top[b], rows.left[b], maps, expense))
        else:
            found.append(kernels.relax_dense(order.rows(b), maps, expense))
    sums = torch.stack([f[1] for f in found])
    return order.back([f[0] for f in found]), sums[..., 0], sums[..., 1]


def dot_rows(
    rows: Any, first: Tensor | None, second: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """``(A . first, |A| . second)``, each ``(B, R)`` float64.

    ``first, second`` are ``(B or 1, *shape)``, or None for zero.
    """
    if not _worth_it(rows):
        return None
    values = rows.values if isinstance(rows, PatchRows) else rows
    shape = rows.shape if isinstance(rows, PatchRows) else rows.shape[2:]
    B, zero = values.shape[0], values.new_zeros((1,) * (1 + len(shape)))
    order = _Order(rows, shape)
    pair = [(zero if t is None else t).expand(B, *shape) for t in (first, second)]
    sums = []
    for b in range(B):
        one, two = (order.maps(t[b : b + 1])[0] for t in pair)
        if isinstance(rows, PatchRows):
            sums.append(kernels.dot_windows(values[b], rows.top[b], rows.left[b], one, two))
        else:
            sums.append(kernels.dot_dense(order.rows(b), one, two))
    total = torch.stack(sums)
    return total[..., 0], total[..., 1]


def _worth_it(rows: Any) -> bool:
    """Windows always: written out densely they would be many times as large."""
    return isinstance(rows, PatchRows) or (isinstance(rows, Tensor) and kernels.usable(rows[0]))


class _Order:
    """The memory order of rows and vectors brought into it: channels last, or the shape's."""

    def __init__(self, rows: Any, shape: tuple[int, ...]) -> None:
        self.source, self.shape = rows, shape
        self.windows = isinstance(rows, PatchRows)
        self.last = self.windows
        if not self.windows and len(shape) >= 3 and not rows.is_contiguous():
            flat = rows.reshape(-1, *shape[-3:])
            self.last = flat.is_contiguous(memory_format=torch.channels_last)

    def maps(self, t: Tensor) -> Tensor:
        """``(K, *shape)`` as ``(K, H, W, C)`` for windows, else ``(K, n)`` in the rows' order."""
        if self.last:
            t = t.reshape(-1, *self.shape[-3:]).permute(0, 2, 3, 1)
        return t if self.windows else t.reshape(t.shape[0], -1)

    def rows(self, b: int) -> Tensor:
        """Dense rows of example ``b`` as ``(R, n)``, without a copy."""
        return self.maps(self.source[b])

    def back(self, found: list[Tensor]) -> Any:
        """What kernels returned, as rows of the kind they came from."""
        if self.windows:
            values = torch.stack(found) if len(found) > 1 else found[0].unsqueeze(0)
            return replace(self.source, values=values, clean=True)
        out = torch.stack(found) if len(found) > 1 else found[0].unsqueeze(0)
        B, R = out.shape[:2]
        if not self.last:
            return out.reshape(B, R, *self.shape)
        C, H, W = self.shape[-3:]
        return out.reshape(B * R, H, W, C).permute(0, 3, 1, 2).reshape(B, R, *self.shape)


def box_rows(rows: Any, region: Region) -> Tensor | None:
    """Rigorous minimum ``(B, R)``, float64, of rows over a box, not written out densely."""
    if not isinstance(region, BoxShaped) or not _worth_it(rows):
        return None
    values = rows.values if isinstance(rows, PatchRows) else rows
    lower, upper = (to_tensor(e).to(values.device, torch.float64) for e in region.ends())
    middle = (lower + upper) / 2
    radius = torch.maximum(upper - middle, middle - lower) * (1 + 4 * UNIT64)
    terms = values[0, 0].numel() + 8
    spread = radius + 4 * gamma(terms, UNIT64) * (middle.abs() + radius) + 2.0**-500
    found = dot_rows(rows, middle, spread)
    return None if found is None else found[0] - found[1]
