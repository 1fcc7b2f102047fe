"""GELU, SiLU and Mish: a factor times a sigmoid-like gate. Convex in the middle, concave outside.

Inflection points and minima were computed to 25 digits from the second derivative; the true ones
differ from the stored by less than a rounding, where the second derivative is itself of that size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any

from certify.core.errors import Unsupported
from certify.ops.arguments import scaled
from certify.ops.builder import Builder, Call, Value
from certify.ops.curve import Curve, Table
from certify.ops.oracle import Tail
from certify.ops.scalar import inplace, scalar, torch_function

if TYPE_CHECKING:
    from torch import Tensor

REACH = 64.0  # beyond it the derivative is its limit, up to 1e-25
CUBIC = 0.044715
TANH_SCALE = 2 * math.sqrt(2 / math.pi)


def _gated(
    f: Any, df: Callable[[Tensor], Tensor], first: float, second: float, low: float
) -> Curve:
    """A function falling from 0 to ``low``, then rising to the identity, bending twice."""
    return Curve(
        f,
        df,
        left=Tail(0.0, True, -1, 800.0),
        right=Tail(1.0, True, -1, 800.0),
        low=low,
        steepest=1.2,
        steep=_doubt,
        ulps=16,
        size=lambda z, value: z.abs(),
        pieces=(
            Table(df, -REACH, first).piece(first, -1),
            Table(df, first, second).piece(second, 1),
            Table(df, second, REACH).piece(inf, -1),
        ),
    )


def _doubt(z: Tensor) -> Tensor:
    """A bound of the magnitudes summed up in any of the derivatives, times their condition."""
    import torch

    left = z.clamp(max=0.0)
    return torch.exp(left) * (1 - left) ** 6


def _gelu() -> Curve:
    import torch

    half, root = math.sqrt(0.5), math.sqrt(2.0)

    def gate(z: Tensor) -> Tensor:
        return 0.5 * torch.erfc(-half * z)

    def df(z: Tensor) -> Tensor:
        return gate(z) + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)

    return _gated(lambda z: z * gate(z), df, -root, root, -0.16997120747990370)


def _gelu_tanh() -> Curve:
    import torch

    def inner(z: Tensor) -> Tensor:
        return TANH_SCALE * (z + CUBIC * z * z * z)

    def f(z: Tensor) -> Tensor:
        return z * torch.sigmoid(inner(z))

    def df(z: Tensor) -> Tensor:
        z = z.clamp(-100.0, 100.0)
        gate, other = torch.sigmoid(inner(z)), torch.sigmoid(-inner(z))
        return gate + z * gate * other * TANH_SCALE * (1 + 3 * CUBIC * z * z)

    bend = 1.418504008790828355548034
    return _gated(f, df, -bend, bend, -0.17004075057125406)


def _silu() -> Curve:
    import torch

    def f(z: Tensor) -> Tensor:
        return z * torch.sigmoid(z)

    def df(z: Tensor) -> Tensor:
        return torch.sigmoid(z) * (1 + z * torch.sigmoid(-z))

    bend = 2.39935728052546766783274
    return _gated(f, df, -bend, bend, -0.27846454276107380)


def _mish() -> Curve:
    import torch

    def softplus(z: Tensor) -> Tensor:
        return z.clamp(min=0.0) + torch.log1p(torch.exp(-z.abs()))

    def f(z: Tensor) -> Tensor:
        return z * torch.tanh(softplus(z))

    def df(z: Tensor) -> Tensor:
        s = softplus(z)
        narrow = 4 * torch.sigmoid(2 * s) * torch.sigmoid(-2 * s)  # sech^2 without cancellation
        return torch.tanh(s) + z * narrow * torch.sigmoid(z)

    return _gated(
        f, df, -2.256376396360793120005749, 1.490571179485428459294419, -0.30884341301725041
    )


def _gelu_tanh_forward(x: Tensor) -> Tensor:
    from torch.nn.functional import gelu

    return gelu(x, approximate="tanh")


def _translate_gelu(b: Builder, call: Call) -> Value:
    """Exact or tanh GELU; ``approximate`` is an attribute in ONNX, the second argument in ATen."""
    mode = call.arg(1, call.attr("approximate", "none"))
    mode = mode.decode() if isinstance(mode, bytes) else mode
    names = {"none": "gelu", "tanh": "gelu_tanh"}
    if mode not in names:
        raise Unsupported(
            f"{call.where or call.name}: GELU with approximate={mode!r}; use none or tanh"
        )
    return b.add(names[mode], call.arg(0), name=call.name)


def _swish(b: Builder, call: Call) -> Value:
    """``x sigmoid(alpha x)``; the importers find the SiLU in the product."""
    x, alpha = call.arg(0), float(call.attr("alpha", 1.0))
    if alpha == 1:
        return b.add("silu", x, name=call.name)
    return b.add("mul", x, b.add("sigmoid", scaled(b, x, alpha)), name=call.name)


scalar(
    "gelu",
    torch_function("gelu"),
    _gelu,
    onnx={"Gelu": _translate_gelu},
    aten={"aten.gelu.default": _translate_gelu, "aten.gelu_.default": _translate_gelu},
    summary="x times the normal distribution function",
)
scalar("gelu_tanh", _gelu_tanh_forward, _gelu_tanh, summary="GELU by its tanh approximation")
scalar(
    "silu",
    torch_function("silu"),
    _silu,
    onnx={"Swish": _swish},
    aten=inplace("silu"),
    summary="x sigmoid(x)",
)
scalar(
    "mish",
    torch_function("mish"),
    _mish,
    onnx={"Mish": None},
    aten=inplace("mish"),
    summary="x tanh(softplus(x))",
)
