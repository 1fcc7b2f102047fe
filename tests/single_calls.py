"""ONNX models of a single call, one for each operator, and what they must compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx_models import model, node

from certify.bounds.evaluate import evaluate
from certify.core.graph import Graph

RNG = np.random.default_rng(0)


def words(text: str) -> list[str]:
    return text.split()


class X(tuple):
    """Shape of an operand that depends on the model's input."""


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def real(*shape: int) -> np.ndarray:
    return RNG.uniform(0.5, 1.5, shape).astype(np.float32)


MASK = np.array([[True, False, True], [False, True, True]])
IMAGE, TABLE, CUBE = X((1, 4, 6, 6)), X((2, 3)), X((1, 2, 4))

# One call of each operator: opset, operands, attributes. Others take a table at opset 17.
CALLS: dict[str, tuple[int, list[Any], dict[str, Any]]] = {
    **{op: (17, [TABLE, TABLE], {}) for op in words("Add Sub Mul Div Max Min Mean Sum")},
    **{op: (17, [IMAGE], {}) for op in ("GlobalAveragePool", "GlobalMaxPool")},
    **{op: (17, [IMAGE], {"kernel_shape": [2, 3]}) for op in ("AveragePool", "MaxPool")},
    "Attention": (23, [X((1, 1, 3, 4))] * 3, {}),
    "BatchNormalization": (17, [IMAGE, real(4), real(4), real(4), real(4)], {}),
    "Cast": (17, [TABLE], {"to": 1}),
    "CastLike": (17, [TABLE, real(1)], {}),
    "Concat": (17, [TABLE, TABLE], {"axis": 1}),
    "Constant": (17, [], {"value_floats": [1.0, 2.0, 3.0]}),
    "ConstantOfShape": (17, [ints(2, 3)], {}),
    "Conv": (17, [IMAGE, real(2, 4, 3, 3), real(2)], {}),
    "ConvTranspose": (17, [IMAGE, real(4, 2, 3, 3), real(2)], {}),
    "CumSum": (17, [TABLE, np.array(1)], {}),
    "DepthToSpace": (17, [IMAGE], {"blocksize": 2}),
    "Einsum": (17, [TABLE, real(3, 2)], {"equation": "ij,jk->ik"}),
    "Expand": (17, [TABLE, ints(4, 1, 3)], {}),
    "Gather": (17, [TABLE, ints(1, 0)], {}),
    "GatherElements": (17, [TABLE, ints(1, 0, 1)[None]], {}),
    "GatherND": (17, [TABLE, ints(1, 0)[None]], {}),
    "Gelu": (20, [TABLE], {}),
    "Gemm": (17, [TABLE, real(3, 4)], {}),
    "GroupNormalization": (21, [IMAGE, real(4), real(4)], {"num_groups": 2}),
    "InstanceNormalization": (17, [IMAGE, real(4), real(4)], {}),
    "LayerNormalization": (17, [TABLE, real(3)], {}),
    "MatMul": (17, [TABLE, real(3, 4)], {}),
    "MeanVarianceNormalization": (17, [IMAGE], {}),
    "Mish": (18, [TABLE], {}),
    "PRelu": (17, [TABLE, real(3)], {}),
    "Pad": (17, [TABLE, ints(0, 1, 2, 0)], {}),
    "Pow": (17, [TABLE, np.float32(2)], {}),
    "RMSNormalization": (23, [TABLE, real(3)], {}),
    "Reshape": (17, [TABLE, ints(3, -1)], {}),
    "Resize": (17, [IMAGE, None, real(4) * 0 + np.float32([1, 1, 2, 2])], {}),
    "ScatterND": (17, [TABLE, ints(1)[None], real(1, 3)], {}),
    "Slice": (17, [TABLE, ints(1), ints(3), ints(1)], {}),
    "SpaceToDepth": (17, [IMAGE], {"blocksize": 2}),
    "Split": (17, [TABLE, ints(1, 2)], {"axis": 1}),
    "Squeeze": (17, [CUBE], {}),
    "Swish": (24, [TABLE], {}),
    "Tile": (17, [TABLE, ints(2, 1)], {}),
    "Trilu": (17, [TABLE], {}),
    "Unsqueeze": (17, [TABLE, ints(0)], {}),
    "Upsample": (9, [IMAGE, np.float32([1, 1, 2, 2])], {}),
    "Where": (17, [MASK, TABLE, TABLE], {}),
}
ABOVE_ZERO = {"Log", "Sqrt", "Reciprocal", "Div", "Pow", "ReduceLogSum"}


def single(op: str) -> onnx.ModelProto:
    """A model of one call of ``op``; a second variable operand is twice the input plus one."""
    opset, operands, attrs = CALLS.get(op, (17, [TABLE], {}))
    names, extra, weights = [], [], {"two": np.float32(2), "one": np.float32(1)}
    shape = next((o for o in operands if isinstance(o, X)), TABLE)
    for k, given in enumerate(operands):
        if isinstance(given, X) and "x" in names:
            extra += [
                node("Mul", ["x", "two"], [f"m{k}"]),
                node("Add", [f"m{k}", "one"], [f"v{k}"]),
            ]
            names.append(f"v{k}")
        elif isinstance(given, X):
            names.append("x")
        elif given is None:
            names.append("")
        else:
            weights[f"c{k}"] = given
            names.append(f"c{k}")
    results = ["y", "z"] if op == "Split" else ["y"]
    nodes = [*extra, node(op, names, results, **attrs)]
    if "x" not in names or op in ("Shape", "Size"):  # a constant: add the input to it
        nodes[-1].output[0] = "c"
        wide = [node("Cast", ["c"], ["f"], to=1), node("ReduceSum", ["f"], ["s"], keepdims=0)]
        nodes += [*wide, node("Add", ["x", "s"], ["y"])]
    return model(nodes, {"x": list(shape)}, results, weights, opset)


def runtime(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, ["CPUExecutionProvider"]
    )


def agrees(graph: Graph, proto: onnx.ModelProto, positive: bool = False) -> None:
    """On random points, against ONNX Runtime or, where that is too old, ONNX's own reference."""
    (shape,) = graph.input_shapes
    for _ in range(3):
        x = RNG.uniform(0.1 if positive else -2, 2, shape).astype(np.float32)
        try:
            outputs = runtime(proto).run(None, {"x": x})
        except (
            onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented,
            onnxruntime.capi.onnxruntime_pybind11_state.Fail,
        ):
            outputs = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x})
        want = np.concatenate([o.ravel() for o in outputs])
        got = evaluate(graph, torch.tensor(x, dtype=torch.float64)[None]).numpy()
        np.testing.assert_allclose(got.ravel(), want, rtol=1e-4, atol=1e-4)
