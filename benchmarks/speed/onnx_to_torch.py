"""A small ONNX file as a plain `torch.nn.Module`, for libraries that bound torch modules."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attributes = dict[str, Any]


class Network(nn.Module):
    """Runs the nodes of an ONNX graph in order.

    Weights become parameters, other constants buffers, so that a tracer sees what it would see in
    a hand-written module.

    Raises:
        ValueError: an operator this converter does not know; lists all of them.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        graph = onnx.load_model_from_string(data).graph
        missing = sorted({n.op_type for n in graph.node} - set(_OPERATORS) - {"Constant"})
        if missing:
            raise ValueError(f"the converter does not know {', '.join(missing)}")
        self.places: dict[str, str] = {}
        for tensor in graph.initializer:
            self._keep(tensor.name, onnx.numpy_helper.to_array(tensor))
        self.plan: list[tuple[str, list[str], str, Attributes]] = []
        for node in graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                self._keep(node.output[0], onnx.numpy_helper.to_array(attributes["value"]))
            else:
                self.plan.append((node.op_type, list(node.input), node.output[0], attributes))
        self._join_bias()
        self.source = next(i.name for i in graph.input if i.name not in self.places)
        self.result = graph.output[0].name

    def _keep(self, name: str, array: np.ndarray) -> None:
        place = self.places[name] = f"constant{len(self.places)}"
        tensor = torch.from_numpy(np.array(array))
        if tensor.is_floating_point() and tensor.dim() in (1, 2, 4):
            self.register_parameter(place, nn.Parameter(tensor))
        else:
            self.register_buffer(place, tensor)

    def _join_bias(self) -> None:
        """MatMul and the Add of a vector after it as one linear layer: rows merge with no less."""
        joined: list[tuple[str, list[str], str, Attributes]] = []
        for operator, inputs, output, attributes in self.plan:
            if joined and operator == "Add" and joined[-1][0] == "MatMul":
                before, bias = joined[-1], [n for n in inputs if n != joined[-1][2]]
                if len(bias) == 1 and bias[0] in self.places:
                    joined[-1] = ("MatMul", [*before[1], *bias], output, attributes)
                    continue
            joined.append((operator, inputs, output, attributes))
        self.plan = joined

    def forward(self, x: Tensor) -> Tensor:
        """Run the graph on a batch."""
        values: dict[str, Tensor] = {self.source: x}

        def value(name: str) -> Tensor:
            return values[name] if name in values else getattr(self, self.places[name])

        for operator, inputs, output, attributes in self.plan:
            values[output] = _OPERATORS[operator](attributes, *(value(i) for i in inputs if i))
        return values[self.result]


def _gemm(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    if a.get("transA", 0) or a.get("alpha", 1.0) != 1.0 or a.get("beta", 1.0) != 1.0:
        raise ValueError("Gemm with transA, alpha or beta is not converted")
    return F.linear(x, w if a.get("transB", 0) else w.t(), b)


def _conv(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    return F.conv2d(x, w, b, tuple(a.get("strides", (1, 1))), _padding(a),
                    tuple(a.get("dilations", (1, 1))), int(a.get("group", 1)))


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    return F.max_pool2d(x, tuple(a["kernel_shape"]), tuple(a.get("strides", (1, 1))), _padding(a))


def _padding(a: Attributes) -> tuple[int, int]:
    top, left, bottom, right = a.get("pads", (0, 0, 0, 0))
    if (top, left) != (bottom, right) or a.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise ValueError("uneven padding is not converted")
    return int(top), int(left)


def _reshape(_: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    target = [int(n) for n in shape]
    return torch.flatten(x, 1) if len(target) == 2 else x.reshape(-1, *target[1:])


_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda _, x, y: x + y,
    "Conv": _conv,
    "Div": lambda _, x, y: x / y,
    "Flatten": lambda _, x: torch.flatten(x, 1),
    "Gemm": _gemm,
    "MatMul": lambda _, x, w, b=None: F.linear(x, w.t(), b),
    "MaxPool": _max_pool,
    "Mul": lambda _, x, y: x * y,
    "Relu": lambda _, x: torch.relu(x),
    "Reshape": _reshape,
    "Sigmoid": lambda _, x: torch.sigmoid(x),
    "Sub": lambda _, x, y: x - y,
    "Tanh": lambda _, x: torch.tanh(x),
}
