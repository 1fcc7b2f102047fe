"""Import names of elementwise functions mean what torch and ONNX mean by them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scalar_cases import CASES

from certify.core.errors import CertifyError
from certify.ops.builder import Builder, Call, Value
from certify.ops.record import REGISTRY, Site

BY_NAME = {case.op.name: case for case in reversed(CASES)}

SETTINGS: dict[str, tuple[Any, ...]] = {
    "aten.leaky_relu.default": (0.2,),
    "aten.elu.default": (1.3,),
    "aten.celu.default": (1.3,),
    "aten.softplus.default": (2.0, 10.0),
    "aten.hardtanh.default": (-0.3, 0.8),
    "aten.clamp.default": (None, 0.5),
    "aten.clamp_min.default": (0.2,),
    "aten.clamp_max.default": (0.2,),
    "aten.pow.Tensor_Scalar": (3,),
    "aten.threshold.default": (0.3, -2.0),
    "aten.threshold_.default": (0.3, 5.0),
    "aten.hardshrink.default": (0.6,),
}


def _translated(
    table: Any, kind: str, x: Value, *arguments: Any, **attrs: Any
) -> tuple[Any, Value]:
    name, translate = table[kind]
    b = Builder()
    x = b.input("x", x.shape)
    if translate is None:
        return b, b.add(name, x)
    return b, translate(b, Call("y", kind, (x, *arguments), attrs))


def _run(b: Builder, y: Value, x: torch.Tensor) -> torch.Tensor:
    for node in b.nodes[1:]:
        constants = [torch.as_tensor(b.constants[n]) for n in node.inputs[1:]]
        shapes = (tuple(x.shape), *(tuple(c.shape) for c in constants))
        site = Site(node.name, node.attrs, shapes, (True, *(False for _ in constants)), node.shape)
        x = REGISTRY.ops[node.op].forward(site, x, *constants)
    return x


@pytest.mark.parametrize("op", sorted({case.op.name for case in CASES}))
def test_aten_names_mean_what_torch_computes(op: str) -> None:
    x = torch.linspace(0.05, 2.5, 12, dtype=torch.float64).reshape(2, 6)
    if BY_NAME[op].example.low < 0:
        x = torch.cat((-x, x))
    for kind in REGISTRY.ops[op].aten:
        _, short, overload = kind.split(".")
        if overload not in ("default", "Tensor_Scalar") or op in ("prelu", "heaviside"):
            continue
        packet = getattr(torch.ops.aten, short)
        settings = SETTINGS.get(kind, ())
        b, y = _translated(REGISTRY.aten, kind, Value("x", tuple(x.shape)), *settings)
        if short in ("clamp_min_", "clamp_max_", "clamp_"):
            settings = (0.3,)
            b, y = _translated(REGISTRY.aten, kind, Value("x", tuple(x.shape)), *settings)
        expected = getattr(packet, overload)(x.clone(), *settings)
        assert torch.allclose(_run(b, y, x), expected, rtol=1e-12, atol=1e-12), kind


def test_torch_prelu_slopes_are_per_channel() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    weight = torch.tensor([0.1, -0.4, 2.0], dtype=torch.float64)
    b, y = _translated(
        REGISTRY.aten, "aten.prelu.default", Value("x", (2, 3, 4)), Value("w", (3,), weight)
    )
    assert torch.equal(_run(b, y, x), torch.prelu(x, weight))


@pytest.mark.parametrize(
    ("exponent", "op"),
    [(2, "square"), (0.5, "sqrt"), (-1, "reciprocal"), (-0.5, "rsqrt"), (3, "pow"), (2.5, "pow")],
)
def test_onnx_powers_go_to_the_record_that_fits(exponent: float, op: str) -> None:
    b, y = _translated(
        REGISTRY.onnx, "Pow", Value("x", (2, 3)), Value("e", (), np.array(exponent, np.float32))
    )
    assert b.nodes[-1].op == op


def test_powers_with_other_exponents_are_refused() -> None:
    for exponent in (Value("e", (2,), np.array([1.0, 2.0])), Value("e", (2, 3))):
        with pytest.raises(CertifyError, match="exponent"):
            _translated(REGISTRY.onnx, "Pow", Value("x", (2, 3)), exponent)


def test_gelu_has_two_forms() -> None:
    for table, kind, arguments, attrs in (
        (REGISTRY.onnx, "Gelu", (), {"approximate": "tanh"}),
        (REGISTRY.aten, "aten.gelu.default", ("tanh",), {}),
    ):
        b, _ = _translated(table, kind, Value("x", (2,)), *arguments, **attrs)
        assert b.nodes[-1].op == "gelu_tanh"
        with pytest.raises(CertifyError, match="approximate"):
            _translated(
                table,
                kind,
                Value("x", (2,)),
                *(("cubic",) if arguments else ()),
                **dict.fromkeys(attrs, "x"),
            )


def test_bad_settings_are_refused() -> None:
    for op, attrs in (
        ("celu", {"alpha": -1.0}),
        ("softplus", {"beta": 0.0, "threshold": 20.0}),
        ("clip", {"min": math.nan, "max": 1.0}),
    ):
        b = Builder()
        with pytest.raises(CertifyError):
            b.add(op, b.input("x", (2,)), **attrs)
