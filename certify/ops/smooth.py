"""S-shaped functions, softplus and the exponential units, each by its derivative and pieces.

Inverse derivatives are on the convex or concave side named by the piece; arguments without a
solution end up at infinity, which the oracle clamps to the piece.
"""

from __future__ import annotations

import math
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any

from certify.core.errors import BadInput
from certify.core.graph import Shape
from certify.ops.builder import Builder, Call, Value
from certify.ops.curve import Curve, Piece
from certify.ops.oracle import Tail
from certify.ops.scalar import examples, inplace, number, scalar, simple, torch_function

if TYPE_CHECKING:
    from torch import Tensor

NORMAL = 2.0**-1022


def _logit_slope(k: Tensor) -> Tensor:
    """``z <= 0`` with ``sigmoid'(z) = k``, -inf for k <= 0."""
    import torch

    k = k.clamp(0.0, 0.25).mul_(4)
    root = torch.sqrt_(1 - k).add_(1)
    return k.div_(root).div_(root).log_()


def _s_shape(left: Any, slope: Any = None) -> tuple[Piece, ...]:
    """Convex up to 0, concave after it, derivative even; ``left`` inverts it for ``z <= 0``."""
    return Piece(0.0, 1, left, slope=slope), Piece(inf, -1, lambda k: -left(k))


_S_TAILS: dict[str, Any] = {
    "left": Tail(0.0, True, 1),
    "right": Tail(0.0, True, -1),
    "monotone": 1,
    "centre": 0.0,
}
_END = 800.0  # exp(-800) is 0
_S_FAST = _S_TAILS | {"left": Tail(0.0, True, 1, _END), "right": Tail(0.0, True, -1, _END)}


def _sigmoid_slope(z: Tensor) -> Tensor:
    import torch

    return torch.sigmoid(z) * torch.sigmoid(-z)


def _sigmoid() -> Curve:
    import torch

    def slope(value: Tensor) -> Tensor:  # values up to 1/2 are far from 1
        return torch.addcmul(value, value, value, value=-1)

    return Curve(
        torch.sigmoid,
        _sigmoid_slope,
        low=0.0,
        high=1.0,
        steepest=0.25,
        pieces=_s_shape(_logit_slope, slope),
        **_S_FAST | {"centre": 0.5},
    )


def _tanh() -> Curve:
    import torch

    def df(z: Tensor) -> Tensor:
        return 4 * _sigmoid_slope(2 * z)

    def left(k: Tensor) -> Tensor:
        return 0.5 * _logit_slope(0.25 * k)

    return Curve(torch.tanh, df, low=-1.0, high=1.0, pieces=_s_shape(left), **_S_FAST)


def _atan() -> Curve:
    import torch

    def df(z: Tensor) -> Tensor:
        return 1 / (1 + z * z)

    def left(k: Tensor) -> Tensor:
        k = k.clamp(NORMAL, 1.0)
        return -torch.sqrt((1 - k) / k)

    half = math.nextafter(math.pi / 2, inf)
    return Curve(torch.atan, df, low=-half, high=half, pieces=_s_shape(left), **_S_TAILS)


def _erf() -> Curve:
    import torch

    top = 2 / math.sqrt(math.pi)

    def df(z: Tensor) -> Tensor:
        return top * torch.exp(-z * z)

    def left(k: Tensor) -> Tensor:
        return -torch.sqrt(-torch.log((k / top).clamp(NORMAL, 1.0)))

    # exp turns the rounding of z*z into a relative error of z*z units.
    return Curve(
        torch.erf,
        df,
        low=-1.0,
        high=1.0,
        steepest=1.13,
        steep=lambda z: (1 + z * z) * df(z),
        pieces=_s_shape(left),
        **_S_FAST,
    )


def _softsign() -> Curve:
    import torch

    def f(z: Tensor) -> Tensor:
        return z / (1 + z.abs())

    def df(z: Tensor) -> Tensor:
        return (1 / (1 + z.abs())).square()

    def left(k: Tensor) -> Tensor:
        root = torch.sqrt(k.clamp(NORMAL, 1.0))
        return -(1 - root) / root

    return Curve(f, df, low=-1.0, high=1.0, pieces=_s_shape(left), **_S_TAILS)


