"""What every input region can do: bound a linear function, project, sample, be cut into pieces."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np

from certify.core.arrays import expand, is_tensor, to_tensor, where
from certify.core.errors import BadInput
from certify.core.graph import Array, Shape
from certify.core.outward import midpoint_radius, narrow
from certify.core.registry import enter

if TYPE_CHECKING:
    from torch import Generator, Tensor

REGIONS: dict[str, type[Region]] = {}
"""Every kind of region by name. Registering a class is all it takes to add one."""

_R = TypeVar("_R", bound="type[Region]")
_T = TypeVar("_T")


def register(region: _R) -> _R:
    """Class decorator: enter a region into `REGIONS`.

    Raises:
        ValueError: the name is taken.
    """
    enter(REGIONS, region.__name__, region, "region")
    return region


@dataclass(frozen=True, eq=False)
class Region(ABC):
    """A set of inputs for each example of a batch.

    Build one from arrays of one example or of a batch, then call `batched` with the model's input
    shape; everything else wants that done. Arrays are numpy (kept as float64) or torch (kept with
    their device, dtype and gradient).

    Attributes:
        shape: one-example shape of the model input, set by `batched`.
    """

    shape: Shape | None = field(default=None, kw_only=True, repr=False)
    cut_axis: ClassVar[tuple[str, ...]] = ()  # the fields that carry the batch
    loose_hull: ClassVar[bool] = False  # the bounding box says little: bound the first layer itself

    # -- what a kind of region defines --------------------------------------------------------

    @classmethod
    @abstractmethod
    def examples(cls) -> tuple[Region, ...]:
        """Small batched regions of this kind, ordinary and awkward; the tests run on them."""

    @abstractmethod
    def batched(self, shape: Shape) -> Self:
        """The same region with arrays ``(B, *shape)``.

        Raises:
            BadInput: the arrays do not fit ``shape`` (both are stated), or the set is empty.
        """

    @abstractmethod
    def ends(self) -> tuple[Array, Array]:
        """float64 ``(lower, upper)`` of the bounding box, each ``(B, *shape)``, outward."""

    @abstractmethod
    def minimum(self, A: Any, rigorous: bool = False) -> Tensor:
        """Lower bound of ``min <A, x>`` over the region, ``(B, R)``; differentiable.

        Args:
            A: coefficients ``(B or 1, R, *shape)``, any float dtype; the result has it too.
            rigorous: the result is not above the exact minimum; ``A`` must be float64.
        """

    @abstractmethod
    def minimiser(self, A: Any) -> Any:
        """A point of the region that (nearly) attains the minimum, ``(B, R, *shape)``."""

    @abstractmethod
    def project(self, x: Any) -> Any:
        """A near point inside the region for each of ``x``, ``(B, N, *shape)``."""

    @abstractmethod
    def contains(self, x: Any, slack: float = 0.0) -> Array:
        """Which of the points ``x``, ``(B, N, *shape)``, lie in the region: bool ``(B, N)``.

        Args:
            slack: relative enlargement of the region that is still accepted.
        """

    def parts_of_affine(self) -> tuple[Array, Array] | None:
        """Boxes ``(lower, upper)``, ``(B, M, *shape)`` each, whose images under an affine function
        tell the range of the whole, see `affine_range`; None: there are no such boxes."""
        return None

    def affine_range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Range ``(B, n)`` of an affine function over the region.

        Args:
            lower, upper: of its values over `parts_of_affine`, ``(B, M, n)``, float64.
        """
        raise NotImplementedError(type(self).__name__)

    # -- what they share ----------------------------------------------------------------------

    @property
    def batch(self) -> int:
        """Number of examples."""
        self._shape()
        return int(getattr(self, self.cut_axis[0]).shape[0])

    def bounding_box(self) -> tuple[Array, Array]:
        """``(lower, upper)``, each ``(B, *shape)``, rounded outward in the region's own dtype."""
        lower, upper = self.ends()
        own = getattr(self, self.cut_axis[0])
        if not is_tensor(own):
            return lower, upper
        return narrow(lower, own.dtype, -np.inf), narrow(upper, own.dtype, np.inf)

    def inner_ends(self) -> tuple[Array, Array]:
        """float64 ends of the per-element range, rounded inward: where a point may be put."""
        return self.ends()

    def sample(self, count: int, generator: Generator | None = None) -> Any:
        """``count`` points of the region, ``(B, count, *shape)``: half extreme, half anywhere."""
        import torch

        own, shape = getattr(self, self.cut_axis[0]), self._shape()
        dtype = own.dtype if is_tensor(own) else torch.float64
        device = own.device if is_tensor(own) else torch.device("cpu")
        half = (count + 1) // 2
        settings: dict[str, Any] = {"generator": generator, "dtype": dtype, "device": device}
        corners = self.minimiser(torch.randn(self.batch, half, *shape, **settings))
        lower, upper = (to_tensor(e, dtype, device).unsqueeze(1) for e in self.ends())
        spread = torch.rand(self.batch, count - half, *shape, **settings)
        spread = self.project(lower + (upper - lower) * spread)
        anchor = self.project((0.5 * lower + 0.5 * upper).expand_as(spread))
        share = torch.rand(self.batch, count - half, *(1,) * len(shape), **settings)
        return self.project(torch.cat([corners, anchor + share * (spread - anchor)], 1))

    def rows(self, index: Any) -> Self:
        """The examples named by ``index`` (an int, slice, list or mask) as a region."""
        count = self.batch
        pick = slice(index, index + 1 or None) if isinstance(index, int) else index
        changes = {}
        for name, value in self._arrays():
            if name in self.cut_axis or (count > 1 and value.shape and value.shape[0] == count):
                changes[name] = value[pick]
        return self._with_arrays(changes)

    def __getitem__(self, index: Any) -> Self:
        return self.rows(index)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_cache"}

    # -- helpers for the kinds ----------------------------------------------------------------

    def _arrays(self) -> Sequence[tuple[str, Array]]:
        """Name and value of every array field that may carry the batch."""
        return [(n, getattr(self, n)) for n in self.cut_axis]

    def _with_arrays(self, changes: dict[str, Array]) -> Self:
        return self._with(**changes)

    def _with(self, **changes: Any) -> Self:
        """A copy with fields changed and nothing validated again."""
        copy = object.__new__(type(self))
        names = {f.name for f in dataclasses.fields(self)}
        copy.__dict__.update({n: self.__dict__[n] for n in names} | changes)
        return copy

    def _reshaped(self, shape: Shape) -> Self:
        """A region over a flat input ``(n,)`` as one over an input of n elements, ``shape``."""
        ones = (1,) * len(shape)
        changes = {n: v.reshape(v.shape[0], *(ones if v.shape[1] == 1 else shape))
                   for n, v in self._arrays()}
        for name in self.cut_axis:  # (B, 1) is whole here, not a number for every element
            changes[name] = getattr(self, name).reshape(-1, *shape)
        return self._with_arrays(changes)._with(shape=shape)

    def _set(self, **values: Any) -> None:
        """Set fields of a frozen instance; only from ``__post_init__``."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _shape(self) -> Shape:
        if self.shape is None:
            raise BadInput(f"{type(self).__name__} has no model input shape yet: call "
                           "batched(shape) first")
        return self.shape

    def _coefficients(self, A: Tensor, rigorous: bool = False) -> Tensor:
        """``A`` as ``(B, R, n)``, checked."""
        import torch

        shape = self._shape()
        if tuple(A.shape[2:]) != shape or A.ndim != 2 + len(shape):
            raise BadInput(f"coefficients of shape {tuple(A.shape)} do not fit a region over "
                           f"{shape}: give (batch, rows, *{shape})")
        if rigorous and A.dtype != torch.float64:
            raise BadInput(f"a rigorous minimum wants float64 coefficients, got {A.dtype}")
        return A.reshape(*A.shape[:2], int(np.prod(shape)))

    def _flat(self, value: Array, like: Tensor) -> Tensor:
        """A ``(B, *shape)`` array as a ``(B, n)`` tensor of ``like``'s dtype and device."""
        return to_tensor(value, like.dtype, like.device).reshape(value.shape[0], -1)

    def _cached(self, what: Hashable, like: Tensor, make: Callable[[], _T]) -> _T:
        """``make()`` once per dtype and device, unless a gradient runs through the region."""
        import torch

        if any(is_tensor(v) and v.requires_grad for _, v in self._arrays()):
            return make()
        store: dict[Hashable, _T] = self.__dict__.setdefault("_cache", {})
        key = (what, like.dtype, like.device)
        if key not in store:
            with torch.inference_mode(False), torch.no_grad():  # the entry outlives either mode
                store[key] = make()
        return store[key]

    def _middle(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """``(mid, rad)`` of the bounding box, ``(B, n)``; outward when ``like`` is float64."""

        def make() -> tuple[Tensor, Tensor]:
            mid, rad = midpoint_radius(*self.ends())
            return self._flat(mid, like), self._flat(rad, like)

        return self._cached("middle", like, make)

    def _inside(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Per-element ends ``(B, *shape)`` in ``like``'s dtype, inward where that leaves room."""

        def make() -> tuple[Tensor, Tensor]:
            import torch

            low, high = (to_tensor(e, torch.float64, like.device) for e in self.inner_ends())
            lower, upper = narrow(low, like.dtype, np.inf), narrow(high, like.dtype, -np.inf)
            nearest = (0.5 * low + 0.5 * high).to(like.dtype)
            empty = lower > upper
            return where(empty, nearest, lower), where(empty, nearest, upper)

        return self._cached("inside", like, make)

    def _clamp(self, x: Tensor) -> Tensor:
        import torch

        lower, upper = self._inside(x)
        return torch.minimum(torch.maximum(x, lower.unsqueeze(1)), upper.unsqueeze(1))

    def _points(self, x: Any) -> tuple[Array, Callable[[Array], Array]]:
        """``x`` in float64 and of the region's kind, and how to bring region arrays beside it."""
        if is_tensor(x):
            import torch

            return x.double(), lambda v: to_tensor(v, torch.float64, x.device).unsqueeze(1)

        def beside(value: Array) -> Array:
            plain = value.detach().cpu().numpy() if is_tensor(value) else value
            return np.asarray(plain, dtype=np.float64)[:, None]

        return np.asarray(x, dtype=np.float64), beside


def whole(value: Array, batch: int, shape: Shape) -> Array:
    """A side array ``(B or 1, ...)`` broadcast to ``(B, *shape)``."""
    return expand(value, (batch, *shape))


def every(mask: Array) -> Array:
    """Whether all elements of each point hold: ``(B, N, *shape)`` to ``(B, N)``."""
    flat = mask.reshape(*mask.shape[:2], -1)
    return flat.all(-1)
