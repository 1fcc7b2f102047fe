"""Zonotopes: a centre, a few generators, and a box of independent errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from certify.core.arrays import expand, fit, is_tensor, to_tensor, unify, widened
from certify.core.errors import BadInput
from certify.core.graph import Array, Shape
from certify.core.linear_minimum import over_box, over_box_rigorous, sound
from certify.core.outward import dot_error
from certify.core.region_base import Region, register
from certify.core.region_centred import require, require_finite

if TYPE_CHECKING:
    from torch import Tensor

_STEPS = 600  # of a projection
_FITS = 1e-4  # of its size: how far a point may stay outside, which `contains` then tells


@register
@dataclass(frozen=True, eq=False)
class Zonotope(Region):
    """``center + sum_j t_j generators_j + e`` with ``|t_j| <= 1`` and ``|e| <= radius``.

    Attributes:
        center: the input(s).
        generators: ``(k, n)`` or ``(B, k, n)``, over the flattened input.
        radius: of the independent errors, one number or an array of the input's shape.

    Raises:
        BadInput: NaN or infinity, a negative radius, shapes that do not fit.
    """

    center: Array
    generators: Array
    radius: Array
    cut_axis = ("center", "generators", "radius")
    loose_hull = True

    def __post_init__(self) -> None:
        center, generators, radius = unify(self.center, self.generators, self.radius)
        for name, array in (("center", center), ("generators", generators), ("radius", radius)):
            require_finite(f"Zonotope: {name}", array)
        require(radius >= 0, "Zonotope: radius must not be negative", radius)
        if generators.ndim not in (2, 3):
            raise BadInput(f"Zonotope: generators of shape {tuple(generators.shape)}; give (k, n)")
        self._set(center=center, generators=generators, radius=radius)

    @classmethod
    def examples(cls) -> tuple[Region, ...]:
        """Generators per example; thin; flat; a box."""
        rng = np.random.default_rng(4)
        return (
            Zonotope(rng.normal(size=(2, 5)), 0.5 * rng.normal(size=(2, 2, 5)),
                     0.1 * rng.uniform(size=(2, 5))).batched((5,)),
            Zonotope(np.zeros((2, 3)), rng.normal(size=(4, 6)), 0.01).batched((2, 3)),
            Zonotope(np.ones(4), rng.normal(size=(1, 4)), 0.0).batched((1, 4)),
            Zonotope(np.ones(4), np.zeros((1, 4)), 0.25).batched((4,)),
        )

    def batched(self, shape: Shape) -> Self:
        """See `Region.batched`."""
        shape = tuple(shape)
        if self.shape == shape:
            return self
        n = int(np.prod(shape))
        center = fit(self.center, shape, "Zonotope")
        generators = self.generators.reshape(-1, *self.generators.shape[-2:])
        if generators.shape[-1] != n or len(generators) not in (1, len(center)):
            raise BadInput(f"Zonotope: generators of shape {tuple(self.generators.shape)} do not "
                           f"fit {len(center)} inputs of {n} elements")
        radius = self.radius
        if radius.ndim:
            radius = fit(radius, shape, "Zonotope: radius")
        return self._with(shape=shape, center=center,
                          generators=expand(generators, (len(center), *generators.shape[1:])),
                          radius=expand(radius, (len(center), *shape)))

    def _reshaped(self, shape: Shape) -> Self:
        return self._with(shape=shape, center=self.center.reshape(-1, *shape),
                          radius=self.radius.reshape(-1, *shape))

    def ends(self) -> tuple[Array, Array]:
        """``center +- (sum |generators| + radius)``, outward."""
        center, generators, radius = (widened(v) for v in (
            self.center, self.generators, self.radius))
        reach = abs(generators).sum(1).reshape(center.shape) + radius
        reach = reach * (1 + 2.0**-40) + 2.0**-50 * abs(center) + 2.0**-500
        return center - reach, center + reach

    def _parts(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(center (B, n), generators (B, k, n), radius (B, n))``."""

        def make() -> tuple[Tensor, Tensor, Tensor]:
            return (self._flat(self.center, like),
                    to_tensor(self.generators, like.dtype, like.device),
                    self._flat(self.radius, like))

        return self._cached("parts", like, make)

    def minimum(self, A: Tensor, rigorous: bool = False) -> Tensor:
        """Exact: ``A.center - sum_j |A.generators_j| - |A|.radius``."""
        a = self._coefficients(A, rigorous)
        center, generators, radius = self._parts(a)
        turned = (a @ generators.mT).abs().sum(-1)
        if not rigorous:
            return over_box(a, center, radius) - turned
        box = over_box_rigorous(a, center, radius)
        off = (a.abs() @ generators.abs().mT).sum(-1) * dot_error(a.shape[-1])
        return sound(box - turned - 2 * off,
                     dot_error(generators.shape[1] + 8) * (turned + box.abs()) + 2.0**-500)

    def minimiser(self, A: Tensor) -> Tensor:
        """A corner."""
        a = self._coefficients(A).detach()
        center, generators, radius = self._parts(a)
        t = -(a @ generators.mT).sign()
        found = center.unsqueeze(1) + t @ generators - a.sign() * radius.unsqueeze(1)
        return found.reshape(*found.shape[:2], *self._shape())

    def parts_of_affine(self) -> tuple[Array, Array]:
        """The box of errors, the centre, and the centre with each generator."""
        center, generators, radius = (widened(v) for v in (
            self.center, self.generators, self.radius))
        B, k, _ = generators.shape
        moved = center[:, None] + generators.reshape(B, k, *center.shape[1:])
        size = (k + 1) * abs(center) + abs(generators).sum(1).reshape(center.shape) + radius
        room = radius + 2.0**-50 * size  # sums are rounded: of the ends, and of what is moved
        both = [side[:, None] for side in (center - room, center + room)]
        if not is_tensor(center):
            return tuple(np.concatenate([side, center[:, None], moved], 1)  # type: ignore[return-value]
                         for side in both)
        import torch

        return tuple(torch.cat([side, center[:, None], moved], 1)  # type: ignore[return-value]
                     for side in both)

    def affine_range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The values over the errors, and what each generator adds either way."""
        import torch

        up, down = upper[:, 2:] - lower[:, 1:2], upper[:, 1:2] - lower[:, 2:]
        spread = torch.maximum(up, down).sum(1)
        size = spread + lower.abs().amax(1) + upper.abs().amax(1)
        spread = spread + 2.0**-50 * (lower.shape[1] + 8) * size
        return lower[:, 0] - spread, upper[:, 0] + spread

    def project(self, x: Tensor) -> Tensor:
        """The nearest point, about: shares and errors in turn; a point that fits is left alone."""
        import torch

        center, generators, radius = self._parts(x)
        away = x.reshape(*x.shape[:2], -1) - center.unsqueeze(1)
        reach = radius.unsqueeze(1)
        step = 1 / torch.linalg.matrix_norm(generators, 2).square().clamp(min=1e-30)
        t = torch.zeros(*away.shape[:2], generators.shape[1], dtype=x.dtype, device=x.device)
        ahead, old = t, 1.0
        for _ in range(_STEPS):  # Nesterov's method; the errors are closed form
            left = away - ahead @ generators
            left = left - left.clamp(-reach, reach)
            new = (ahead + step.reshape(-1, 1, 1) * (left @ generators.mT)).clamp(-1, 1)
            pace = 0.5 + (0.25 + old * old) ** 0.5
            ahead, t, old = new + (old - 1) / pace * (new - t), new, pace
        base = t @ generators
        left = away - base
        near = base + left.clamp(-reach, reach)
        size = away.abs().amax(-1, keepdim=True) + generators.abs().sum((1, 2)).reshape(-1, 1, 1)
        fits = (away - near).abs().amax(-1, keepdim=True) <= _FITS * size
        found: Tensor = center.unsqueeze(1) + torch.where(fits, away, near)
        return found.reshape(x.shape)

    def contains(self, x: Any, slack: float = 0.0) -> Array:
        """By a linear programme for the shares, whose answer is then tried; a point within
        rounding of the border is outside."""
        import torch

        point, _ = self._points(x)
        flat = torch.as_tensor(point).reshape(*point.shape[:2], -1)
        center, generators, radius = self._parts(flat)
        answer = torch.zeros(flat.shape[:2], dtype=torch.bool)
        for b in range(len(center)):
            for i in range(flat.shape[1]):
                away = flat[min(b, len(flat) - 1), i] - center[b]
                t = _shares(generators[b].cpu().numpy(), radius[b].cpu().numpy(),
                            away.cpu().numpy())
                rest = (away - torch.from_numpy(t).to(away) @ generators[b]).abs()
                size = away.abs() + generators[b].abs().sum(0) + center[b].abs()
                answer[b, i] = bool((rest <= radius[b] + (2 * slack - 2.0**-45) * size).all())
        return answer.to(flat.device) if is_tensor(x) else np.asarray(answer.numpy())


def _shares(generators: np.ndarray, radius: np.ndarray, away: np.ndarray) -> np.ndarray:
    """Shares that leave the smallest excess over the errors."""
    from scipy.optimize import linprog

    k, n = generators.shape
    rows = np.concatenate([generators.T, -generators.T])
    excess = np.full((2 * n, 1), -1.0)
    right = np.concatenate([away + radius, radius - away])
    solved = linprog(np.eye(k + 1)[k], A_ub=np.concatenate([rows, excess], 1), b_ub=right,
                     bounds=[(-1, 1)] * k + [(None, None)], method="highs")
    if solved.x is None:
        return np.zeros(k)
    found: np.ndarray = np.clip(np.asarray(solved.x[:k]), -1.0, 1.0)
    return found
