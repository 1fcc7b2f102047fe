"""A network of `networks` as an ONNX file, input and output flat with a leading 1."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.battery.networks import Affine, Layers, Pool, Product, Residual


class _Writer:
    """Nodes and constants so far; ``add`` appends one node and names its result."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def reshaped(self, x: str, shape: tuple[int, ...]) -> str:
        return self.add("Reshape", x, self.constant(np.array(shape, np.int64)))

    def layers(self, layers: Layers, x: str, width: int) -> tuple[str, int]:
        for layer in layers:
            x, width = self.layer(layer, x, width)
        return x, width

    def layer(self, layer: Any, x: str, width: int) -> tuple[str, int]:
        if isinstance(layer, Affine):
            return self.affine(layer, x), len(layer.bias)
        if isinstance(layer, Pool):
            found = self.add("MaxPool", self.reshaped(x, layer.shape), kernel_shape=[2, 2],
                             strides=[1, 1])
            return self.reshaped(found, (1, len(layer.members))), len(layer.members)
        if isinstance(layer, Product):
            half = width // 2
            bounds = [(0, half), (half, width)]
            parts = [self.add("Slice", x, self.constant(np.array([a], np.int64)),
                              self.constant(np.array([b], np.int64)),
                              self.constant(np.array([1], np.int64))) for a, b in bounds]
            return self.add("Mul", *parts), half
        if isinstance(layer, Residual):
            found, _ = self.layers(layer.body, x, width)
            return self.add("Add", x, found), width
        return self.add(layer.name, x), width

    def affine(self, layer: Affine, x: str) -> str:
        if layer.kernel is None:
            return self.add("Gemm", x, self.constant(layer.weight), self.constant(layer.bias),
                            transB=1)
        channels = len(layer.kernel)
        bias = layer.bias.reshape(channels, -1)[:, 0].copy()
        image = self.reshaped(x, layer.shape)
        found = self.add("Conv", image, self.constant(layer.kernel), self.constant(bias),
                         kernel_shape=[2, 2], strides=[layer.stride] * 2)
        return self.reshaped(found, (1, len(layer.bias)))


def write(path: Path, layers: Layers, inputs: int) -> Path:
    """Write the file."""
    writer = _Writer()
    last, outputs = writer.layers(layers, "x", inputs)
    result = writer.add("Identity", last)
    sizes = ((inputs, "x"), (outputs, result))
    given, answer = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, math.prod((n,))])
                     for n, name in sizes)
    graph = helper.make_graph(writer.nodes, "battery", [given], [answer], writer.constants)
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path
