"""GELU's tanh form with the constants a model really stores.

``x sigmoid(linear x + cubic x^3)`` is the tanh form of GELU for ``linear = 2 sqrt(2 / pi)`` and
``cubic = 0.044715 linear``. Two rounded constants are not one rescaling of the ideal function,
so its bend points and minimum are found here for the constants as given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from certify.core.graph import Shape
from certify.ops.curve import Curve, Piece, Table
from certify.ops.oracle import Tail
from certify.ops.scalar import examples, scalar

if TYPE_CHECKING:
    from torch import Tensor

LINEAR = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715 * LINEAR
NEAR = 1e-3  # how far, relatively, constants may be from the ideal ones


def near_gelu(linear: float, cubic: float) -> bool:
    """Whether the constants are those of GELU up to what float16 storage would do to them."""
    return abs(linear / LINEAR - 1) < NEAR and abs(cubic / CUBIC - 1) < NEAR


def _shape(attrs: dict[str, float], x: Shape) -> Shape:
    if not near_gelu(attrs["linear"], attrs["cubic"]):
        raise ValueError(
            f"linear {attrs['linear']} and cubic {attrs['cubic']} are not those of GELU"
        )
    return x


def _forward(x: Tensor, linear: float, cubic: float) -> Tensor:
    import torch

    return x * torch.sigmoid(linear * x + cubic * x * x * x)


def _derivatives(z: float, linear: float, cubic: float) -> tuple[float, float]:
    """First and second derivative."""
    p, dp, d2p = linear * z + cubic * z**3, linear + 3 * cubic * z * z, 6 * cubic * z
    g = 1 / (1 + math.exp(-p))
    dg = g / (1 + math.exp(p))
    return g + z * dg * dp, 2 * dg * dp + z * (dg * (1 - 2 * g) * dp * dp + dg * d2p)


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    """Where f changes sign in ``[low, high]``, by bisection to the last bit."""
    rising = f(high) > 0
    while low < (middle := 0.5 * (low + high)) < high:
        low, high = (low, middle) if (f(middle) > 0) == rising else (middle, high)
    return middle


def _curve(linear: float, cubic: float) -> Curve:
    import torch

    def f(z: Tensor) -> Tensor:
        return _forward(z, linear, cubic)

    def df(z: Tensor) -> Tensor:
        z = z.clamp(-100.0, 100.0)
        p = linear * z + cubic * z * z * z
        gate, other = torch.sigmoid(p), torch.sigmoid(-p)
        return gate + z * gate * other * (linear + 3 * cubic * z * z)

    # f(z) - z / 2 is even, so the bends lie at plus and minus the same place.
    bend = _root(lambda z: _derivatives(z, linear, cubic)[1], 1.0, 2.0)
    lowest = _root(lambda z: _derivatives(z, linear, cubic)[0], -1.2, -0.4)
    least = lowest / (1 + math.exp(-linear * lowest - cubic * lowest**3))
    return Curve(
        f, df, left=Tail(0.0, True, -1), right=Tail(1.0, True, -1), low=least - 1e-15,
        steepest=1.2, steep=1.0, ulps=20, size=lambda z, value: z.abs(),
        pieces=(
            Piece(-bend, -1, Table(df, -64.0, -bend)),
            Piece(bend, 1, Table(df, -bend, bend)),
            Piece(inf, -1, Table(df, bend, 64.0)),
        ),
    )  # fmt: skip


scalar(
    "tanh_gate",
    _forward,
    _curve,
    shape=_shape,
    examples=examples(linear=1.5957692, cubic=0.071354814)
    + examples((-3.0, 4.0), linear=1.595, cubic=0.0714),
    summary="x sigmoid(a x + b x^3): GELU's tanh form with the constants as stored",
)
