"""The points of a box that meet linear inequalities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from certify.core.arrays import expand, fit, is_tensor, to_tensor, unify, widened
from certify.core.errors import BadInput
from certify.core.graph import Array, Shape
from certify.core.linear_minimum import over_box, over_box_rigorous, sound
from certify.core.outward import dot_error, midpoint_radius
from certify.core.region_base import Region, every, register
from certify.core.region_centred import require, require_finite

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True, eq=False)
class Polytope(Region):
    """``lower <= x <= upper`` and ``G x <= h`` over the flattened input.

    The minimum of a linear function comes from a linear programme, but is not its word: for any
    ``y >= 0``, ``min over the box of (A + y G) x - y h`` is a lower bound, and the programme's
    multipliers are only the ``y``.

    Attributes:
        lower, upper: ends of the box.
        G: ``(m, n)``; h: ``(m,)``.

    Raises:
        BadInput: NaN or infinity, shapes that do not fit, or no point at all.
    """

    lower: Array
    upper: Array
    G: Array
    h: Array
    cut_axis = ("lower", "upper")
    loose_hull = True

    def __post_init__(self) -> None:
        lower, upper, G, h = unify(self.lower, self.upper, self.G, self.h)
        for name, value in (("lower", lower), ("upper", upper), ("G", G), ("h", h)):
            require_finite(f"Polytope: {name}", value)
        require(lower <= upper, "Polytope: lower is above upper", lower, upper)
        if G.ndim != 2 or tuple(h.shape) != (len(G),):
            raise BadInput(f"Polytope: G of shape {tuple(G.shape)} and h of shape "
                           f"{tuple(h.shape)}; give (m, n) and (m,)")
        self._set(lower=lower, upper=upper, G=G, h=h)

    @classmethod
    def examples(cls) -> tuple[Region, ...]:
        """A cut corner, a thin slice, a box with idle inequalities."""
        rng = np.random.default_rng(3)
        return (
            Polytope(-1.0, 1.0, [[1.0, 1, 1, 1], [-1, 2, 0, 0]], [1.0, 0.5]).batched((2, 2)),
            Polytope(np.zeros((2, 3)), np.ones((2, 3)), [[1.0, 1, 1], [-1, -1, -1]],
                     [1.5, -1.4]).batched((3,)),
            Polytope(-1.0, 2.0, rng.normal(size=(3, 4)), np.full(3, 50.0)).batched((1, 4)),
        )

    def batched(self, shape: Shape) -> Self:
        """See `Region.batched`."""
        shape = tuple(shape)
        if self.shape == shape:
            return self
        n = int(np.prod(shape))
        if self.G.shape[1] != n:
            raise BadInput(f"Polytope: G has {self.G.shape[1]} columns for {n} input elements")
        lower, upper = (fit(v, shape, "Polytope") for v in (self.lower, self.upper))
        batch = max(len(lower), len(upper))
        lower, upper = (expand(v, (batch, *shape)) for v in (lower, upper))
        found = self._with(shape=shape, lower=lower, upper=upper)
        found._set(_anchor=found._chebyshev())
        return found

    def _with(self, **changes: Any) -> Self:
        copy = super()._with(**changes)
        if "_anchor" in self.__dict__ and "_anchor" not in copy.__dict__:
            copy.__dict__["_anchor"] = self.__dict__["_anchor"]
        return copy

    def rows(self, index: Any) -> Self:
        """See `Region.rows`."""
        found = super().rows(index)
        pick = slice(index, index + 1 or None) if isinstance(index, int) else index
        found.__dict__["_anchor"] = self.__dict__["_anchor"][pick]
        return found

    def _plain(self) -> tuple[np.ndarray, ...]:
        """``lower, upper (B, n), G, h`` as float64 numpy."""
        arrays = [v.detach().cpu().numpy() if is_tensor(v) else v
                  for v in (self.lower, self.upper, self.G, self.h)]
        low, high, G, h = (np.asarray(v, dtype=np.float64) for v in arrays)
        return low.reshape(len(low), -1), high.reshape(len(high), -1), G, h

    def _chebyshev(self) -> np.ndarray:
        """A point well inside, ``(B, n)``."""
        from scipy.optimize import linprog

        lower, upper, G, h = self._plain()
        norms, found = np.linalg.norm(G, axis=1), []
        for low, high in zip(lower, upper, strict=True):
            n = len(low)
            cost = np.append(np.zeros(n), -1.0)
            A = np.column_stack([G, norms])
            solved = linprog(cost, A_ub=A, b_ub=h, bounds=[
                *zip(low, high, strict=True), (0, max(1e-9, float((high - low).max())))])
            if solved.status != 0:
                raise BadInput("Polytope: no point of the box meets the inequalities")
            found.append(solved.x[:n])
        return np.stack(found)

    def ends(self) -> tuple[Array, Array]:
        """The box itself: an outer bound."""
        self._shape()
        return widened(self.lower), widened(self.upper)

    def _solved(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Multipliers ``(B, R, m)`` and points ``(B, R, n)`` of the programmes."""
        from scipy.optimize import linprog

        lower, upper, G, h = self._plain()
        rows = a.detach().double().cpu().numpy()
        rows = np.broadcast_to(rows, (len(lower), *rows.shape[1:]))
        y = np.zeros((*rows.shape[:2], len(h)))
        x = np.empty(rows.shape)
        for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
            bounds = np.stack([low, high], 1)
            for r, row in enumerate(rows[i]):
                solved = linprog(row, A_ub=G, b_ub=h, bounds=bounds, method="highs")
                good = solved.status == 0
                x[i, r] = solved.x if good else self.__dict__["_anchor"][i]
                if good:
                    y[i, r] = np.maximum(-np.asarray(solved.ineqlin.marginals), 0.0)
        return to_tensor(y, a.dtype, a.device), to_tensor(x, a.dtype, a.device)

    def minimum(self, A: Tensor, rigorous: bool = False) -> Tensor:
        """The programme's optimum, by its multipliers; not below the box's own minimum."""
        import torch

        a = self._coefficients(A, rigorous)
        y, x = self._solved(a)
        G, h = (to_tensor(v, a.dtype, a.device) for v in (self.G, self.h))
        with torch.no_grad():
            shifted = a + y @ G
            mid, rad = (self._flat(v, a) for v in midpoint_radius(*self.ends()))
            if rigorous:
                # A rounding in the shifted coefficients is worth as much as one in the sum.
                reach = mid.abs() + rad
                size = (a.abs() + y @ G.abs()) @ reach.unsqueeze(-1)
                size = size.squeeze(-1) + y @ h.abs()
                value = over_box_rigorous(shifted, mid, rad) - y @ h
                value = sound(value, 4 * dot_error(a.shape[-1] + len(h) + 8) * size + 2.0**-500)
                plain = over_box_rigorous(a, mid, rad)
            else:
                value = over_box(shifted, mid, rad) - y @ h
                plain = over_box(a, mid, rad)
            value = torch.maximum(value, plain)
        return value + ((a - a.detach()) * x).sum(-1)

    def minimiser(self, A: Tensor) -> Tensor:
        """The programme's optimal point, made to fit."""
        a = self._coefficients(A)
        _, x = self._solved(a)
        return self.project(x.reshape(*x.shape[:2], *self._shape()))

    def project(self, x: Tensor) -> Tensor:
        """Into the box, then along the line to a point well inside, as far as needed."""
        import torch

        lower, upper = (self._flat(v, x).unsqueeze(1) for v in self.ends())
        anchor = to_tensor(self.__dict__["_anchor"], x.dtype, x.device).unsqueeze(1)
        G, h = (to_tensor(v, x.dtype, x.device) for v in (self.G, self.h))
        flat = x.reshape(*x.shape[:2], -1).maximum(lower).minimum(upper)
        room = h - anchor @ G.mT
        speed = (flat - anchor) @ G.mT
        share = torch.where(speed > room, room / speed.clamp(min=1e-300), 1.0).clamp(0.0, 1.0)
        share = share.amin(-1, keepdim=True)
        return (anchor + share * (flat - anchor)).reshape(x.shape)

    def contains(self, x: Any, slack: float = 0.0) -> Array:
        """The box exactly, the inequalities with the rounding of their sums counted against."""
        point, beside = self._points(x)
        lower, upper = beside(widened(self.lower)), beside(widened(self.upper))
        spare = slack * (abs(lower) + abs(upper))
        inside = every((point >= lower - spare) & (point <= upper + spare))
        flat = point.reshape(*point.shape[:2], -1)
        G, h = widened(self.G), widened(self.h)
        if is_tensor(flat):
            G, h = (to_tensor(v, flat.dtype, flat.device) for v in (G, h))
        size = abs(flat) @ abs(G).T + abs(h)
        error = (slack - float(dot_error(flat.shape[-1]))) * size
        found: Array = inside & (flat @ G.T <= h + error).all(-1)
        return found
