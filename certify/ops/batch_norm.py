"""Batch normalisation with stored statistics: one factor and one offset per channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.errors import BadInput, Unsupported
from certify.core.graph import Shape
from certify.ops.arguments import static_array
from certify.ops.builder import Builder, Call, Value
from certify.ops.families import affine_rule
from certify.ops.record import REGISTRY, AffineRule, Composite, Example, Op, Site

if TYPE_CHECKING:
    from torch import Tensor


def _channelwise(site: Site, v: Tensor) -> Tensor:
    return v.reshape((-1, *(1,) * (len(site.shape) - 2)))


def _factor(site: Site, scale: Tensor, var: Tensor) -> Tensor:
    root: Tensor = (var + site.attrs["eps"]).sqrt()
    return scale / root


def _forward(
    site: Site, x: Tensor, scale: Tensor, bias: Tensor | None, mean: Tensor | None, var: Tensor
) -> Tensor:
    factor = _factor(site, scale, var)
    y = x * _channelwise(site, factor)
    offset = bias if mean is None else -mean * factor if bias is None else bias - mean * factor
    return y if offset is None else y + _channelwise(site, offset)


def _offset_size(site: Site, *operands: Any) -> Tensor:
    """``|bias| + |mean| |factor|``: the two may cancel, their roundings do not."""
    _, scale, bias, mean, var = operands
    terms = bias.abs() + mean.abs() * _factor(site, scale, var).abs()
    return _channelwise(site, terms).expand(site.shape)


def _transpose(site: Site, A: Tensor, *operands: Any) -> tuple[Any, ...]:
    _, scale, _, _, var = operands
    return A * _channelwise(site, _factor(site, scale, var)), None, None, None, None


def _shape(attrs: Any, x: Shape, *parameters: Shape) -> Shape:
    if len(x) < 2 or any(p != (x[1],) for p in parameters):
        raise ValueError(
            f"statistics of shapes {parameters} for {x[1] if len(x) > 1 else 0} channels"
        )
    return x


def _checked(call: Call, eps: float, parameters: tuple[Value, ...]) -> None:
    if any(p.constant is None for p in parameters):
        raise Unsupported(
            f"{call.where or call.name}: batch normalisation whose statistics or weights "
            f"depend on the input"
        )
    variance = parameters[-1]
    array = np.asarray(static_array(variance), dtype=np.float64)
    if array.size and (array.min() < 0 or array.min() + eps <= 0):
        raise BadInput(
            f"{call.where or call.name}: variance {variance.name!r} is {array.min():g}, which has "
            f"no root; the stored statistics are damaged"
        )


def normalised(
    b: Builder, call: Call, x: Value, parameters: tuple[Value | None, ...], eps: float
) -> Value:
    """Batch norm of ``x`` with (scale, bias, mean, var); absent scale is 1, absent bias is 0.

    Raises:
        BadInput: a negative variance.
    """
    channels = x.shape[1] if x.rank > 1 else 0
    scale, bias, mean, var = parameters
    if mean is None or var is None:
        raise Unsupported(
            f"{call.where or call.name}: batch normalisation without stored statistics "
            f"mixes examples; call eval() on the model and keep running statistics"
        )
    full = (
        scale or b.constant(np.ones(channels)),
        bias or b.constant(np.zeros(channels)),
        mean,
        var,
    )
    _checked(call, eps, full)
    return b.add("batch_norm", x, *full, name=call.name, eps=eps)


def _onnx(b: Builder, call: Call) -> Value:
    if call.attr("training_mode", 0) or call.outputs > 1:
        raise Unsupported(
            f"{call.where or call.name}: batch normalisation in training mode mixes examples; "
            f"export the model in evaluation mode"
        )
    return normalised(b, call, call.inputs[0], call.inputs[1:5], float(call.attr("epsilon", 1e-5)))


def _aten(training: int | None, eps: int, outputs: int = 1) -> Any:
    """A translation; ``training`` and ``eps`` are argument positions."""

    def translate(b: Builder, call: Call) -> Value | tuple[Value, ...]:
        if training is not None and call.inputs[training]:
            raise Unsupported(
                f"{call.where or call.name}: batch normalisation in training mode mixes "
                f"examples; call eval() on the model"
            )
        y = normalised(b, call, call.inputs[0], tuple(call.inputs[1:5]), float(call.inputs[eps]))
        rest = tuple(b.constant(np.zeros(0)) for _ in range(outputs - 1))
        return (y, *rest) if rest else y

    return translate


def _rule() -> AffineRule:
    base = affine_rule(
        _forward,
        weights=(1,),
        biases=(2, 3),
        transpose=_transpose,
        roundings=8,
        summands=lambda site: (2, 1),
    )
    return AffineRule(
        base.linear,
        base.absolute,
        base.transpose,
        base.summands,
        base.weights,
        base.biases,
        roundings=base.roundings,
        offset_size=_offset_size,
    )


_V = np.array([0.5, 2.0, 1.0])

REGISTRY.add(
    Op(
        "batch_norm",
        _forward,
        _shape,
        (
            Example(((1, 3, 2, 2), np.array([1.0, -2.0, 0.5]), _V, -_V, _V), {"eps": 1e-5}),
            Example(((2, 3), np.ones(3), np.zeros(3), np.zeros(3), _V), {"eps": 0.1}),
        ),
        affine=_rule(),
        onnx={"BatchNormalization": _onnx},
        aten={"aten.batch_norm.default": _aten(5, 7)},
        float32_roundings=0,
        summary="(x - mean) / sqrt(var + eps) * scale + bias with stored statistics",
    )
)

REGISTRY.add(
    Composite(
        "batch_norms",
        aten={
            "aten._native_batch_norm_legit_no_training.default": _aten(None, 6, 3),
            "aten.native_batch_norm.default": _aten(5, 7, 3),
            "aten._native_batch_norm_legit.default": _aten(5, 7, 3),
            "aten.cudnn_batch_norm.default": _aten(5, 7, 4),
            "aten.miopen_batch_norm.default": _aten(5, 7, 3),
        },
        summary="other names of batch_norm in evaluation mode",
    )
)
