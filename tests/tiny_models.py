"""Tiny ONNX models and VNN-LIB files for tests, written with ``onnx.helper``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HOLDS = "(assert (<= Y_0 -0.5))"  # |x0| + |x1| is never below 0
VIOLATED = "(assert (>= Y_0 1.5))"  # ... and reaches 2 at the corners
UNREACHED = "(assert (>= Y_0 2.5))"


def absolute_sum(path: Path, operator: str = "Relu") -> Path:
    """``|x0| + |x1|`` as Gemm, Relu, Gemm; input (1, 2), output (1, 1)."""
    first = np.array([[1, -1, 0, 0], [0, 0, 1, -1]], np.float32)
    second = np.ones((4, 1), np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first"),
        helper.make_node(operator, ["h"], ["a"], name="middle"),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["y"], name="last"),
    ]
    constants = {"w1": first, "b1": np.zeros(4, np.float32),
                 "w2": second, "b2": np.zeros(1, np.float32)}
    graph = helper.make_graph(
        nodes, "absolute_sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def specification(path: Path, unsafe: str, inputs: int = 2, outputs: int = 1) -> Path:
    """``unsafe`` over the box [-1, 1]."""
    lines = [f"(declare-const X_{i} Real)" for i in range(inputs)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(outputs)]
    lines += [f"(assert (>= X_{i} -1.0))\n(assert (<= X_{i} 1.0))" for i in range(inputs)]
    path.write_text("\n".join([*lines, unsafe]) + "\n")
    return path
