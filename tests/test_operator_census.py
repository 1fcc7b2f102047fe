"""Every ONNX and torch operator that is claimed is imported, computes the same, and has bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx_models import model, node, saved
from single_calls import ABOVE_ZERO, CALLS, RNG, TABLE, agrees, real, single, words

import certify
from certify.bounds.evaluate import evaluate
from certify.cli.main import main
from certify.core.errors import Unsupported
from certify.importers.onnx_builtin import BUILTINS
from certify.ops import load

REGISTRY = load()
CLAIMED = sorted({*REGISTRY.onnx, *BUILTINS})

# What the networks of the verification competition use, in any family.
CENSUS = words("""
Add AveragePool BatchNormalization Concat ConstantOfShape Conv ConvTranspose Cos Div Dropout Flatten
Floor Gather Gemm LeakyRelu MatMul MaxPool Mul Neg Pad Pow ReduceMean ReduceSum Relu Reshape Shape
Sigmoid Sign Sin Slice Softmax Split Sub Transpose Unsqueeze Upsample
""")

# What other toolkits' users bring along.
EXPECTED = words("""
Abs Atan Attention Cast Ceil Celu Clip Constant CumSum Einsum Elu Erf Exp Expand Gelu
GlobalAveragePool GlobalMaxPool GroupNormalization HardSigmoid HardSwish Identity
InstanceNormalization LayerNormalization Log LogSoftmax Max Min Mish PRelu RMSNormalization
Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMin ReduceSumSquare
Resize Round Selu Shrink Softplus Softsign Sqrt Squeeze Swish Tanh ThresholdedRelu Tile Where
""")

EXPECTED_ATEN = words("""
abs add.Tensor addmm atan avg_pool2d batch_norm cat celu ceil clamp conv1d conv2d conv3d
conv_transpose1d conv_transpose2d.input conv_transpose3d.input cos cumsum
div.Tensor dropout einsum elu erf exp
expand flatten.using_ints floor gelu group_norm hardsigmoid hardswish hardtanh heaviside
instance_norm layer_norm leaky_relu linear log log_sigmoid log_softmax.int logsumexp matmul
max_pool2d maximum mean.dim minimum mish mul.Tensor neg permute pow.Tensor_Scalar prelu reciprocal
relu relu6 reshape rms_norm round rsqrt scaled_dot_product_attention selu sigmoid sign silu sin
softmax.int softplus split.Tensor sqrt square squeeze.dim sub.Tensor sum.dim_IntList tanh
transpose.int unsqueeze upsample_bilinear2d.vec upsample_nearest2d.vec where.self
""")


# --- what is claimed ------------------------------------------------------------------------


@pytest.mark.parametrize("op", sorted({*CENSUS, *EXPECTED}))
def test_is_claimed(op: str) -> None:
    assert op in CLAIMED


@pytest.mark.parametrize("name", EXPECTED_ATEN)
def test_torch_operator_is_claimed(name: str) -> None:
    overload = name if "." in name else f"{name}.default"
    assert f"aten.{overload}" in REGISTRY.aten


@pytest.mark.parametrize("op", CLAIMED)
def test_every_claim_is_kept_by_default_attributes(op: str, tmp_path: Path) -> None:
    proto = single(op)
    agrees(certify.load(saved(tmp_path, proto)), proto, op in ABOVE_ZERO)


@pytest.mark.parametrize("op", [op for op in CLAIMED if op not in BUILTINS])
def test_every_claim_has_bounds_that_hold(op: str, tmp_path: Path) -> None:
    graph = certify.load(saved(tmp_path, single(op)))
    (shape,) = graph.input_shapes
    centre = RNG.uniform(0.6, 3, shape).astype(np.float32)  # far from poles, and far apart
    with torch.no_grad():
        x = torch.tensor(centre + RNG.uniform(-0.0199, 0.0199, (50, *shape)))
        values = evaluate(graph, x)
    for method in ("ibp", "crown"):
        found = certify.bound(graph, certify.Linf(centre[None], 0.02), method)
        assert bool((values >= found.lower).all() and (values <= found.upper).all())
        assert bool(found.lower.isfinite().all() and found.upper.isfinite().all())


def test_the_command_line_lists_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["supports", "--onnx-operators"]) == 0
    assert capsys.readouterr().out.split() == CLAIMED


def test_what_is_not_claimed_is_refused(tmp_path: Path) -> None:
    for op in ("Hardmax", "NonZero", "Det", "IsNaN"):
        assert op not in CLAIMED
        proto = model([node(op, ["x"], ["y"])], {"x": [2, 2]})
        with pytest.raises(Unsupported, match=op):
            certify.load(saved(tmp_path, proto))


@pytest.mark.parametrize(("op", "opset", "attrs", "becomes"), [
    ("Swish", 24, {"alpha": 1.5}, "silu"), ("Shrink", 17, {"lambd": 0.3, "bias": 0.3}, "shrink"),
    ("ThresholdedRelu", 17, {"alpha": -0.5}, "threshold"), ("Celu", 17, {"alpha": 0.4}, "celu"),
    ("ReduceL2", 17, {"axes": [0], "keepdims": 0}, "sqrt"), ("ReduceL1", 17, {"axes": [1]}, "abs"),
    ("ReduceSumSquare", 17, {}, "square"), ("HardSigmoid", 17, {"alpha": 0.3}, "hard_sigmoid"),
])  # fmt: skip
def test_settings_that_are_not_the_default(
    op: str,
    opset: int,
    attrs: dict[str, Any],
    becomes: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(CALLS, op, (opset, [TABLE], attrs))
    graph = certify.load(saved(tmp_path, single(op)))
    assert becomes in {n.op for n in graph.nodes}
    agrees(graph, single(op))


@pytest.mark.parametrize("op", ["Max", "Min", "Sum", "Mean", "Concat"])
def test_any_number_of_operands(op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (1, 2, 3, 5):
        monkeypatch.setitem(CALLS, op, (17, [TABLE] * (count - 1) + [real(2, 3)], CALLS[op][2]))
        if count > 1:
            agrees(certify.load(saved(tmp_path, single(op))), single(op))
        monkeypatch.setitem(CALLS, op, (17, [TABLE] * count, CALLS[op][2]))
        agrees(certify.load(saved(tmp_path, single(op))), single(op))