def _log_sigmoid() -> Curve:
    import torch

    def f(z: Tensor) -> Tensor:
        return z.clamp(max=0.0) - torch.log1p(torch.exp(-z.abs()))

    def df(z: Tensor) -> Tensor:
        return torch.sigmoid(-z)

    return Curve(
        f,
        df,
        left=Tail(1.0, True, -1, _END),
        right=Tail(0.0, True, -1, _END),
        high=0.0,
        monotone=1,
        bend=-1,
        pieces=(Piece(inf, -1, lambda k: -_logit(k)),),
    )


def _logit(k: Tensor) -> Tensor:
    import torch

    k = k.clamp(0.0, 1.0)
    return torch.log(k) - torch.log1p(-k)


def _softplus(beta: float, threshold: float) -> Curve:
    import torch

    def f(z: Tensor) -> Tensor:
        w = beta * z
        return (w.clamp(min=0.0) + torch.log1p(torch.exp(-w.abs()))) / beta

    def df(z: Tensor) -> Tensor:
        return torch.sigmoid(beta * z)

    # Above the threshold torch returns z itself, which is a little less. Far left, exp turns the
    # rounding of w into a relative error of |w| units.
    sag = (
        None
        if threshold == inf
        else (threshold / beta * (1 - 1e-12), math.exp(-threshold) / beta * 1.001)
    )
    return Curve(
        f,
        df,
        left=Tail(0.0, True, 1, _END / beta),
        right=Tail(1.0, True, 1, _END / beta),
        low=0.0,
        monotone=1,
        bend=1,
        pieces=(Piece(inf, 1, lambda k: _logit(k) / beta),),
        sag=sag,
        steep=lambda z: df(z) * (1 - (beta * z).clamp(max=0.0)),
        size=lambda z, value: value.abs() * (1 + (beta * z).clamp(-800, 0).abs()),
    )


def _elu(alpha: float, scale: float = 1.0, input_scale: float = 1.0) -> Curve:
    """``scale (z if z > 0 else alpha expm1(input_scale z))``; scale and input_scale positive."""
    import torch

    steep = alpha * scale * input_scale

    def f(z: Tensor) -> Tensor:
        return torch.where(
            z > 0, scale * z, alpha * scale * torch.expm1(input_scale * z.clamp(max=0.0))
        )

    def df(z: Tensor) -> Tensor:
        return torch.where(z > 0, scale, steep * torch.exp(input_scale * z.clamp(max=0.0)))

    def left(k: Tensor) -> Tensor:
        return torch.log((k / steep).clamp(min=0.0)) / input_scale

    side = (steep > 0) - (steep < 0)
    return Curve(
        f,
        df,
        left=Tail(0.0, True, side, _END / input_scale),
        right=Tail(scale, True),
        monotone=1 if alpha >= 0 else 0,
        bend=1 if 0 <= steep <= scale else 0,
        steepest=max(abs(steep), scale),
        low=-alpha * scale * (1 + 1e-15) if alpha >= 0 else -inf,
        ulps=16,
        steep=lambda z: df(z).abs() * (1 - input_scale * z.clamp(max=0.0)),
        pieces=(Piece(0.0, side, left if side else None), Piece(inf, 0)),
    )


def _celu(alpha: float) -> Curve:
    return replace(_elu(alpha, 1.0, 1.0 / alpha), bend=1)


def _celu_shape(attrs: Any, x: Shape) -> Shape:
    if not attrs["alpha"] > 0:
        raise ValueError(f"alpha must be positive, not {attrs['alpha']}")
    return x


def _softplus_forward(x: Tensor, beta: float, threshold: float) -> Tensor:
    import torch

    if threshold == inf:  # torch's own overflows without one
        return torch.logaddexp(beta * x, x.new_zeros(())) / beta
    return torch.nn.functional.softplus(x, beta, threshold)


def _softplus_shape(attrs: Any, x: Shape) -> Shape:
    if not attrs["beta"] > 0 or not attrs["threshold"] >= 0:
        raise ValueError(
            f"beta {attrs['beta']} and threshold {attrs['threshold']} must be positive"
        )
    return x


def _selu_forward(x: Tensor, alpha: float, scale: float) -> Tensor:
    from torch.nn.functional import elu

    return scale * elu(x, alpha)


