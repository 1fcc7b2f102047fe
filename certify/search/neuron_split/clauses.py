"""Clauses as rows to bound: one weighted sum of its rows per sub-problem."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from certify.bounds.program import Program
from certify.bounds.rounding import magnitude
from certify.core.outward import UNDERFLOW, dot_error
from certify.core.spec import Rows
from certify.ops.record import Interval


@dataclass(frozen=True, eq=False)
class Clauses:
    """All clauses of a specification, padded to the longest with rows that are never used.

    A counterexample satisfies every row of one clause, so it also satisfies their sum with any
    weights >= 0: a positive lower bound of that sum refutes the clause.

    Attributes:
        y: ``(K, r, num_outputs)`` float64; x: ``(K, r, num_inputs)`` or None.
        bound: ``(K, r)``; used: ``(K, r)`` bool.
        strict: ``(K,)`` all rows of the clause are strict, so that a sum of 0 refutes it.
    """

    y: Tensor
    x: Tensor | None
    bound: Tensor
    used: Tensor
    strict: Tensor

    @classmethod
    def of(cls, rows: Rows, device: str) -> Clauses:
        """The clauses of a specification of batch 1."""
        count = int(rows.group[-1]) + 1
        starts = np.searchsorted(rows.group, np.arange(count + 1))
        most = int(np.diff(starts).max())
        place = np.minimum(starts[:-1, None] + np.arange(most), starts[1:, None] - 1)
        used = np.arange(most) < np.diff(starts)[:, None]

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        strict = np.asarray((rows.strict[place] | ~used).all(axis=1))
        return cls(
            tensor(rows.y[0][place]),
            None if rows.x is None else tensor(rows.x[0][place]),
            tensor(rows.bound.reshape(-1)[place]),
            tensor(used),
            tensor(strict),
        )

    def __len__(self) -> int:
        return len(self.strict)

    def rows(self, program: Program, clause: Tensor, weight: Tensor) -> dict[int, Tensor]:
        """Coefficients ``(N, 1, *shape)`` by step index.

        Args:
            clause: ``(N,)``; weight: ``(N, r)`` >= 0, of the program's precision.
        """
        found = {program.output: self._mixed(self.y, clause, weight)}
        if self.x is not None:
            sizes = [math.prod(program.shape(i)) for i in program.inputs]
            parts = torch.split(self._mixed(self.x, clause, weight), sizes, dim=-1)
            for index, part in zip(program.inputs, parts, strict=True):
                found[index] = found[index] + part if index in found else part
        return {i: t.reshape(len(clause), 1, *program.shape(i)) for i, t in found.items()}

    def threshold(self, clause: Tensor, weight: Tensor) -> Tensor:
        """The weighted sum of thresholds ``(N,)``, in the precision of ``weight``."""
        return (self.bound[clause].to(weight.dtype) * weight).sum(1)

    def threshold_size(self, clause: Tensor, weight: Tensor) -> Tensor:
        """The sum of the absolute terms of `threshold`, ``(N,)``."""
        return (self.bound[clause].abs().to(weight.dtype) * weight).sum(1)

    def lost(
        self, program: Program, bounds: list[Interval | None], clause: Tensor, weight: Tensor
    ) -> Tensor:
        """What rounding may have changed in float64 rows and thresholds ``(N,)``; 0 for one row.

        With a single weight of 1 every product and sum is exact.
        """
        size = self.bound[clause].abs().mul(weight).sum(1)
        size = size + _reach(self._mixed(self.y.abs(), clause, weight), bounds[program.output])
        if self.x is not None:
            reach = [_flat(magnitude(bounds[i])) for i in program.inputs]  # type: ignore[arg-type]
            size = size + (self._mixed(self.x.abs(), clause, weight) * torch.cat(reach, 1)).sum(1)
        terms = weight.shape[1]
        error = dot_error(terms + self.y.shape[2]) * size + (terms + 8) * UNDERFLOW * (1 + size)
        plain = ((weight == 0) | (weight == 1)).all(1) & (weight.sum(1) == 1)
        return torch.where(plain, 0.0, error)

    def refuted(self, clause: Tensor, margin: Tensor) -> Tensor:
        """Which margins ``(N,)`` refute their clause; as `Rows.refuted`, NaN refutes nothing."""
        return torch.where(self.strict[clause], margin >= 0, margin > 0)

    @staticmethod
    def _mixed(rows: Tensor, clause: Tensor, weight: Tensor) -> Tensor:
        if rows.shape[1] == 1:
            return rows[clause, 0].to(weight.dtype) * weight
        return torch.einsum("nr,nro->no", weight, rows[clause].to(weight.dtype))


def _flat(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1)


def _reach(rows: Tensor, box: Interval | None) -> Tensor:
    if box is None:
        raise TypeError("the output has no bounds")
    return (rows * _flat(magnitude(box))).nan_to_num(nan=torch.inf).sum(1)
