"""The ONNX importer: what it builds agrees with ONNX Runtime, and what it folds is exact."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx_agreement import RNG, assert_agrees, evaluated
from onnx_models import gemm, model, node, saved

from certify.core.errors import BadInput, CertifyError, LimitExceeded, Unsupported
from certify.importers.onnx_graph import load_onnx
from certify.importers.onnx_runtime import Runtime


def one_per_kind(data: Path) -> list[Path]:
    """One competition network per family and list of operators."""
    folder = data / "vnncomp_public"
    with open(folder / "instances.csv", newline="") as rows:
        paths = sorted({(row["family"], row["onnx"]) for row in csv.DictReader(rows)})
    found: dict[object, Path] = {}
    for family, name in paths:
        raw = (folder / name).read_bytes()
        proto = onnx.load_from_string(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
        kind = (family, frozenset(n.op_type for n in proto.graph.node))
        found.setdefault(kind, folder / name)
    return list(found.values())


@pytest.mark.slow
def test_competition_networks_agree_with_onnxruntime(data: Path) -> None:
    paths = one_per_kind(data)
    assert len(paths) > 35
    wrong: list[str] = []
    for path in paths:
        try:
            assert_agrees(load_onnx(path), low=0.1, points=2)
        except (AssertionError, CertifyError) as problem:
            wrong.append(f"{path.name}: {' '.join(str(problem).split())[:200]}")
    assert not wrong, "\n".join(wrong)


# --- shape and naming -----------------------------------------------------------------------


@pytest.mark.parametrize("first", ["N", None, 0, -1, 1])
def test_an_open_batch_axis_becomes_one(tmp_path: Path, first: int | str | None) -> None:
    graph = load_onnx(saved(tmp_path, model([gemm()], {"x": [first, 2]}, weights={"w": np.eye(2)})))
    assert graph.input_shapes == ((1, 2),)
    assert graph.source["symbolic"] is (first != 1)


def test_a_fixed_first_axis_is_kept(tmp_path: Path) -> None:
    graph = load_onnx(saved(tmp_path, model([gemm()], {"x": [3, 2]}, weights={"w": np.eye(2)})))
    assert graph.input_shapes == ((3, 2),)
    assert_agrees(graph)


def test_nodes_are_called_like_the_tensors(tmp_path: Path) -> None:
    nodes = [node("Gemm", ["x", "w"], ["h"], alpha=2.0), node("Relu", ["h"], ["r"]),
             node("Identity", ["r"], ["i"]), node("Softmax", ["i"], ["y"])]
    graph = load_onnx(saved(tmp_path, model(nodes, {"x": [1, 2]}, weights={"w": np.eye(2)})))
    assert {"x", "h", "r"} < {n.name for n in graph.nodes}
    assert graph.output == "y"
    assert graph.node("r").where == "node 'r' (Relu)"
    assert_agrees(graph)


def test_control_characters_in_names_do_not_survive(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x\x1b[31m"], ["y\nerror: forged"])]
    graph = load_onnx(saved(tmp_path, model(nodes, {"x\x1b[31m": [1, 2]}, ["y\nerror: forged"])))
    assert all(n.name.isprintable() and n.where.isprintable() for n in graph.nodes)
    assert_agrees(graph)


def test_several_inputs_and_outputs_are_joined_in_order(tmp_path: Path) -> None:
    nodes = [node("Add", ["a", "b"], ["s"]), node("Transpose", ["a"], ["t"], perm=[1, 0])]
    proto = model(nodes, {"a": [2, 3], "b": [1, 3]}, ["t", "s"])
    graph = load_onnx(saved(tmp_path, proto))
    assert graph.output_shape == (12,)
    x = np.arange(9, dtype=np.float32)[None]
    a, b = x[0, :6].reshape(2, 3), x[0, 6:]
    want = np.concatenate([a.T.ravel(), (a + b).ravel()])
    np.testing.assert_array_equal(evaluated(graph, x)[0], want)
    np.testing.assert_array_equal(Runtime(graph).run(x[0]), want)


def test_inputs_with_an_initializer_are_constants(tmp_path: Path) -> None:
    proto = model([gemm()], {"x": [1, 2], "w": [2, 2]}, weights={"w": np.eye(2)})
    graph = load_onnx(saved(tmp_path, proto))
    assert [n.name for n in graph.inputs] == ["x"]
    assert_agrees(graph)


def test_nodes_out_of_order_are_sorted(tmp_path: Path) -> None:
    nodes = [node("Relu", ["h"], ["y"]), node("Gemm", ["x", "w"], ["h"])]
    proto = model(nodes, {"x": [1, 2]}, weights={"w": -np.eye(2)})
    np.testing.assert_array_equal(
        evaluated(load_onnx(saved(tmp_path, proto)), np.array([[1.0, -2.0]])), [[0.0, 2.0]]
    )


def test_gzip_is_read_and_the_hash_is_of_the_content(tmp_path: Path) -> None:
    plain = saved(tmp_path, model([gemm()], {"x": [1, 2]}, weights={"w": np.eye(2)}))
    packed = tmp_path / "model.onnx.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert load_onnx(packed).source["sha256"] == load_onnx(plain).source["sha256"]
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(BadInput, match="gzip"):
        load_onnx(packed)


# --- folding --------------------------------------------------------------------------------


def test_shape_arithmetic_vanishes(tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n", "axes"], ["n1"]), node("Concat", ["n1", "rest"], ["to"], axis=0),
        node("Reshape", ["x", "to"], ["y"]),
    ]
    weights = {"zero": np.int64(0), "axes": np.array([0]), "rest": np.array([-1])}
    graph = load_onnx(saved(tmp_path, model(nodes, {"x": ["N", 2, 3]}, weights=weights)))
    assert [n.op for n in graph.nodes] == ["input", "reshape"]
    assert graph.output_shape == (1, 6)


def test_constants_are_folded_in_double_and_jumps_as_at_run_time(tmp_path: Path) -> None:
    third, seven = np.float32(1 / 3), np.float32(0.7)
    nodes = [
        node("Mul", ["third", "third"], ["exact"]), node("Mul", ["seven", "ten"], ["about"]),
        node("Floor", ["about"], ["jump"]), node("Mul", ["x", "exact"], ["a"]),
        node("Add", ["a", "jump"], ["y"]),
    ]
    weights = {"third": third, "seven": seven, "ten": np.float32(10)}
    graph = load_onnx(saved(tmp_path, model(nodes, {"x": [1, 1]}, weights=weights)))
    got = evaluated(graph, np.array([[1.0], [0.0]]))[:, 0]
    assert got[1] == np.floor(seven * np.float32(10)) == 7  # floor(0.7f * 10) is 6 in float64
    assert got[0] - got[1] == pytest.approx(np.float64(third) ** 2, rel=1e-15)


def test_casts_between_floats_pass_and_round_only_constants(tmp_path: Path) -> None:
    nodes = [
        node("Cast", ["d"], ["f"], to=TensorProto.FLOAT), node("Mul", ["x", "f"], ["m"]),
        node("Cast", ["m"], ["w"], to=TensorProto.DOUBLE),
        node("Cast", ["w"], ["y"], to=TensorProto.FLOAT),
    ]
    proto = model(nodes, {"x": [1, 1]})
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.1), "d"))
    graph = load_onnx(saved(tmp_path, proto))
    assert [n.op for n in graph.nodes] == ["input", "mul"]
    assert evaluated(graph, np.ones((1, 1)))[0, 0] == np.float64(np.float32(0.1))


@pytest.mark.parametrize(
    ("nodes", "weights", "word"),
    [
        ([node("Div", ["one", "zero"], ["c"])], {"one": np.ones(2), "zero": np.zeros(2)}, "zero"),
        ([node("Log", ["zero"], ["c"])], {"zero": np.zeros(2)}, "zero"),
        ([node("Sqrt", ["neg"], ["c"])], {"neg": -np.ones(2)}, "neg"),
        ([node("Exp", ["big"], ["c"])], {"big": np.full(2, 100.0)}, "big"),
        ([node("Add", ["up", "dn"], ["c"])],
         {"up": np.full(2, np.inf), "dn": np.full(2, -np.inf)}, "up"),
    ],
)
def test_a_constant_that_is_not_finite_names_its_operands(
    tmp_path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], word: str
) -> None:
    proto = model([*nodes, node("Add", ["x", "c"], ["y"])], {"x": [1, 2]}, weights=weights)
    with pytest.raises(BadInput, match=f"'{word}'"):
        load_onnx(saved(tmp_path, proto))


def test_an_infinite_bound_of_clip_is_allowed(tmp_path: Path) -> None:
    nodes = [node("Clip", ["x", "low", "high"], ["y"])]
    weights = {"low": np.array(0.0), "high": np.array(np.inf)}
    assert_agrees(load_onnx(saved(tmp_path, model(nodes, {"x": [1, 3]}, weights=weights))))


@pytest.mark.parametrize(
    "nodes",
    [
        [node("ConstantOfShape", ["n"], ["c"])],
        [node("Expand", ["one", "n"], ["c"])],
        [node("Tile", ["one", "n"], ["c"])],
        [node("Range", ["zero", "far", "tiny"], ["c"])],
        [node("Reshape", ["line", "up"], ["a"]), node("Mul", ["a", "line"], ["c"])],
    ],
    ids=lambda nodes: nodes[-1].op_type,
)
def test_constants_that_would_explode_are_not_computed(
    tmp_path: Path, nodes: list[onnx.NodeProto]
) -> None:
    weights = {
        "n": np.array([2**14, 2**14]), "one": np.ones((1, 1)), "zero": np.array(0.0),
        "far": np.array(1e30), "tiny": np.array(1e-3),
        "line": np.ones(2**13), "up": np.array([-1, 1]),
    }
    proto = model([*nodes, node("Add", ["x", "c"], ["y"])], {"x": [1, 1]}, weights=weights)
    with pytest.raises(LimitExceeded):
        load_onnx(saved(tmp_path, proto))


# --- refusals -------------------------------------------------------------------------------


def test_all_unsupported_operators_are_named_at_once(tmp_path: Path) -> None:
    nodes = [node("Foo", ["x"], ["a"]), node("Relu", ["a"], ["b"]), node("Bar", ["b"], ["c"]),
             node("Foo", ["c"], ["d"]), node("Shape", ["d"], ["s"]),
             node("Reshape", ["c", "s"], ["y"])]
    with pytest.raises(Unsupported) as caught:
        load_onnx(saved(tmp_path, model(nodes, {"x": [1, 2]})))
    message = str(caught.value)
    assert "Foo (node 'a' on [1, 2] and 1 more), Bar (node 'c')" in message
    assert "certify supports" in message
    assert "Relu" not in message and "Shape" not in message


def test_a_hundred_unsupported_operators_still_fit_on_a_line(tmp_path: Path) -> None:
    nodes = [node(f"Strange{i}", ["x"], [f"y{i}"]) for i in range(100)]
    with pytest.raises(Unsupported, match=r"and \d+ more; see `certify supports") as caught:
        load_onnx(saved(tmp_path, model(nodes, {"x": [1, 2]}, ["y0"]), "m" * 200 + ".onnx"))
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    ("op", "attrs", "kind"),
    [
        ("Relu", {"alpha": 1.0}, BadInput),  # no such attribute
        ("LeakyRelu", {"alpha": "a"}, BadInput),  # of another type
        ("LeakyRelu", {"alpha": float("inf")}, BadInput),
        ("Frobnicate", {}, Unsupported),
    ],
)
def test_attributes_are_held_against_the_schema(
    tmp_path: Path, op: str, attrs: dict[str, object], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        load_onnx(saved(tmp_path, model([node(op, ["x"], ["y"], **attrs)], {"x": [1, 2]})))


def test_missing_and_surplus_operands_are_refused(tmp_path: Path) -> None:
    for inputs in (["x"], ["x", "x", "x", "x"]):
        with pytest.raises(BadInput, match="inputs do not fit"):
            load_onnx(saved(tmp_path, model([node("Gemm", inputs, ["y"])], {"x": [1, 2]})))


def test_two_models_in_one_file_are_refused(tmp_path: Path) -> None:
    """Protobuf would merge them into a network that neither author wrote."""
    first = model([gemm()], {"x": [1, 2]}, weights={"w": np.eye(2)}).SerializeToString()
    second = onnx.ModelProto(graph=onnx.GraphProto(name="h")).SerializeToString()
    (tmp_path / "two.onnx").write_bytes(first + second)
    with pytest.raises(BadInput, match="more than one graph"):
        load_onnx(tmp_path / "two.onnx")


def test_data_outside_the_format_is_refused(tmp_path: Path) -> None:
    raw = model([gemm()], {"x": [1, 2]}, weights={"w": np.eye(2)}).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(raw + b"\xfa\x7f\x03abc")  # field 2047
    with pytest.raises(BadInput, match="not part of the ONNX format"):
        load_onnx(tmp_path / "m.onnx")


def test_the_output_must_depend_on_the_input(tmp_path: Path) -> None:
    proto = model([node("Relu", ["w"], ["y"])], {"x": [1, 2]}, weights={"w": np.eye(2)})
    with pytest.raises(BadInput, match="does not depend"):
        load_onnx(saved(tmp_path, proto))


def test_a_long_chain_is_read_quickly_and_without_recursion(tmp_path: Path) -> None:
    nodes = [node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(5000)]
    graph = load_onnx(saved(tmp_path, model(nodes, {"t0": [1, 2]}, ["t5000"])))
    assert len(graph.nodes) == 5001


def test_damaged_files_only_ever_raise_our_own_errors(tmp_path: Path) -> None:
    nodes = [node("Gemm", ["x", "w"], ["h"], alpha=2.0), node("Shape", ["h"], ["s"]),
             node("Reshape", ["h", "s"], ["r"]), node("Div", ["r", "c"], ["y"])]
    weights = {"w": np.eye(3), "c": np.ones(3)}
    good = model(nodes, {"x": ["N", 3]}, weights=weights).SerializeToString()
    rng = np.random.default_rng(1)
    rejected = 0
    for _ in range(600):
        raw = bytearray(good)
        for at in rng.integers(0, len(raw), rng.integers(1, 4)):
            raw[at] = rng.integers(0, 256)
        (tmp_path / "m.onnx").write_bytes(raw)
        try:
            load_onnx(tmp_path / "m.onnx")
        except CertifyError as problem:
            rejected += 1
            assert str(problem).isprintable() and len(str(problem)) <= 300
    assert rejected > 200


# --- runtime --------------------------------------------------------------------------------


def test_batches_agree_with_single_runs_even_when_rows_mix(tmp_path: Path) -> None:
    """A symbolic first axis promises nothing: here every row sees the mean over the batch."""
    nodes = [node("ReduceMean", ["x"], ["m"], axes=[0]), node("Sub", ["x", "m"], ["d"]),
             node("Add", ["d", "b"], ["y"])]
    graph = load_onnx(saved(tmp_path, model(nodes, {"x": ["N", 2]}, weights={"b": np.ones(2)})))
    x = RNG.uniform(-1, 1, (5, 2)).astype(np.float32)
    np.testing.assert_array_equal(Runtime(graph).run_batch(x), np.ones((5, 2)))


def test_the_runtime_refuses_the_wrong_number_of_values(tmp_path: Path) -> None:
    runtime = Runtime(saved(tmp_path, model([gemm()], {"x": [1, 2]}, weights={"w": np.eye(2)})))
    with pytest.raises(BadInput, match="3 values"):
        runtime.run(np.zeros(3))


def test_optimised_and_plain_runs_agree(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "b"], ["a"]),
             node("Relu", ["a"], ["y"])]
    weights = {"w": RNG.normal(size=(4, 3)), "b": RNG.normal(size=3)}
    path = saved(tmp_path, model(nodes, {"x": [1, 4]}, weights=weights))
    x = RNG.normal(size=4).astype(np.float32)
    fast, plain = Runtime(path).run(x), Runtime(path, optimise=False).run(x)
    np.testing.assert_allclose(fast, plain, rtol=1e-5)
