"""Unit rows: "this one element of that step", without writing down a matrix of zeros and ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from certify.bounds.program import Step


@dataclass(frozen=True, eq=False)
class UnitRows:
    """Rows that each select one element.

    Attributes:
        index: flat positions ``(B, R)``.
        shape: shape of the step's result, one example.
        like: a tensor of the right precision and device.
    """

    index: Tensor
    shape: tuple[int, ...]
    like: Tensor

    def zeros(self) -> Tensor:
        """One zero per row, ``(B, R)``."""
        return self.like.new_zeros(self.index.shape)

    def dense(self) -> Tensor:
        """The rows as ``(B, R, *shape)``."""
        B, R = self.index.shape
        flat = self.like.new_zeros(B, R, math.prod(self.shape))
        flat.scatter_(2, self.index.unsqueeze(-1), 1.0)
        return flat.reshape(B, R, *self.shape)

    def pick(self, values: Tensor) -> Tensor:
        """The selected elements of ``values (B or 1, *shape)``, as ``(B, R)``."""
        flat = per_example(values).expand(self.index.shape[0], -1)
        return torch.gather(flat, 1, self.index)


def per_example(x: Tensor) -> Tensor:
    """``(B, *shape)`` as ``(B, n)``, also where the shape is ``()``."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def dense(rows: Any) -> Tensor:
    """``rows`` as a tensor of coefficients."""
    return rows if isinstance(rows, Tensor) else rows.dense()


def pull_unit_rows(step: Step, rows: UnitRows) -> tuple[Any, ...] | None:
    """Unit rows through an affine step without a matrix product; None where none is at hand."""
    name, site = step.op.name, step.site
    if name == "reshape" or (
        name in ("add", "sub") and site.varies == (True, False) and site.shapes[0] == site.shape
    ):
        moved = UnitRows(rows.index, site.shapes[0], rows.like)
        return (moved,) + (None,) * (len(step.sources) - 1)
    weight = step.constants[1] if len(step.constants) > 1 else None
    if name == "linear" and weight is not None and math.prod(site.shape[:-1]) == 1:
        B, R = rows.index.shape
        part = weight.index_select(0, rows.index.flatten()).reshape(B, R, *site.shapes[0])
        return part, None, None
    return None
