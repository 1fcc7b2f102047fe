"""A specification as something to descend on: how far a point is from each unsafe clause."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from certify.core.spec import Spec


@dataclass(frozen=True, eq=False)
class Goal:
    """The unsafe set of one example in tensors: a union of K clauses over R rows.

    Attributes:
        y: ``(R, num_outputs)``; x: ``(R, num_inputs)`` or None; bound: ``(R,)``; strict: ``(R,)``.
        members: ``(K, most)`` rows of each clause, the last one repeated; None when every clause is
            the one row of its number.
    """

    y: Tensor
    x: Tensor | None
    bound: Tensor
    strict: Tensor
    members: Tensor | None
    count: int

    @cached_property
    def compares(self) -> bool:
        """Whether rows only ask which outputs are larger, by how much being without meaning."""
        plain = self.x is None and not bool(self.bound.any())
        two = (self.y.abs().sum(1) == 2) & (self.y.amax(1) == 1) & (self.y.amin(1) == -1)
        return plain and bool(two.all())

    def values(self, x: Tensor, y: Tensor) -> Tensor:
        """``g`` of every row at points ``x (N, n)`` with outputs ``y (N, m)``; NaN becomes +inf."""
        g = y.flatten(1) @ self.y.T - self.bound
        if self.x is not None:
            g = g + x @ self.x.T
        return g.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)

    def worst(self, g: Tensor) -> Tensor:
        """The largest row of each clause, ``(N, K)``: at most 0 inside the clause."""
        return g if self.members is None else g[:, self.members].amax(-1)

    def inside(self, g: Tensor) -> Tensor:
        """Which clauses each point lies in, ``(N, K)``."""
        good = torch.where(self.strict, g < 0, g <= 0)
        return good if self.members is None else good[:, self.members].all(-1)

    def loss(self, g: Tensor, clause: Tensor) -> Tensor:
        """To be made small: the largest row of each point's clause, plus all that is above 0.

        The second part keeps the rows of an intersection from taking turns.
        """
        if self.members is None:
            return g.gather(1, clause[:, None])[:, 0]
        own = g.gather(1, self.members[clause])
        return own.amax(1) + own.clamp(min=0).mean(1)


def goal(spec: Spec, example: int, dtype: torch.dtype, device: torch.device) -> Goal:
    """The unsafe set of one example of the batch."""
    rows = spec.only(example).rows()

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device=device, dtype=dtype)

    strict = torch.from_numpy(rows.strict.copy()).to(device)
    members = _members(rows.group, len(spec.clauses))
    return Goal(
        tensor(rows.y[0]),
        None if rows.x is None else tensor(rows.x[0]),
        tensor(rows.bound),
        strict,
        None if members is None else members.to(device),
        len(spec.clauses),
    )


def _members(group: np.ndarray, count: int) -> Tensor | None:
    if len(group) == count:
        return None
    starts = np.searchsorted(group, np.arange(count + 1))
    most = int(np.diff(starts).max())
    index = np.minimum(starts[:-1, None] + np.arange(most), starts[1:, None] - 1)
    return torch.from_numpy(index)
