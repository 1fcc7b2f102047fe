"""Where a bound loses: one backward pass with everything on the way written down."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from certify.bounds import evaluate
from certify.bounds.crown import Slopes, State, relax_with
from certify.bounds.program import Program
from certify.bounds.rows import dense
from certify.core.region import Product
from certify.ops.record import Relaxation
from certify.search.neuron_split.bounding import Variables, posed
from certify.search.neuron_split.domains import Domains
from certify.search.neuron_split.root import Chooser, Root


@dataclass(frozen=True, eq=False)
class _Watched:
    """A relaxation that keeps what goes through it."""

    inner: Relaxation
    index: int
    seen: dict[int, Tensor]

    def backward(self, A: Tensor) -> tuple[tuple[Tensor | None, ...], Tensor]:
        """See `Relaxation.backward`."""
        self.seen[self.index] = A
        return self.inner.backward(A)

    def weight(self, magnitudes: tuple[Tensor | None, ...]) -> Tensor:
        """See `Relaxation.weight`."""
        return self.inner.weight(magnitudes)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One bound, taken apart.

    Attributes:
        state: intervals of the sub-problems.
        slopes: in use.
        at: by nonlinear step, the coefficients ``(N, *shape)`` of its result.
        plane: ``(N, n)`` the row's plane in all inputs, flattened and joined.
        points: per model input ``(N, *shape)``: where that plane is lowest.
        values: every step there, ``(N, *shape)``.
        margin: ``(N,)``: the rows' own value there, weighted.
    """

    state: State
    slopes: Slopes
    at: dict[int, Tensor]
    plane: Tensor
    points: tuple[Tensor, ...]
    values: list[Tensor]


def taken_apart(root: Root, state: State, domains: Domains) -> Anatomy:
    """One backward pass with the stored slopes, multipliers and weights."""
    chooser = Chooser(state, root.layout, len(domains))
    like = state.program.dtype
    chosen = Variables(
        chooser.inside(domains.slopes), domains.beta.to(like), domains.weight.to(like)
    )
    rows, slopes, _ = posed(root, state, chooser, domains, chosen)
    seen: dict[int, Tensor] = {}
    plain = relax_with(state, slopes)
    sweep = state.sweep(rows)
    sweep.columns = None
    sweep.run(lambda step: _Watched(plain(step), step.index, seen))
    program = state.program
    parts = [_part(program, sweep.coefficients.get(i), i, len(domains)) for i in program.inputs]
    many = isinstance(state.region, Product)
    lowest = state.region.minimiser(tuple(parts) if many else parts[0])
    points = tuple(p[:, 0] for p in (lowest if many else (lowest,)))
    return Anatomy(
        state,
        slopes,
        {i: A[:, 0] for i, A in seen.items()},
        torch.cat([p.reshape(len(domains), -1) for p in parts], 1),
        points,
        evaluate.run(program, points),
    )


def _part(program: Program, found: object, index: int, count: int) -> Tensor:
    if found is None:
        like = torch.empty(0, dtype=program.dtype, device=program.device)
        return like.new_zeros(count, 1, *program.shape(index))
    return dense(found)
