"""Translations of products, pooling, softmax and attention, and facts about their planes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from certify import ops
from certify.core.errors import BadInput, Unsupported
from certify.core.graph import Graph
from certify.ops.builder import Builder, Call, Value
from certify.ops.record import Interval, Site
from tests.graph_values import run

REGISTRY = ops.load()


def _onnx_graph(kind: str, arrays: list[Any], attrs: dict[str, Any], opset: int) -> Graph:
    """One ONNX call; a tuple is a varying input of that shape, an array a constant."""
    b = Builder()
    values = [
        None if a is None else b.input(f"x{i}", a) if isinstance(a, tuple) else b.constant(a)
        for i, a in enumerate(arrays)
    ]
    translate = REGISTRY.onnx[kind][1]
    assert translate is not None
    found = translate(b, Call("y", kind, tuple(values), attrs, opset, 1, f"node y ({kind})"))
    assert isinstance(found, Value)
    return b.finish(found)


def _runtime(kind: str, arrays: list[Any], attrs: dict[str, Any], opset: int, seed: int) -> Any:
    """ONNX Runtime's answer to the same call, and the inputs it was given."""
    rng = np.random.default_rng(seed)
    fed, names, inputs, constants = {}, [], [], []
    for i, a in enumerate(arrays):
        names.append("" if a is None else f"x{i}")
        if isinstance(a, tuple):
            fed[f"x{i}"] = rng.normal(size=a).astype(np.float32)
            inputs.append(helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, a))
        elif a is not None:
            constants.append(onnx.numpy_helper.from_array(np.asarray(a), f"x{i}"))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node(kind, names, ["y"], **attrs)], "g", inputs, [output], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, fed)[0], [torch.tensor(v) for v in fed.values()]


def _agrees(
    kind: str, arrays: list[Any], attrs: dict[str, Any], opset: int, tolerance: float = 1e-5
) -> None:
    expected, points = _runtime(kind, arrays, attrs, opset, 0)
    found = run(_onnx_graph(kind, arrays, attrs, opset), *points).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


POOLS = [
    {"kernel_shape": k, "strides": s, "pads": p, "dilations": d, "ceil_mode": c}
    for k, s, p, d, c in itertools.product(
        ([2, 3],),
        ([1, 1], [2, 3]),
        ([0, 0, 0, 0], [1, 0, 1, 2], [0, 2, 1, 1]),
        ([1, 1], [2, 1]),
        (0, 1),
    )
] + [
    {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": a}
    for a in ("SAME_UPPER", "SAME_LOWER", "VALID")
]


@pytest.mark.parametrize("attrs", POOLS, ids=str)
def test_max_pool_agrees_with_onnx_runtime(attrs: dict[str, Any]) -> None:
    _agrees("MaxPool", [(1, 2, 7, 8)], attrs, 12, 0.0)


@pytest.mark.parametrize(("shape", "kernel"), [((1, 2, 9), [3]), ((1, 1, 4, 5, 6), [2, 3, 2])])
def test_max_pool_in_one_and_three_dimensions(shape: tuple[int, ...], kernel: list[int]) -> None:
    _agrees("MaxPool", [shape], {"kernel_shape": kernel, "strides": [2] * len(kernel)}, 12, 0.0)
    _agrees("GlobalMaxPool", [shape], {}, 12, 0.0)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(2, 2, 0, 1), (3, 2, 1, 1), (3, 1, 1, 2), (2, 3, 1, 1)],
)
def test_aten_max_pool_agrees_with_torch(
    kernel: int, stride: int, padding: int, dilation: int, ceil: bool
) -> None:
    x = torch.randn(1, 2, 8, 9, generator=torch.Generator().manual_seed(0))
    b = Builder()
    translate = REGISTRY.aten["aten.max_pool2d.default"][1]
    assert translate is not None
    value = b.input("x", (1, 2, 8, 9))
    y = translate(
        b,
        Call(
            "y",
            "aten.max_pool2d.default",
            (value, [kernel] * 2, [stride] * 2, [padding] * 2, [dilation] * 2, ceil),
            {},
        ),
    )
    assert isinstance(y, Value)
    expected = torch.nn.functional.max_pool2d(x, kernel, stride, padding, dilation, ceil)
    assert torch.equal(run(b.finish(y), x), expected)


