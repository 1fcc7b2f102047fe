"""Every ONNX operator set from 9 on, and the ways in which files hold a model."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_models import model, node, saved
from single_calls import (
    ABOVE_ZERO,
    CALLS,
    CUBE,
    IMAGE,
    RNG,
    TABLE,
    X,
    agrees,
    ints,
    real,
    single,
    words,
)

import certify
from certify.core.errors import Unsupported

NEWEST = onnx.defs.onnx_opset_version()
OPSETS = range(9, NEWEST + 1)


def by_opset(op: str, opset: int) -> tuple[list[Any], dict[str, Any]]:
    """Operands and attributes of a call in one operator set: settings became operands over time."""
    if op in ("Squeeze", "Unsqueeze"):
        shape = X((1, 2, 1, 3)) if op == "Squeeze" else TABLE
        return ([shape, ints(0, 2)], {}) if opset >= 13 else ([shape], {"axes": [0, 2]})
    if op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2"):
        since = 13 if op == "ReduceSum" else 18
        return ([CUBE, ints(1)], {}) if opset >= since else ([CUBE], {"axes": [1]})
    if op == "Clip":
        limits = {"min": -0.5, "max": 0.7}
        return (
            ([TABLE, np.float32(-0.5), np.float32(0.7)], {}) if opset >= 11 else ([TABLE], limits)
        )
    if op == "Pad":
        pads = [0, 1, 2, 0]
        return (
            ([TABLE, ints(*pads), np.float32(0.5)], {})
            if opset >= 11
            else ([TABLE], {"pads": pads, "value": 0.5})
        )
    if op == "Slice":
        return (
            ([TABLE, ints(1), ints(3), ints(1)], {})
            if opset >= 10
            else ([TABLE], {"starts": [1], "ends": [3], "axes": [1]})
        )
    if op == "Split":
        return (
            ([TABLE, ints(1, 2)], {"axis": 1})
            if opset >= 13
            else ([TABLE], {"axis": 1, "split": [1, 2]})
        )
    if op == "Resize":
        scales = np.float32([1, 1, 2, 2])
        return (
            ([IMAGE, None, scales], {})
            if opset >= 13
            else (
                ([IMAGE, np.zeros(0, np.float32), scales], {})
                if opset >= 11
                else ([IMAGE, scales], {})
            )
        )
    if op == "Gemm":
        return [TABLE, real(4, 3), real(4)], {"transB": 1, "alpha": 0.5}
    if op == "Dropout":
        return [TABLE], {}
    _, operands, attrs = CALLS.get(op, (17, [TABLE], {}))
    return operands, attrs


FIRST_OPSET = {
    "Gelu": 20,
    "LayerNormalization": 17,
    "Resize": 10,
    "HardSwish": 14,
    "Mish": 18,
    "GroupNormalization": 21,
    "Swish": 24,
    "RMSNormalization": 23,
    "Einsum": 12,
    "CumSum": 11,
    "Celu": 12,
    "Round": 11,
}
TIMELESS = words("""
Add AveragePool BatchNormalization Cast Clip Concat Conv ConvTranspose Dropout Expand Flatten Gather
Gemm Identity LeakyRelu LogSoftmax MatMul Max MaxPool Pad Pow PRelu ReduceL2 ReduceMax ReduceMean
ReduceSum Relu Reshape Sigmoid Slice Softmax Split Squeeze Sum Tile Transpose Unsqueeze Where
""")


@pytest.mark.parametrize("op", sorted({*TIMELESS, *FIRST_OPSET}))
def test_every_operator_set(op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for opset in range(FIRST_OPSET.get(op, OPSETS[0]), NEWEST + 1):
        operands, attrs = by_opset(op, opset)
        monkeypatch.setitem(CALLS, op, (opset, operands, attrs))
        proto = single(op)
        try:
            graph = certify.load(saved(tmp_path, proto))
            agrees(graph, proto, op in ABOVE_ZERO)
        except Exception as problem:
            problem.add_note(f"{op} in operator set {opset}")
            raise


def test_the_operator_sets_before_are_refused(tmp_path: Path) -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": [1, 2]}, opset=NEWEST)
    proto.opset_import[0].version = NEWEST + 1
    with pytest.raises(Unsupported, match="opset"):
        certify.load(saved(tmp_path, proto))


# --- files ----------------------------------------------------------------------------------


def chained(as_inputs: bool) -> onnx.ModelProto:
    """Flattening and halving a batch as exporters write it, with an open batch axis."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "i0"], ["n"]),
        node("Unsqueeze", ["n", "a0"], ["n1"]),
        node("Gather", ["s", "i1"], ["c"]),
        node("Div", ["c", "i2"], ["half"]),
        node("Cast", ["half"], ["h"], to=7),
        node("Unsqueeze", ["h", "a0"], ["h1"]),
        node("Slice", ["x", "a0", "h1", "a1"], ["front"]),
        node("Concat", ["n1", "rest"], ["to"], axis=0),
        node("Reshape", ["front", "to"], ["flat"]),
        node("ConstantOfShape", ["to2"], ["zeros"]),
        node("Gemm", ["flat", "w"], ["g"]),
        node("Add", ["g", "zeros"], ["r"]),
        node("Relu", ["r"], ["y"]),
    ]
    weights = {
        "i0": np.int64(0),
        "i1": np.int64(1),
        "i2": np.int64(2),
        "a0": ints(0),
        "a1": ints(1),
        "rest": ints(-1),
        "to2": ints(1, 2),
        "w": RNG.normal(size=(6, 2)),
    }
    inputs: dict[str, Any] = {"x": ["batch", 4, 3]}
    if as_inputs:
        inputs["w"] = [6, 2]
    return model(nodes, inputs, weights=weights, opset=13)


@pytest.mark.parametrize("as_inputs", [False, True])
@pytest.mark.parametrize("ending", [".onnx", ".onnx.gz"])
def test_chains_of_shapes_gzip_and_initialisers_as_inputs(
    as_inputs: bool, ending: str, tmp_path: Path
) -> None:
    proto = chained(as_inputs)
    path = tmp_path / f"model{ending}"
    data = proto.SerializeToString()
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    graph = certify.load(path)
    assert graph.input_shapes == ((1, 4, 3),)
    assert [n.op for n in graph.inputs] == ["input"]
    assert not {"gather", "div", "concat"} & {n.op for n in graph.nodes}
    agrees(graph, proto)
