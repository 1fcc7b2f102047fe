"""A region as a set of flat points, whatever the number of model inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from certify.core.arrays import is_tensor, to_tensor
from certify.core.errors import BadInput
from certify.core.graph import Shape
from certify.core.region import Region
from certify.core.region_box import BoxShaped


@dataclass(frozen=True, eq=False)
class Space:
    """One example's region. Points are ``(N, n)``: all model inputs flattened and joined.

    Attributes:
        parts: one region per model input, each with a batch of one.
        dtype, device: of every point.
    """

    parts: tuple[Region, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """One-example shapes of the model inputs."""
        return tuple(part.shape or () for part in self.parts)

    @cached_property
    def sizes(self) -> list[int]:
        """Elements of each model input."""
        return [math.prod(shape) for shape in self.shapes]

    @cached_property
    def box(self) -> bool:
        """Whether every part is a box, so that elements move independently."""
        return all(isinstance(part, BoxShaped) for part in self.parts)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(N, n)`` as one ``(N, *shape)`` per model input."""
        pieces = torch.split(x, self.sizes, -1)
        return tuple(p.reshape(-1, *s) for p, s in zip(pieces, self.shapes, strict=True))

    def project(self, x: Tensor) -> Tensor:
        """The points moved into the region."""
        return self._each(lambda part, v: part.project(v), x)

    def minimiser(self, gradient: Tensor) -> Tensor:
        """Per row of ``(N, n)``, where the linear function with these coefficients is smallest."""
        return self._each(lambda part, v: part.minimiser(v), gradient)

    def sample(self, count: int, seed: int) -> Tensor:
        """``(count, n)`` points, half of them extreme; the same for the same seed."""
        found = []
        for i, part in enumerate(self.parts):
            own = getattr(part, part.cut_axis[0])
            generator = torch.Generator(own.device if is_tensor(own) else "cpu")
            found.append(part.sample(count, generator.manual_seed(seed + i)))
        return self.project(self._join(found))

    @cached_property
    def centre(self) -> Tensor:
        """The centre where the region has one, else the middle of the box; ``(1, n)``, inside."""
        found = []
        for part in self.parts:
            lower, upper = part.ends()
            middle = getattr(part, "center", None)
            found.append((0.5 * lower + 0.5 * upper if middle is None else middle)[:, None])
        return self.project(self._join(found))

    @cached_property
    def half(self) -> Tensor:
        """Half the width of the bounding box, ``(n,)``."""
        widths = [
            (0.5 * upper - 0.5 * lower)[:, None] for lower, upper in (p.ends() for p in self.parts)
        ]
        return self._join(widths)[0]

    def points(self, given: Any) -> Tensor:
        """Foreign points, ``(N, ...)`` with n elements each, as points of this space.

        Raises:
            BadInput: the number of elements does not fit.
        """
        x = to_tensor(given, self.dtype, self.device).detach()
        n = sum(self.sizes)
        if x.numel() % max(n, 1):
            raise BadInput(
                f"starting points of shape {tuple(x.shape)} for a model of {n} inputs: "
                f"give (points, {n})"
            )
        return self.project(x.reshape(-1, n).nan_to_num())

    def _each(self, act: Callable[[Region, Tensor], Tensor], x: Tensor) -> Tensor:
        with torch.no_grad():
            pieces = self.split(x)
            return self._join(
                [act(p, v.unsqueeze(0)) for p, v in zip(self.parts, pieces, strict=True)]
            )

    def _join(self, pieces: Sequence[Any]) -> Tensor:
        """``(1, N, *shape)`` per part as ``(N, n)``, never requiring a gradient."""
        flat = [
            to_tensor(p, self.dtype, self.device).detach().flatten(2).squeeze(0)
            if p.ndim > 2
            else to_tensor(p, self.dtype, self.device).detach().reshape(p.shape[1], 1)
            for p in pieces
        ]
        return torch.cat(flat, -1)
