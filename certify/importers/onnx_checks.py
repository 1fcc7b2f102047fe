"""What ONNX demands of particular operators, beyond arity and types."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from certify.core.errors import BadInput, LimitExceeded, Unsupported
from certify.core.graph import Shape
from certify.importers.onnx_fold import Known
from certify.importers.onnx_tensors import quoted
from certify.ops.builder import LARGEST_TENSOR

LARGEST_PADDING = 2**20
_INFINITE_OPERAND = {"Clip", "Max", "Min", "Pad", "Where"}

_Operands = Sequence[Known | None]


def check_call(op: str, operands: _Operands, attrs: Mapping[str, Any], where: str) -> None:
    """Raises when a node that depends on the input cannot mean what its operator says.

    Raises:
        BadInput: an infinite weight, a division by zero, a window that fits nothing ...
        LimitExceeded: a size beyond any use.
        Unsupported: training mode.
    """
    for known in operands:
        if known is not None and not known.finite and op not in _INFINITE_OPERAND:
            raise BadInput(f"{where}: constant {quoted(known.value.name)} is not finite")
    check = _CHECKS.get(op)
    if check is not None:
        check(operands, attrs, where)


def _shape(operands: _Operands, index: int) -> Shape:
    known = operands[index] if index < len(operands) else None
    return () if known is None else known.value.shape


def _array(operands: _Operands, index: int) -> np.ndarray | None:
    known = operands[index] if index < len(operands) else None
    return None if known is None else known.native


def _name(operands: _Operands, index: int) -> str:
    known = operands[index]
    return "?" if known is None else quoted(known.value.name)


def _window(operands: _Operands, attrs: Mapping[str, Any], where: str) -> None:
    size = _shape(operands, 0)[2:]
    if not size:
        raise BadInput(f"{where}: needs an input with batch, channel and space axes")
    pads = attrs.get("pads", [0] * 2 * len(size))
    if len(pads) != 2 * len(size) or any(p < 0 for p in pads):
        raise BadInput(f"{where}: pads {pads} must be {2 * len(size)} numbers >= 0")
    if any(p > LARGEST_PADDING for p in pads):
        raise LimitExceeded(f"{where}: pads {pads} are beyond {LARGEST_PADDING}")
    for name in ("strides", "dilations", "kernel_shape"):
        steps = attrs.get(name, [1] * len(size))
        if len(steps) != len(size) or any(s < 1 for s in steps):
            raise BadInput(f"{where}: {name} {steps} must be {len(size)} numbers >= 1")


def _fits(kernel: Sequence[int], size: Shape, attrs: Mapping[str, Any], where: str) -> None:
    if attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID", ""):
        return
    pads = attrs.get("pads", [0] * 2 * len(size))
    dilations = attrs.get("dilations", [1] * len(size))
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    room = [n + pads[i] + pads[i + len(size)] for i, n in enumerate(size)]
    if any(r > n for r, n in zip(reach, room, strict=True)):
        raise BadInput(f"{where}: a kernel of {list(kernel)} exceeds the padded input {room}")


def _pool(operands: _Operands, attrs: Mapping[str, Any], where: str) -> None:
    _window(operands, attrs, where)
    if "kernel_shape" in attrs:
        _fits(attrs["kernel_shape"], _shape(operands, 0)[2:], attrs, where)


def _conv(operands: _Operands, attrs: Mapping[str, Any], where: str) -> None:
    _window(operands, attrs, where)
    x, weight, group = _shape(operands, 0), _shape(operands, 1), attrs.get("group", 1)
    _weights(x, weight, attrs, where)
    if group < 1 or weight[0] % group or x[1] != weight[1] * group:
        raise BadInput(f"{where}: group {group} does not fit {x[1]} channels and weight {weight}")
    _fits(weight[2:], x[2:], attrs, where)


def _conv_transpose(operands: _Operands, attrs: Mapping[str, Any], where: str) -> None:
    _window(operands, attrs, where)
    x, weight, group = _shape(operands, 0), _shape(operands, 1), attrs.get("group", 1)
    _weights(x, weight, attrs, where)
    if group < 1 or x[1] != weight[0] or x[1] % group:
        raise BadInput(f"{where}: group {group} does not fit {x[1]} channels and weight {weight}")


def _weights(x: Shape, weight: Shape, attrs: Mapping[str, Any], where: str) -> None:
    if len(weight) != len(x):
        raise BadInput(f"{where}: a weight of shape {weight} does not fit an input of shape {x}")
    if tuple(attrs.get("kernel_shape", weight[2:])) != weight[2:]:
        raise BadInput(f"{where}: kernel_shape is not that of the weight {weight}")


def _divide(operands: _Operands, attrs: Mapping[str, Any], where: str) -> None:
    divisor = _array(operands, 1)
    if divisor is not None and (divisor == 0).any():
        raise BadInput(f"{where}: divides by {_name(operands, 1)}, which holds a zero")


def _batch_norm(operands: _Operands, attrs: Mapping[str, Any], where: str) -> None:
    if attrs.get("training_mode", 0):
        raise Unsupported(f"{where}: training_mode is on; export the model in inference mode")
    if not attrs.get("spatial", 1):
        raise Unsupported(f"{where}: spatial = 0 is not supported")
    variance = _array(operands, 4)
    epsilon = attrs.get("epsilon", 1e-5)
    if variance is not None and (variance.astype(np.float64) + epsilon <= 0).any():
        raise BadInput(f"{where}: variance {_name(operands, 4)} has a value without a square root")


def _grow(operands: _Operands, attrs: Mapping[str, Any], where: str) -> None:
    sizes = _array(operands, 1)
    if sizes is not None and math.prod(max(1, int(n)) for n in sizes.ravel()) > LARGEST_TENSOR:
        raise LimitExceeded(f"{where}: grows its input beyond {LARGEST_TENSOR} elements")


_CHECKS: dict[str, Callable[[_Operands, Mapping[str, Any], str], None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "Div": _divide,
    "Mod": _divide,
    "BatchNormalization": _batch_norm,
    "Expand": _grow,
    "Tile": _grow,
}
