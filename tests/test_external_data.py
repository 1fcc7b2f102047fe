"""External tensor data comes from plain files in the model's own folder, or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import gemm, model

from certify.core.errors import BadInput, Refused
from certify.importers.onnx_graph import load_onnx
from certify.importers.onnx_runtime import Runtime

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


def external(folder: Path, **entries: str) -> Path:
    """A Gemm whose weight is stored outside, as ``entries`` say."""
    proto = model([gemm()], {"x": [1, 2]}, weights={"w": WEIGHT})
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "w.bin"
    path.write_bytes(b"head" + WEIGHT.tobytes())
    return path


def test_a_plain_file_is_read_hashed_and_embedded(tmp_path: Path, weights: Path) -> None:
    graph = load_onnx(external(tmp_path, location="w.bin", offset="4", length="24"))
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert graph.source["external"] == {"w.bin": digest}
    weights.unlink()  # the runtime must not need it any more
    x = np.array([1.0, -2.0], np.float32)
    np.testing.assert_array_equal(Runtime(graph).run(x), x @ WEIGHT)


def test_a_folder_below_is_fine(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(WEIGHT.tobytes())
    graph = load_onnx(external(tmp_path, location="sub/w.bin"))
    assert list(graph.source["external"]) == ["sub/w.bin"]


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ({"offset": "5", "length": "24"}, "offset"),
        ({"offset": "-4", "length": "24"}, "offset"),
        ({"offset": "99999999999999999999", "length": "24"}, "offset"),
        ({"offset": "four", "length": "24"}, "offset"),
        ({"offset": "4", "length": "20"}, "length"),
        ({"offset": "0"}, "length"),
        ({"offset": "4", "length": "24", "pages": "1"}, "location"),
    ],
)
def test_offset_and_length_must_fit_exactly(
    tmp_path: Path, weights: Path, entries: dict[str, str], word: str
) -> None:
    with pytest.raises(BadInput, match=word):
        load_onnx(external(tmp_path, location="w.bin", **entries))


def test_a_symbolic_link_is_refused(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "link.bin").symlink_to(weights)
    with pytest.raises(Refused, match=r"external.*link\.bin.*symbolic link"):
        load_onnx(external(tmp_path, location="link.bin", offset="4"))


def test_a_hard_link_is_refused(tmp_path: Path, weights: Path) -> None:
    os.link(weights, tmp_path / "hard.bin")
    with pytest.raises(Refused, match=r"external.*hard\.bin.*hard link"):
        load_onnx(external(tmp_path, location="hard.bin", offset="4"))


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.bin")
    with pytest.raises(Refused, match=r"external.*pipe\.bin.*named pipe"):
        load_onnx(external(tmp_path, location="pipe.bin"))


def test_a_linked_folder_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "w.bin").write_bytes(WEIGHT.tobytes())
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "linked").symlink_to(outside)
    with pytest.raises(Refused, match="external.*link"):
        load_onnx(external(inside, location="linked/w.bin"))


@pytest.mark.parametrize(
    "location", ["{}/w.bin", "../w.bin", "./w.bin", "a//w.bin", "", "..\\w.bin"]
)
def test_a_path_that_leaves_the_folder_is_refused(
    tmp_path: Path, weights: Path, location: str
) -> None:
    with pytest.raises(Refused, match="external"):
        load_onnx(external(tmp_path, location=location.format(tmp_path), offset="4"))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gone\.bin.*no such file"):
        load_onnx(external(tmp_path, location="gone.bin"))
    (tmp_path / "folder.bin").mkdir()
    with pytest.raises(Refused, match=r"external.*folder\.bin"):
        load_onnx(external(tmp_path, location="folder.bin"))


def test_an_attribute_may_not_refer_outside(tmp_path: Path, weights: Path) -> None:
    proto = model([onnx.helper.make_node("Constant", [], ["w"]), gemm()], {"x": [1, 2]})
    attribute = proto.graph.node[0].attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.CopyFrom(onnx.TensorProto(data_type=1, dims=[2, 3], data_location=1))
    attribute.t.external_data.add(key="location", value="w.bin")
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(Refused, match="external"):
        load_onnx(tmp_path / "model.onnx")
