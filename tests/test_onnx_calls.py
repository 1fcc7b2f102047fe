"""Functions and branches of an ONNX model stand in place of their calls; constants vanish."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_agreement import assert_agrees, evaluated
from onnx_models import model, node, saved

from certify import ops
from certify.core.errors import BadInput, LimitExceeded, Refused, Unsupported
from certify.importers.onnx_branches import DEEPEST
from certify.importers.onnx_graph import load_onnx
from certify.importers.onnx_proto import MOST_NODES
from certify.ops.record import REGISTRY


def function(
    name: str, nodes: list[onnx.NodeProto], attributes: tuple[str, ...] = ()
) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("loc", 1)]
    return helper.make_function("loc", name, ["u"], ["v"], nodes, opsets, list(attributes))


def test_local_functions_are_expanded_with_their_attributes(tmp_path: Path) -> None:
    leaky = node("LeakyRelu", ["u"], ["v"])
    leaky.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    inner = function("Inner", [leaky], ("slope",))
    outer = function(
        "Outer", [node("Inner", ["u"], ["t"], domain="loc", slope=0.25), node("Neg", ["t"], ["v"])]
    )
    nodes = [node("Outer", ["x"], ["h"], domain="loc"), node("Outer", ["h"], ["y"], domain="loc")]
    graph = load_onnx(saved(tmp_path, model(nodes, {"x": [1, 3]}, functions=[inner, outer])))
    assert graph.output == "y"
    assert "h" in graph.by_name
    assert_agrees(graph)


def test_functions_that_multiply_are_counted_before_they_are_expanded(tmp_path: Path) -> None:
    levels = [function("F0", [node("Relu", ["u"], ["v"])])]
    for i in range(1, 40):
        levels.append(
            function(
                f"F{i}",
                [
                    node(f"F{i - 1}", ["u"], ["t"], domain="loc"),
                    node(f"F{i - 1}", ["t"], ["v"], domain="loc"),
                ],
            )
        )
    proto = model([node("F39", ["x"], ["y"], domain="loc")], {"x": [1, 3]}, functions=levels)
    with pytest.raises(LimitExceeded, match="nodes"):
        load_onnx(saved(tmp_path, proto))


def test_functions_that_call_each_other_in_a_ring_are_refused(tmp_path: Path) -> None:
    ring = [
        function("A", [node("B", ["u"], ["v"], domain="loc")]),
        function("B", [node("A", ["u"], ["v"], domain="loc")]),
    ]
    proto = model([node("A", ["x"], ["y"], domain="loc")], {"x": [1, 3]}, functions=ring)
    with pytest.raises(Unsupported, match="function"):
        load_onnx(saved(tmp_path, proto))


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("Celu", {"alpha": 0.5}),
        ("Celu", {}),
        ("Gelu", {"approximate": "tanh"}),
        ("HardSwish", {}),
        ("LogSoftmax", {}),
        ("MeanVarianceNormalization", {"axes": [1]}),
        ("Mish", {}),
        ("ReduceL1", {}),
        ("ReduceSumSquare", {"keepdims": 0}),
        ("Relu", {}),
        ("Softmax", {"axis": 1}),
        ("Softplus", {}),
        ("Softsign", {}),
    ],
)
def test_the_bodies_onnx_gives_operators_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: str, attrs: dict[str, object]
) -> None:
    """The way an operator goes that no record claims."""
    ops.load()
    monkeypatch.delitem(REGISTRY.onnx, op, raising=False)
    proto = model([node(op, ["x"], ["y"], **attrs)], {"x": [1, 5]}, opset=20)
    graph = load_onnx(saved(tmp_path, proto))
    written = {"Relu", "ReduceL1", "ReduceSumSquare", "Gelu", "Mish", "HardSwish", "Softsign"}
    assert len(graph.nodes) > 2 or op in written  # known forms become one operator again
    assert_agrees(graph, low=-2, high=2)


# --- branches -------------------------------------------------------------------------------


def branch(nodes: list[onnx.NodeProto], out: str = "o", **weights: object) -> onnx.GraphProto:
    tensors = [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in weights.items()]
    outputs = [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)]
    return helper.make_graph(nodes, "b", [], outputs, tensors)


def choice(condition: str = "c", then: object = None, other: object = None) -> onnx.NodeProto:
    return node(
        "If",
        [condition],
        ["y"],
        then_branch=then or branch([node("Relu", ["x"], ["o"])]),
        else_branch=other or branch([node("Mul", ["x", "k"], ["o"])], k=[2.0, -1.0, 3.0]),
    )


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_constant_condition_leaves_one_branch(
    tmp_path: Path, holds: bool, shape: tuple[int, ...]
) -> None:
    weights = {"c": np.full(shape, holds)}
    graph = load_onnx(saved(tmp_path, model([choice()], {"x": [1, 3]}, weights=weights)))
    assert [n.op for n in graph.nodes] == ["input", "relu" if holds else "mul"]
    assert graph.output == "y"
    assert_agrees(graph)


def test_the_other_branch_may_hold_what_is_not_supported(tmp_path: Path) -> None:
    strange = branch([node("Unique", ["x"], ["o"])])
    for holds in (True, False):
        proto = model([choice(other=strange)], {"x": [1, 3]}, weights={"c": np.array(holds)})
        path = saved(tmp_path, proto)
        if holds:
            assert_agrees(load_onnx(path))
        else:
            with pytest.raises(Unsupported, match="Unique"):
                load_onnx(path)


def test_a_condition_computed_from_constants_and_shapes(tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("ReduceProd", ["s"], ["n"], keepdims=0),
        node("Greater", ["n", "two"], ["g"]),
        node("Less", ["n", "nine"], ["l"]),
        node("And", ["g", "l"], ["c"]),
        choice(),
    ]
    weights = {"two": np.array(2, np.int64), "nine": np.array(9, np.int64)}
    for size, expected in ((3, "relu"), (12, "mul")):
        inner = branch([node("Mul", ["x", "k"], ["o"])], k=np.ones(size) * 2)
        nodes[-1] = choice(other=inner)
        graph = load_onnx(saved(tmp_path, model(nodes, {"x": [1, size]}, weights=weights)))
        assert [n.op for n in graph.nodes] == ["input", expected]
        assert_agrees(graph)


def test_branches_read_what_is_around_them_in_any_order_and_nest(tmp_path: Path) -> None:
    inner = node(
        "If",
        ["d"],
        ["o"],
        then_branch=branch([node("Add", ["h", "x"], ["p"])], "p"),
        else_branch=branch([node("Neg", ["h"], ["p"])], "p"),
    )
    nodes = [choice(then=branch([inner])), node("Relu", ["x"], ["h"])]  # h comes after its reader
    for second in (True, False):
        weights = {"c": np.array(True), "d": np.array(second)}
        proto = model(nodes, {"x": [1, 3]}, weights=weights)
        graph = load_onnx(saved(tmp_path, proto))
        assert {n.op for n in graph.nodes} == {"input", "relu", "add" if second else "neg"}
        x = np.array([[-1.0, 0.5, 2.0]])
        want = np.maximum(x, 0) + x if second else -np.maximum(x, 0)
        np.testing.assert_array_equal(evaluated(graph, x), want)


def test_a_condition_that_depends_on_the_input_is_named(tmp_path: Path) -> None:
    nodes = [node("Cast", ["x"], ["c"], to=TensorProto.BOOL), choice()]
    with pytest.raises(Unsupported, match="If"):
        load_onnx(saved(tmp_path, model(nodes, {"x": [1, 1]})))


@pytest.mark.parametrize(
    ("chosen", "weights", "kind", "words"),
    [
        (None, {"c": np.array([True, True])}, BadInput, "one truth value"),
        (None, {"c": np.array(1.0)}, BadInput, "one truth value"),
        (branch([node("Relu", ["gone"], ["o"])]), {"c": np.array(True)}, BadInput, "gone"),
        (branch([node("Relu", ["x"], ["p"])]), {"c": np.array(True)}, BadInput, "'o'"),
        (branch([node("Relu", ["x"], ["o"])], c=0.0), {"c": np.array(True)}, BadInput, "exists"),
        (branch([node("Relu", ["x"], ["c"])], "c"), {"c": np.array(True)}, BadInput, "exists"),
    ],
)
def test_branches_that_do_not_fit_are_refused(
    tmp_path: Path, chosen: object, weights: dict[str, object], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        load_onnx(saved(tmp_path, model([choice(then=chosen)], {"x": [1, 3]}, weights=weights)))


def test_a_branch_reads_no_other_file(tmp_path: Path) -> None:
    then = branch([node("Mul", ["x", "k"], ["o"])], k=[1.0, 1.0, 1.0])
    tensor = then.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    proto = model([choice(then=then)], {"x": [1, 3]}, weights={"c": np.array(True)})
    with pytest.raises(Refused, match="external"):
        load_onnx(saved(tmp_path, proto))


def test_branches_may_be_nested_but_not_without_end(tmp_path: Path) -> None:
    for deep in (DEEPEST, DEEPEST + 1):
        inner = branch([node("Relu", ["x"], ["o"])])
        for _ in range(deep - 1):
            inner = branch([node("If", ["c"], ["o"], then_branch=inner, else_branch=inner)])
        proto = model([choice(then=inner)], {"x": [1, 3]}, weights={"c": np.array(True)})
        path = saved(tmp_path, proto)
        if deep == DEEPEST:
            assert_agrees(load_onnx(path))
        else:
            with pytest.raises(Unsupported, match="nested more than"):
                load_onnx(path)


def test_nodes_inside_branches_count(tmp_path: Path) -> None:
    many = [node("Relu", ["x" if not i else f"t{i}"], [f"t{i + 1}"]) for i in range(MOST_NODES)]
    then = branch(many, f"t{MOST_NODES}")
    proto = model([choice(then=then)], {"x": [1, 3]}, weights={"c": np.array(True)})
    with pytest.raises(LimitExceeded, match="nodes"):
        load_onnx(saved(tmp_path, proto))


# --- constants ------------------------------------------------------------------------------

_A, _B = np.array([[1.0, 2.0, 3.0]]), np.array([[2.0, 2.0, 2.0]])


@pytest.mark.parametrize("op", ["Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal"])
def test_comparisons_of_constants_choose_elements(tmp_path: Path, op: str) -> None:
    nodes = [
        node(op, ["a", "b"], ["c"]),
        node("Where", ["c", "a", "b"], ["d"]),
        node("Where", ["c", "x", "d"], ["y"]),
    ]
    graph = load_onnx(saved(tmp_path, model(nodes, {"x": [1, 3]}, weights={"a": _A, "b": _B})))
    assert [n.op for n in graph.nodes] == ["input", "where"]
    assert_agrees(graph)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("operand", ["x", "a"])
def test_a_running_sum_takes_its_axis_with_or_without_one_axis(
    tmp_path: Path, axis: int, shape: tuple[int, ...], operand: str
) -> None:
    nodes = [node("CumSum", [operand, "k"], ["s"], reverse=1), node("Add", ["s", "x"], ["y"])]
    weights = {"a": _A, "k": np.full(shape, axis, np.int64)}
    assert_agrees(load_onnx(saved(tmp_path, model(nodes, {"x": [1, 3]}, weights=weights))))


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        (
            [node("Slice", ["a", "s", "e", "k", "s"], ["b"]), node("Add", ["b", "x"], ["y"])],
            {"a": _A, "s": np.array([-1]), "e": np.array([-9]), "k": np.array([1])},
        ),
        ([node("IsInf", ["a"], ["c"]), node("Where", ["c", "a", "x"], ["y"])], {"a": _A}),
        ([node("IsNaN", ["a"], ["c"]), node("Where", ["c", "a", "x"], ["y"])], {"a": _A}),
        (
            [node("EyeLike", ["m"], ["e"], k=1), node("MatMul", ["x", "e"], ["y"])],
            {"m": np.zeros((3, 3))},
        ),
        (
            [
                node("NonZero", ["a"], ["i"]),
                node("Transpose", ["i"], ["j"]),
                node("GatherND", ["x", "j"], ["y"]),
            ],
            {"a": np.array([[1.0, 0.0, -2.0]])},
        ),
        (
            [node("OneHot", ["i", "d", "v"], ["h"]), node("Mul", ["x", "h"], ["y"])],
            {"i": np.array([2]), "d": np.array(3), "v": np.array([0.5, 4.0])},
        ),
    ],
    ids=lambda case: case[0].op_type if isinstance(case, list) else "",
)
def test_more_constants_are_computed(
    tmp_path: Path, nodes: list[onnx.NodeProto], weights: dict[str, object]
) -> None:
    assert_agrees(load_onnx(saved(tmp_path, model(nodes, {"x": [1, 3]}, weights=weights))))


def test_a_one_hot_that_would_explode_is_not_computed(tmp_path: Path) -> None:
    nodes = [node("OneHot", ["i", "d", "v"], ["h"]), node("Mul", ["x", "h"], ["y"])]
    weights = {"i": np.array([2]), "d": np.array(2**40), "v": np.array([0.5, 4.0])}
    with pytest.raises(LimitExceeded):
        load_onnx(saved(tmp_path, model(nodes, {"x": [1, 3]}, weights=weights)))