@pytest.mark.parametrize("size", [1, 3, (2, 5)])
def test_adaptive_max_pool_agrees_with_torch(size: Any) -> None:
    x = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(1))
    b = Builder()
    translate = REGISTRY.aten["aten.adaptive_max_pool2d.default"][1]
    assert translate is not None
    y = translate(b, Call("y", "adaptive", (b.input("x", (2, 7, 8)), size), {}))
    assert torch.equal(run(b.finish(y[0]), x), torch.nn.functional.adaptive_max_pool2d(x, size))


def test_a_window_of_padding_only_is_refused() -> None:
    with pytest.raises(BadInput, match="padding"):
        _onnx_graph("MaxPool", [(1, 1, 4)], {"kernel_shape": [2], "pads": [3, 0]}, 12)


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(("opset", "axis"), [(7, 1), (11, 2), (11, 0), (13, 1), (13, -1)])
def test_softmax_flattens_before_opset_13(kind: str, opset: int, axis: int) -> None:
    _agrees(kind, [(2, 3, 4)], {"axis": axis}, opset)
    _agrees(kind, [(2, 3, 4)], {}, opset)


@pytest.mark.parametrize(("kind", "arrays", "attrs", "opset"), [
    ("Mul", [(2, 3), np.float32([1, 2, 3])], {}, 7),
    ("Mul", [(3,), (2, 3)], {}, 14),
    ("Div", [(2, 3), np.float32([[4.0], [3.0]])], {}, 14),
    ("MatMul", [(4,), (2, 4, 3)], {}, 13),
    ("MatMul", [(2, 3, 4), (4,)], {}, 13),
    ("MatMul", [np.ones((2, 3, 4), np.float32), (4, 5)], {}, 9),
    ("Max", [(2, 3), (3,), np.float32(0.1)], {}, 12),
    ("Min", [(2, 3), (2, 3), (1, 3), (2, 1)], {}, 13),
    ("ReduceMax", [(2, 3, 4)], {"axes": [0, -1], "keepdims": 0}, 13),
    ("ReduceMin", [(2, 3, 4), np.int64([1])], {"keepdims": 1}, 18),
    ("ReduceLogSumExp", [(2, 3, 4)], {"axes": [1]}, 13),
])  # fmt: skip
def test_onnx_calls_agree_with_onnx_runtime(
    kind: str, arrays: list[Any], attrs: dict[str, Any], opset: int
) -> None:
    _agrees(kind, arrays, attrs, opset)


def test_a_zero_denominator_is_named() -> None:
    with pytest.raises(BadInput, match="denominator .* has a zero"):
        _onnx_graph("Div", [(2,), np.float32([1.0, 0.0])], {}, 13)


def test_a_product_with_itself_is_a_square() -> None:
    b = Builder()
    x = b.input("x", (3,))
    translate = REGISTRY.onnx["Mul"][1]
    assert translate is not None
    y = translate(b, Call("y", "Mul", (x, x), {}))
    assert isinstance(y, Value)
    assert [n.op for n in b.finish(y).nodes] == ["input", "square"]


# ------------------------------------------------------------------------------------ attention


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_attention_agrees_with_torch(causal: bool, mask: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 4, 3, dtype=torch.float64) for _ in range(3))
    seen = torch.tensor([[True, False, True, True]] * 4)
    given = {"none": None, "bool": seen, "float": torch.where(seen, 0.5, -torch.inf).double()}[mask]
    if causal and given is not None:
        return
    b = Builder()
    inputs = [b.input(n, (1, 2, 4, 3)) for n in "qkv"]
    constant = None if given is None else b.constant(given)
    translate = REGISTRY.aten["aten.scaled_dot_product_attention.default"][1]
    assert translate is not None
    y = translate(b, Call("y", "sdpa", (*inputs, constant, 0.0, causal, None, False), {}))
    assert isinstance(y, Value)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, given, is_causal=causal)
    torch.testing.assert_close(run(b.finish(y), q, k, v), expected)


