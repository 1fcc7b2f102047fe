"""Words or symbols replaced by others: at most so many positions, each by one of its candidates."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from certify.core.arrays import expand, is_tensor, to_tensor, unify, widened
from certify.core.errors import BadInput, LimitExceeded
from certify.core.graph import Array, Shape
from certify.core.linear_minimum import sound
from certify.core.outward import dot_error
from certify.core.region_base import Region, register
from certify.core.region_centred import require, require_finite

if TYPE_CHECKING:
    from torch import Tensor


_LARGEST = 2**26  # numbers in the single substitutions of one example, written out


@register
@dataclass(frozen=True, eq=False)
class Substitutions(Region):
    """Sequences of embeddings with at most ``budget`` positions replaced (Huang et al. 2019).

    A linear function is least where the ``budget`` positions that gain most take their best
    candidate: positions are independent, so this is exact, and equals the dynamic programme of
    Xu et al. 2020 (section 3.3).

    Attributes:
        center: ``(L, d)`` or ``(B, L, d)``: the embedded sequence.
        candidates: ``(L, C, d)`` or ``(B, L, C, d)``; fill up with the centre itself.
        budget: positions that may change, one number or ``(B,)``.

    Raises:
        BadInput: NaN or infinity, shapes that do not fit, a fractional or negative budget.
    """

    center: Array
    candidates: Array
    budget: Array
    cut_axis = ("center", "candidates", "budget")
    loose_hull = True

    def __post_init__(self) -> None:
        center, candidates, budget = unify(self.center, self.candidates, self.budget)
        require_finite("Substitutions: center", center)
        require_finite("Substitutions: candidates", candidates)
        require((budget % 1 == 0) & (budget >= 0), "Substitutions: budget is no whole number "
                "from 0", budget)
        if candidates.ndim < 3 or center.ndim < 2:
            raise BadInput(f"Substitutions: center of shape {tuple(center.shape)} with candidates "
                           f"of shape {tuple(candidates.shape)}; give (L, d) and (L, C, d)")
        self._set(center=center, candidates=candidates, budget=budget)

    @classmethod
    def examples(cls) -> tuple[Region, ...]:
        """One and several candidates, budgets per example, nothing may change, all may."""
        rng = np.random.default_rng(2)
        center = rng.normal(size=(2, 5, 3))
        return (
            Substitutions(center, rng.normal(size=(2, 5, 2, 3)), np.array([1, 2])).batched((5, 3)),
            Substitutions(center[0], rng.normal(size=(5, 4, 3)), 9).batched((1, 5, 3)),
            Substitutions(center[0], rng.normal(size=(5, 1, 3)), 0).batched((5, 3)),
        )

    def batched(self, shape: Shape) -> Self:
        """See `Region.batched`; ``shape`` ends in ``(L, d)``."""
        shape = tuple(shape)
        if self.shape == shape:
            return self
        L, d = self.center.shape[-2:]
        if shape[-2:] != (L, d) or any(n != 1 for n in shape[:-2]):
            raise BadInput(f"Substitutions in {L} embeddings of {d} do not fit inputs of shape "
                           f"{shape}")
        center = self.center.reshape(-1, *shape)
        C = self.candidates.shape[-2]
        candidates = self.candidates.reshape(-1, L, C, d)
        if len(candidates) != len(center) or tuple(self.candidates.shape[-3:]) != (L, C, d):
            raise BadInput(f"Substitutions: candidates of shape {tuple(self.candidates.shape)} do "
                           f"not fit a center of shape {tuple(self.center.shape)}")
        budget = self.budget.reshape(-1)
        if len(budget) not in (1, len(center)):
            raise BadInput(f"Substitutions: {len(budget)} budgets for {len(center)} examples")
        return self._with(shape=shape, center=center, candidates=candidates,
                          budget=expand(budget, (len(center),)))

    def ends(self) -> tuple[Array, Array]:
        """The hull of the centre and, where the budget allows one, all candidates."""
        shape = self._shape()
        center, candidates = widened(self.center), widened(self.candidates)
        allowed = widened(self.budget).reshape(-1, *(1,) * len(shape)) > 0
        whole = (len(center), *shape)
        if is_tensor(center):
            low, high = candidates.amin(2).reshape(whole), candidates.amax(2).reshape(whole)
            low, high = low.minimum(center), high.maximum(center)
            return low.where(allowed, center), high.where(allowed, center)
        low = np.minimum(candidates.min(2).reshape(whole), center)
        high = np.maximum(candidates.max(2).reshape(whole), center)
        return np.where(allowed, low, center), np.where(allowed, high, center)

    def _parts(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(center (B, L, d), moves (B, L, C, d), budget (B,))``."""

        def make() -> tuple[Tensor, Tensor, Tensor]:
            candidates = to_tensor(self.candidates, like.dtype, like.device)
            B, L, _, d = candidates.shape
            center = to_tensor(self.center, like.dtype, like.device).reshape(B, L, d)
            return (center, candidates - center.unsqueeze(2),
                    to_tensor(self.budget, like.dtype, like.device))

        return self._cached("parts", like, make)

    def _gains(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Change by the best candidate per position, at most 0, and which: ``(B, R, L)``."""
        import torch

        center, moves, _ = self._parts(a)
        rows = a.reshape(*a.shape[:2], *center.shape[1:]).expand(len(center), *a.shape[1:2], -1, -1)
        best, which = torch.einsum("brld,blcd->brlc", rows, moves).min(-1)
        return best.clamp(max=0), which

    def _chosen(self, gains: Tensor) -> Tensor:
        """Which positions change, bool ``(B, R, L)``."""
        _, _, budget = self._parts(gains)
        rank = gains.argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)
        return rank < budget.reshape(-1, 1, 1)

    def parts_of_affine(self) -> tuple[Array, Array] | None:
        """The centre, and every single substitution."""
        center, candidates = widened(self.center), widened(self.candidates)
        B, L, C, d = candidates.shape
        if L * C * L * d > _LARGEST:
            return None
        if is_tensor(center):
            single = center.reshape(B, 1, 1, L, d).expand(B, L, C, L, d).clone()
        else:
            single = np.broadcast_to(center.reshape(B, 1, 1, L, d), (B, L, C, L, d)).copy()
        at = list(range(L))
        single[:, at, :, at] = candidates.swapaxes(0, 1)
        flat = single.reshape(B, L * C, *self._shape())
        whole = center.reshape(B, 1, *self._shape())
        if not is_tensor(center):
            points = np.concatenate([whole, flat], 1)
            return points, points
        import torch

        joined = torch.cat([whole, flat], 1)
        return joined, joined

    def affine_range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The centre's value, and the ``budget`` positions that change it most: what positions add
        is added up."""
        import torch

        B, L, C, _ = self.candidates.shape
        budget = to_tensor(self.budget, lower.dtype, lower.device).reshape(-1, 1, 1)
        most = min(int(budget.max()), L)
        rank = torch.arange(most, device=lower.device).reshape(1, -1, 1)
        found = []
        for sign, near, far in ((1, lower, upper), (-1, -upper, -lower)):
            change = (near[:, 1:] - far[:, :1]).reshape(B, L, C, -1).amin(2).clamp(max=0)
            few = torch.where(rank < budget, change.topk(most, 1, largest=False).values, 0.0)
            size = near[:, 0].abs() + far[:, 0].abs() + few.abs().sum(1)
            total = near[:, 0] + few.sum(1) - 2.0**-52 * (most + 8) * size
            found.append(sign * total)
        return found[0], found[1]

    def minimum(self, A: Tensor, rigorous: bool = False) -> Tensor:
        """Exact: the centre's value and the best gains the budget allows."""
        import torch

        a = self._coefficients(A, rigorous)
        center, moves, budget = self._parts(a)
        flat = center.reshape(len(center), -1)
        gains, _ = self._gains(a)
        value = torch.einsum("brn,bn->br", a.expand(len(flat), *a.shape[1:]), flat)
        most = min(int(budget.max()), gains.shape[-1])
        few = gains.topk(most, -1, largest=False).values
        allowed = torch.arange(most, device=a.device) < budget.reshape(-1, 1, 1)
        total = value + torch.where(allowed, few, 0.0).sum(-1)
        if not rigorous:
            return total
        # |a| times what positions may reach bounds every term; 4 more roundings for the moves.
        reach = 3 * (flat.abs() + moves.abs().amax(2).reshape(flat.shape))
        size = torch.einsum("brn,bn->br", a.abs().expand(len(flat), *a.shape[1:]), reach)
        return sound(total, 2 * dot_error(a.shape[-1] + 16) * size + 2.0**-500)

    def minimiser(self, A: Tensor) -> Tensor:
        """The sequence that attains it."""
        a = self._coefficients(A).detach()
        gains, which = self._gains(a)
        return self._sequence(self._chosen(gains) & (gains < 0), which, a)

    def _sequence(self, change: Tensor, which: Tensor, like: Tensor) -> Tensor:
        """Centres with positions ``change (B, R, L)`` replaced by candidates ``which``."""
        import torch

        candidates = to_tensor(self.candidates, like.dtype, like.device)
        B, L, C, d = candidates.shape
        rows = change.shape[1]
        center = to_tensor(self.center, like.dtype, like.device).reshape(B, 1, L, d)
        index = which.reshape(B, rows, L, 1, 1).expand(B, rows, L, 1, d)
        picked = candidates.unsqueeze(1).expand(B, rows, L, C, d).gather(3, index).squeeze(3)
        found = torch.where(change.unsqueeze(-1), picked, center)
        return found.reshape(B, rows, *self._shape())

    def project(self, x: Tensor) -> Tensor:
        """The member whose replaced positions come nearest, chosen greedily (which is exact)."""
        candidates = to_tensor(self.candidates, x.dtype, x.device)
        B, L, _, d = candidates.shape
        point = x.reshape(*x.shape[:2], L, d)
        center = to_tensor(self.center, x.dtype, x.device).reshape(B, 1, L, d)
        stay = (point - center).square().sum(-1)
        move, which = (point.unsqueeze(3) - candidates.unsqueeze(1)).square().sum(-1).min(-1)
        gains = (move - stay).clamp(max=0)
        return self._sequence(self._chosen(gains) & (gains < 0), which, x)

    def contains(self, x: Any, slack: float = 0.0) -> Array:
        """Whether every position is the centre's or a candidate's, within the budget."""
        point, _ = self._points(x)
        center, candidates = widened(self.center), widened(self.candidates)
        if is_tensor(point):
            center, candidates = (to_tensor(v, point.dtype, point.device)
                                  for v in (center, candidates))
        B, L, _, d = candidates.shape
        point = point.reshape(*point.shape[:2], L, d)
        center, candidates = center.reshape(B, 1, L, d), candidates[:, None]
        same = (abs(point - center) <= slack * abs(center)).all(-1)
        there = (abs(point[:, :, :, None] - candidates) <= slack * abs(candidates)).all(-1).any(-1)
        budget = widened(self.budget).reshape(-1, 1)
        if is_tensor(point):
            budget = to_tensor(budget, point.dtype, point.device)
        found: Array = (same | there).all(-1) & ((~same).sum(-1) <= budget)
        return found


def every_member(region: Substitutions, limit: int = 1_000_000) -> Iterator[np.ndarray]:
    """All members of a region of one example, ``(*shape)`` each, the centre first.

    Raises:
        LimitExceeded: there are more than ``limit``.
    """
    if region.batch != 1:
        raise BadInput(f"members are listed for one example, the region has {region.batch}")
    shape = region._shape()
    center = np.asarray(region.center, dtype=np.float64).reshape(-1, shape[-1])
    candidates = np.asarray(region.candidates, dtype=np.float64)[0]
    options = [[c for c in candidates[i] if not np.array_equal(c, center[i])]
               for i in range(len(center))]
    budget = min(int(np.asarray(region.budget)[0]), len(center))
    count = 0
    for size in range(budget + 1):
        for places in itertools.combinations(range(len(center)), size):
            for choice in itertools.product(*(options[i] for i in places)):
                count += 1
                if count > limit:
                    raise LimitExceeded(f"more than {limit} sequences; give a smaller budget")
                found = center.copy()
                found[list(places)] = np.array(choice).reshape(size, shape[-1])
                yield found.reshape(shape)