def _alpha(op: str) -> Any:
    def onnx(b: Builder, call: Call) -> Value:
        return b.add(op, call.arg(0), name=call.name, alpha=float(call.attr("alpha", 1.0)))

    def aten(b: Builder, call: Call) -> Value:
        return b.add(op, call.arg(0), name=call.name, alpha=number(call, 1, 1.0))

    return onnx, aten


def _elu_aten(b: Builder, call: Call) -> Value:
    alpha, scale, inner = number(call, 1, 1.0), number(call, 2, 1.0), number(call, 3, 1.0)
    if inner != 1.0 or not scale > 0:
        raise BadInput(f"{call.where or call.name}: elu takes a positive scale and input_scale 1")
    if scale == 1.0:
        return b.add("elu", call.arg(0), name=call.name, alpha=alpha)
    return b.add("selu", call.arg(0), name=call.name, alpha=alpha, scale=scale)


def _selu_onnx(b: Builder, call: Call) -> Value:
    alpha, gamma = (
        call.attr("alpha", 1.67326319217681884765625),
        call.attr("gamma", 1.05070102214813232421875),
    )
    return b.add("selu", call.arg(0), name=call.name, alpha=float(alpha), scale=float(gamma))


def _softplus_aten(b: Builder, call: Call) -> Value:
    beta, threshold = number(call, 1, 1.0), number(call, 2, 20.0)
    return b.add("softplus", call.arg(0), name=call.name, beta=beta, threshold=threshold)


SELU = {"alpha": 1.6732632423543772848170429916717, "scale": 1.0507009873554804934193349852946}

scalar(
    "sigmoid",
    torch_function("sigmoid"),
    _sigmoid,
    onnx={"Sigmoid": None},
    aten=inplace("sigmoid") | {"aten.special_expit.default": None},
    summary="1 / (1 + exp(-x))",
)
scalar(
    "tanh",
    torch_function("tanh"),
    _tanh,
    onnx={"Tanh": None},
    aten=inplace("tanh"),
    summary="hyperbolic tangent",
)
scalar(
    "atan",
    torch_function("atan"),
    _atan,
    onnx={"Atan": None},
    aten=inplace("atan"),
    summary="arc tangent",
)
scalar(
    "erf",
    torch_function("erf"),
    _erf,
    onnx={"Erf": None},
    aten=inplace("erf") | {"aten.special_erf.default": None},
    summary="error function",
)
scalar(
    "softsign",
    torch_function("softsign"),
    _softsign,
    onnx={"Softsign": None},
    float32_roundings=3,  # a sum, then a quotient or an inverse and a product
    summary="x / (1 + |x|)",
)
scalar(
    "log_sigmoid",
    torch_function("logsigmoid"),
    _log_sigmoid,
    aten={"aten.log_sigmoid.default": simple("log_sigmoid")},
    summary="log of the sigmoid",
)
scalar(
    "softplus",
    _softplus_forward,
    _softplus,
    shape=_softplus_shape,
    examples=examples(beta=1.0, threshold=inf) + examples((-3.0, 8.0), beta=2.5, threshold=10.0),
    onnx={"Softplus": simple("softplus", beta=1.0, threshold=inf)},
    aten={"aten.softplus.default": _softplus_aten},
    summary="log(1 + exp(beta x)) / beta, x above the threshold",
)
scalar(
    "elu",
    torch_function("elu"),
    _elu,
    examples=examples(alpha=1.0)
    + examples((-3.0, 2.0), alpha=2.5)
    + examples((-3.0, 2.0), alpha=0.3)
    + examples((-2.0, 1.0), alpha=-0.7),
    onnx={"Elu": _alpha("elu")[0]},
    aten=inplace("elu", _elu_aten),
    summary="x, or alpha (exp(x) - 1) below 0",
)
scalar(
    "selu",
    _selu_forward,
    _elu,
    examples=examples(**SELU),
    onnx={"Selu": _selu_onnx},
    aten=inplace("selu", simple("selu", **SELU)),
    summary="scaled ELU",
)
scalar(
    "celu",
    torch_function("celu"),
    _celu,
    shape=_celu_shape,
    examples=examples(alpha=1.0) + examples((-4.0, 2.0), alpha=1.7),
    onnx={"Celu": _alpha("celu")[0]},
    aten=inplace("celu", _alpha("celu")[1]),
    summary="x, or alpha (exp(x / alpha) - 1) below 0",
)