@pytest.mark.parametrize("attrs", [{}, {"is_causal": 1}, {"softcap": 1.5, "scale": 0.7}])
def test_onnx_attention_agrees_with_onnx_runtime(attrs: dict[str, Any]) -> None:
    _agrees("Attention", [(1, 4, 3, 5), (1, 2, 6, 5), (1, 2, 6, 2)], attrs, 23)
    flat = {**attrs, "q_num_heads": 2, "kv_num_heads": 2}
    _agrees("Attention", [(2, 3, 8), (2, 4, 8), (2, 4, 6)], flat, 23)


@pytest.mark.parametrize("way", ["add", "fill", "where", "partly"])
def test_minus_infinity_before_a_softmax_becomes_its_mask(way: str) -> None:
    seen = np.array([[True, False, True], [True, True, False]])
    bias = np.where(seen, 0.25 if way == "partly" else 0.0, -np.inf)
    b = Builder()
    x = b.input("x", (2, 3))
    scores = {
        "add": lambda: b.add("add", b.constant(bias), x),
        "partly": lambda: b.add("add", x, b.constant(bias)),
        "where": lambda: b.add("where", b.constant(seen), x, b.constant(np.float64(-np.inf))),
        "fill": lambda: b.add("where", b.constant(~seen), b.constant(np.float64(-np.inf)), x),
    }[way]()
    translate = REGISTRY.aten["aten.softmax.int"][1]
    assert translate is not None
    y = translate(b, Call("y", "aten.softmax.int", (scores, -1, None), {}))
    assert isinstance(y, Value)
    graph = b.finish(y)
    assert all(np.isfinite(np.asarray(v)).all() for v in graph.constants.values())
    point = torch.tensor([[0.3, 9.0, -1.0], [1.0, 2.0, 5.0]]).double()
    expected = (point + torch.as_tensor(bias)).softmax(-1)
    torch.testing.assert_close(run(graph, point), expected)


def test_a_query_without_keys_is_refused() -> None:
    mask = np.array([[True, True], [False, False]])
    with pytest.raises(Unsupported, match="sees no key"):
        _onnx_graph("Attention", [(1, 1, 2, 3)] * 3 + [mask], {}, 23)


# ------------------------------------------------------------------------------ relaxation facts


def _softmax_facts(
    lo: np.ndarray, u: np.ndarray, x: np.ndarray, k: int
) -> tuple[float, float, float, float]:
    """p_low, p_high, max(L_ER, L_LSE) and U_LSE at x, from their definitions."""
    others = [j for j in range(len(lo)) if j != k]
    low = math.exp(lo[k]) / (math.exp(lo[k]) + sum(math.exp(u[j]) for j in others))
    high = math.exp(u[k]) / (math.exp(u[k]) + sum(math.exp(lo[j]) for j in others))

    def chord(a: float, b: float, t: float) -> float:
        return ((b - t) * math.exp(a) + (t - a) * math.exp(b)) / (b - a)

    er = 1 / (1 + sum(chord(lo[j] - u[k], u[j] - lo[k], x[j] - x[k]) for j in others))
    lse = math.exp(x[k]) / sum(chord(lo[j], u[j], x[j]) for j in range(len(lo)))
    total = math.log(sum(math.exp(t) for t in x))
    a, b = math.log(low), math.log(high)
    upper = (low * b - high * a + (high - low) * (x[k] - total)) / (b - a)
    return low, high, max(er, lse), upper


def test_softmax_planes_touch_the_published_bounds_at_the_midpoint() -> None:
    rng = np.random.default_rng(0)
    op = REGISTRY.ops["softmax"]
    for _ in range(20):
        lo = rng.normal(size=5) * 2
        u = lo + rng.uniform(0.1, 3, size=5)
        site = Site("s", {"axis": -1}, ((5,),), (True,), (5,))
        box = Interval(torch.tensor(lo)[None], torch.tensor(u)[None])
        assert op.relaxed is not None
        A = torch.cat([torch.eye(5), -torch.eye(5)]).double()[None]
        (c,), bias = op.relaxed.relax(site, None, box).backward(A)
        assert c is not None
        value = (c[0].numpy() * ((lo + u) / 2)).sum(-1) + bias[0].numpy()
        bounds = op.relaxed.interval(site, box)
        for k in range(5):
            low, high, lower, upper = _softmax_facts(lo, u, (lo + u) / 2, k)
            assert value[k] == pytest.approx(lower, rel=1e-9)
            assert -value[5 + k] == pytest.approx(upper, rel=1e-9)
            assert bounds.lower[0, k].item() == pytest.approx(low, rel=1e-9)
            assert bounds.upper[0, k].item() == pytest.approx(high, rel=1e-9)


