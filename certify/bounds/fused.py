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
    """Rows through elementwise lines: new rows, bias and ``|A| . cost``, the last two ``(B, R)`` float64."""
    values = rows.values if isinstance(rows, PatchRows) else rows
    if len(lines.low) != 1 or lines.site.shapes[0] != lines.site.shape or not kernels.usable(values):
        return None
    zero = values.new_zeros((1, 1) + (1,) * len(lines.site.shape))
    four = [zero if t is None else t for t in (lines.low[0], lines.low_c, lines.up[0], lines.up_c)]
    if not all(bool(t.isfinite().all()) for t in four):
        return None
    B, shape = values.shape[0], lines.site.shape
    full = [t.expand(B, t.shape[1], *shape) for t in four]
    price = (values.new_zeros(()) if cost is None else cost).expand(B, *shape)
    parts, sums = [], []
    for b in range(B):
        found = _relax_one(rows, b, [t[b] for t in full], price[b])
        if found is None:
            return None
        parts.append(found[0])
        sums.append(found[1])
    total = torch.stack(sums)
    out = torch.stack(parts).reshape(values.shape)
    new = replace(rows, values=out) if isinstance(rows, PatchRows) else out
    return new, total[..., 0], total[..., 1]


def _relax_one(rows: Any, b: int, lines: list[Tensor], price: Tensor) -> tuple[Tensor, Tensor] | None:
    if not isinstance(rows, PatchRows):
        four = tuple(t.flatten(1) for t in lines)
        return kernels.relax_dense(rows[b].flatten(1), four, price.flatten())
    if any(t.shape[0] != 1 for t in lines):
        return None
    maps = tuple(t[0].reshape(rows.shape[-3:]) for t in lines)
    return kernels.relax_windows(rows.values[b], rows.top[b], rows.left[b], maps, price.reshape(rows.shape[-3:]))


def dot_rows(rows: Any, first: Tensor | None, second: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """``(A . first, |A| . second)``, each ``(B, R)`` float64, for ``(B or 1, *shape)`` vectors or None."""
    values = rows.values if isinstance(rows, PatchRows) else rows
    if not isinstance(values, Tensor) or not kernels.usable(values):
        return None
    shape = rows.shape if isinstance(rows, PatchRows) else rows.shape[2:]
    zero = values.new_zeros((1, *shape)) if first is None or second is None else None
    B = values.shape[0]
    one = (zero if first is None else first).expand(B, *shape)  # type: ignore[union-attr]
    two = (zero if second is None else second).expand(B, *shape)  # type: ignore[union-attr]
    sums = []
    for b in range(B):
        if isinstance(rows, PatchRows):
            maps = (one[b].reshape(shape[-3:]), two[b].reshape(shape[-3:]))
            sums.append(kernels.dot_windows(rows.values[b], rows.top[b], rows.left[b], *maps))
        else:
            sums.append(kernels.dot_dense(rows[b].flatten(1), one[b].flatten(), two[b].flatten()))
    total = torch.stack(sums)
    return total[..., 0], total[..., 1]


def box_rows(rows: Any, region: Region) -> Tensor | None:
    """Rigorous minimum ``(B, R)``, float64, of rows over a box, without writing them out densely."""
    if not isinstance(region, BoxShaped):
        return None
    values = rows.values if isinstance(rows, PatchRows) else rows
    if not isinstance(values, Tensor) or not kernels.usable(values):
        return None
    lower, upper = (to_tensor(e).to(values.device, torch.float64) for e in region.ends())
    middle = (lower + upper) / 2
    radius = torch.maximum(upper - middle, middle - lower) * (1 + 4 * UNIT64)
    terms = values[0, 0].numel() + 8
    spread = radius + 4 * gamma(terms, UNIT64) * (middle.abs() + radius) + 2.0**-500
    found = dot_rows(rows, middle, spread)
    return None if found is None else found[0] - found[1]
