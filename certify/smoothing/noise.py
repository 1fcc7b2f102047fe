"""Noise models: how a noisy input is drawn, and how far a probability under the noise carries.

A model is written once, here or beside, and registered; certifiers, rules, command line and tests
find it. Radii are pure float64 functions and belong to open balls, rounded down.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from certify.core.errors import BadInput
from certify.smoothing import radii
from certify.smoothing.confidence import Estimate
from certify.smoothing.streams import kernels, words

if TYPE_CHECKING:
    from torch import Tensor

NOISES: dict[str, type[Noise]] = {}
_HALVINGS = 60
_BITS24 = 2.0**-24


@dataclass(frozen=True)
class Noise(ABC):
    """What is added to an input, or done to it; its fields are its parameters.

    Attributes:
        name: in certificates and on the command line.
        norms: in which it gives radii, the usual one first.
    """

    name: ClassVar[str] = ""
    norms: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        if cls.name in NOISES:
            raise ValueError(f"two noise models are called {cls.name}")
        NOISES[cls.name] = cls

    @property
    def parameters(self) -> Mapping[str, float]:
        """By name."""
        return {f.name: float(getattr(self, f.name)) for f in fields(self)}

    @abstractmethod
    def fill(self, x: Tensor, key: int, first: int, out: Tensor) -> None:
        """Write noisy copies of ``x (n,)`` to ``out (N, n)``, samples ``first`` onward of a
        stream."""

    @abstractmethod
    def radius(self, found: Estimate, norm: str, size: int, other: float | None = None) -> float:
        """How far the answer stays the same, in input units; 0 where nothing is certified.

        Args:
            found: bounds of the probability of the answer.
            size: number of input elements.
            other: upper bound of every other answer's probability; None: not known.
        """

    def slack(self, size: int) -> float:
        """What the drawn distribution may differ from the ideal one, in total variation."""
        return 0.0

    def check_input(self, x: np.ndarray) -> None:  # noqa: B027  most noises take any input
        """Refuse inputs that the noise is not for.

        Raises:
            BadInput: with what is wrong.
        """

    def needed(self, radius: float, norm: str, size: int) -> Estimate:
        """A probability that is enough for a radius: `radius` of it is at least that.

        Raises:
            BadInput: no probability is.
        """
        low, high = math.log(1e-280), 0.0  # of q; enough at low
        if self.radius(_at(low), norm, size) < radius:
            raise BadInput(f"no number of votes certifies radius {radius:g} with {self.name} noise")
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self.radius(_at(middle), norm, size) >= radius:
                low = middle
            else:
                high = middle
        return _at(low)

    def check_norm(self, norm: str) -> None:
        """Refuse a norm that the noise says nothing about.

        Raises:
            BadInput: with those it has.
        """
        if norm not in self.norms:
            raise BadInput(
                f"{self.name} noise has no radius in the norm {norm!r}; it has "
                f"{', '.join(self.norms)}"
            )


def _at(log_q: float) -> Estimate:
    return Estimate(np.array(-math.expm1(log_q)), np.array(math.exp(log_q)))


def noise_from(name: str, parameters: Mapping[str, float]) -> Noise:
    """The noise of a certificate.

    Raises:
        BadInput: unknown name, or parameters that are not its own.
    """
    from certify.smoothing import discrete_noise, grid, levels  # noqa: F401

    if name not in NOISES:
        raise BadInput(f"unknown noise {name!r}; known are {', '.join(sorted(NOISES))}")
    kind = NOISES[name]
    names = {f.name for f in fields(kind)}
    if set(parameters) != names:
        raise BadInput(f"{name} noise has the parameters {', '.join(sorted(names))}")
    return kind(**parameters)


@dataclass(frozen=True)
class Gaussian(Noise):
    """Normal noise of standard deviation ``sigma``, in input units (Cohen et al. 2019)."""

    sigma: float
    name: ClassVar[str] = "gaussian"
    norms: ClassVar[tuple[str, ...]] = ("2", "1", "inf")

    def __post_init__(self) -> None:
        radii.scale("sigma", self.sigma)

    def fill(self, x: Tensor, key: int, first: int, out: Tensor) -> None:
        """See `Noise.fill`."""
        compiled = kernels() if out.device.type == "cpu" and out.is_contiguous() else None
        if compiled is not None:
            split_rows(compiled.add_normal, x.numpy(), self.sigma, key, first, out.numpy())
            return
        import torch

        u = words(key, first, len(out), x.numel(), out.device)[:, : x.numel()] >> 8
        tail = (u.double() + 0.5) * _BITS24
        out.copy_(torch.special.ndtri(tail).mul_(self.sigma).add_(x))

    def radius(self, found: Estimate, norm: str, size: int, other: float | None = None) -> float:
        """See `Noise.radius`; an l1 ball lies in the l2 ball of its radius."""
        self.check_norm(norm)
        r = float(radii.gaussian_l2(found.q, self.sigma, other))
        return r / math.sqrt(size) * (1 - 2.0**-44) if norm == "inf" else r


@dataclass(frozen=True)
class Uniform(Noise):
    """Noise uniform on [-width, width] per element (Yang et al. 2020)."""

    width: float
    name: ClassVar[str] = "uniform"
    norms: ClassVar[tuple[str, ...]] = ("1", "inf")

    def __post_init__(self) -> None:
        radii.scale("width", self.width)

    def fill(self, x: Tensor, key: int, first: int, out: Tensor) -> None:
        """See `Noise.fill`."""
        u = words(key, first, len(out), x.numel(), out.device)[:, : x.numel()] >> 8
        out.copy_((u.double() + 0.5).mul_(2 * _BITS24).sub_(1).mul_(self.width).add_(x))

    def radius(self, found: Estimate, norm: str, size: int, other: float | None = None) -> float:
        """See `Noise.radius`."""
        self.check_norm(norm)
        if norm == "inf":
            return float(radii.uniform_linf(found.q, self.width, size))
        return float(radii.uniform_l1(found.q, self.width))


@dataclass(frozen=True)
class Laplace(Noise):
    """Laplace noise with density ``exp(-|t| / spread) / (2 spread)`` (Teng et al. 2020)."""

    spread: float
    name: ClassVar[str] = "laplace"
    norms: ClassVar[tuple[str, ...]] = ("1",)

    def __post_init__(self) -> None:
        radii.scale("spread", self.spread)

    def fill(self, x: Tensor, key: int, first: int, out: Tensor) -> None:
        """See `Noise.fill`."""
        u = words(key, first, len(out), x.numel(), out.device)[:, : x.numel()]
        size = ((u >> 1).double() + 0.5).mul_(2.0**-31).log_().mul_(-self.spread)
        out.copy_(size.where((u & 1) == 0, -size).add_(x))

    def radius(self, found: Estimate, norm: str, size: int, other: float | None = None) -> float:
        """See `Noise.radius`."""
        self.check_norm(norm)
        return float(radii.laplace_l1(found.q, self.spread))


_LEAST_PER_THREAD = 2**16


def split_rows(
    kernel: Callable[..., None], x: np.ndarray, scale: Any, key: int, first: int, out: np.ndarray
) -> None:
    """``kernel(x, scale, key, first, out)`` by threads on parts of ``out``; the result is the
    same."""
    import torch

    threads = min(torch.get_num_threads(), out.size // _LEAST_PER_THREAD, len(out))
    if threads < 2:
        kernel(x, scale, key, first, out)
        return
    from concurrent.futures import ThreadPoolExecutor

    cuts = [len(out) * t // threads for t in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda a, b: kernel(x, scale, key, first + a, out[a:b]), cuts, cuts[1:]))