@pytest.mark.parametrize("op", ["mul", "matmul"])
def test_bilinear_planes_reach_the_interval_over_the_whole_box(op: str) -> None:
    """Minimised over the box, the default plane of one product is the least product itself."""
    torch.manual_seed(0)
    record, shape = REGISTRY.ops[op], (1, 1)
    site = Site(op, {}, (shape, shape), (True, True), shape)
    centre, radius = torch.randn(2, 500, 1, 1).double(), torch.rand(2, 500, 1, 1).double()
    x, y = (Interval(c - r, c + r) for c, r in zip(centre, radius, strict=True))
    assert record.relaxed is not None
    A = torch.tensor([1.0, -1.0]).double().reshape(1, 2, 1, 1).expand(500, -1, -1, -1)
    (a, b), bias = record.relaxed.relax(site, None, x, y).backward(A)
    assert a is not None and b is not None
    least = bias
    for coefficient, c, r in ((a, centre[0], radius[0]), (b, centre[1], radius[1])):
        least = least + (coefficient * c[:, None] - coefficient.abs() * r[:, None]).flatten(2).sum(
            -1
        )
    bounds = record.relaxed.interval(site, x, y)
    torch.testing.assert_close(least[:, 0], bounds.lower.flatten(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(least[:, 1], -bounds.upper.flatten(), rtol=1e-9, atol=1e-9)


def test_matmul_is_the_sum_of_elementwise_products() -> None:
    """With the same mixing, factored planes equal the planes of every single product, added up."""
    torch.manual_seed(1)
    x, y = (
        Interval(c - 0.5, c + 0.7)
        for c in (torch.randn(2, 3, 4).double(), torch.randn(2, 4, 5).double())
    )
    A = torch.randn(2, 3, 3, 5).double()
    whole, single = REGISTRY.ops["matmul"], REGISTRY.ops["mul"]
    assert whole.relaxed is not None and single.relaxed is not None
    site = Site("m", {}, ((3, 4), (4, 5)), (True, True), (3, 5))
    (a, b), bias = whole.relaxed.relax(site, None, x, y).backward(A)
    wide = Site("e", {}, ((3, 4, 1), (1, 4, 5)), (True, True), (3, 4, 5))
    xs, ys = Interval(*(t[..., None] for t in x)), Interval(*(t[:, None] for t in y))
    (c, d), other = single.relaxed.relax(wide, None, xs, ys).backward(
        A[:, :, :, None].expand(-1, -1, -1, 4, -1)
    )
    assert a is not None and b is not None and c is not None and d is not None
    torch.testing.assert_close(a, c[..., 0])
    torch.testing.assert_close(b, d[:, :, 0])
    torch.testing.assert_close(bias, other)


def test_the_largest_element_is_bounded_at_least_as_tightly_as_by_a_constant() -> None:
    """Upper: never above max u on the box. Lower: at the centre no lower than any element."""
    torch.manual_seed(2)
    op, n = REGISTRY.ops["reduce_max"], 6
    centre, radius = torch.randn(300, n).double(), torch.rand(300, n).double()
    site = Site("r", {"axes": (-1,), "keepdims": False}, ((n,),), (True,), ())
    assert op.relaxed is not None
    box = Interval(centre - radius, centre + radius)
    A = torch.tensor([1.0, -1.0]).double().expand(300, -1)
    (c,), bias = op.relaxed.relax(site, None, box).backward(A)
    assert c is not None
    highest = -bias[:, 1] + (-c[:, 1] * centre + c[:, 1].abs() * radius).sum(-1)
    assert (highest <= box.upper.amax(-1) + 1e-9).all()
    at_centre = bias[:, 0] + (c[:, 0] * centre).sum(-1)
    assert (at_centre >= centre.amax(-1) - 1e-9).all()
    upper_at_centre = -bias[:, 1] - (c[:, 1] * centre).sum(-1)
    assert (upper_at_centre < box.upper.amax(-1) - 1e-3).float().mean() > 0.9
