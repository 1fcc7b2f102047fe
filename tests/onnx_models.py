"""Small ONNX models for tests of the importer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Node = onnx.NodeProto


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attrs: Any) -> Node:
    return helper.make_node(op, list(inputs), list(outputs), **attrs)


def model(
    nodes: Sequence[Node],
    inputs: Mapping[str, Sequence[int | str | None]],
    outputs: Sequence[str] = ("y",),
    weights: Mapping[str, Any] | None = None,
    opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model; weights that are floating point become float32."""
    arrays = {k: np.asarray(v) for k, v in (weights or {}).items()}
    tensors = [
        numpy_helper.from_array(a.astype(np.float32) if a.dtype == np.float64 else a, k)
        for k, a in arrays.items()
    ]
    graph = helper.make_graph(
        list(nodes), "g",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, list(s)) for k, s in inputs.items()],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, None) for k in outputs],
        tensors,
    )
    domains = {f.domain for f in functions}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=9)


def saved(folder: Path, proto: onnx.ModelProto, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def gemm(weight: str = "w") -> Node:
    return node("Gemm", ["x", weight], ["y"])
