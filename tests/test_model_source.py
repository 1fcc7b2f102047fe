"""A model from an ONNX file, or from weights and the function that builds the module."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch
from torch import nn

from certify.core.errors import BadInput, CertifyError, UsageError
from certify.importers.model_source import ModelSource

FACTORY = """
import torch
from torch import nn

def good():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))

def single():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 1))

def fails():
    raise ValueError("no such depth")

def number():
    return 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the current one, with a module of factories and a checkpoint in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"own_{tmp_path.name}.py").write_text(FACTORY)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "good.pt")
    return tmp_path


def source(folder: Path, function: str, file: str = "good.pt") -> ModelSource:
    return ModelSource(str(folder / file), f"own_{folder.name}:{function}")


def test_weights_and_factory(folder: Path) -> None:
    from certify.bounds.evaluate import evaluate

    found = source(folder, "good")
    module, graph = found.module(), found.graph((1, 2, 2))
    assert not module.training
    x = torch.rand(5, 1, 1, 2, 2)
    assert torch.allclose(evaluate(graph, x)[:, 0], module(x[:, 0]), atol=1e-6)
    assert found.digest() != source(folder, "single").digest()


def test_an_onnx_file(tmp_path: Path) -> None:
    path = tiny_models.absolute_sum(tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="needs no factory"):
        ModelSource(str(path), "a:b")
    found = ModelSource(str(path))
    with pytest.raises(BadInput, match=r"takes inputs of shape .*, the data have \(7,\)"):
        found.graph((7,))
    with pytest.raises(UsageError, match="no torch module"):
        found.module()


@pytest.mark.parametrize(("function", "error", "words"), [
    ("missing", UsageError, "has no attribute 'missing'"),
    ("fails", BadInput, "ValueError: no such depth"),
    ("number", BadInput, "returned a int, not a torch"),
    ("single", BadInput, "do not fit the module.*left over: 3.bias"),
])
def test_bad_factories(folder: Path, function: str, error: type[CertifyError], words: str) -> None:
    with pytest.raises(error, match=words):
        source(folder, function).module()


def test_one_output_is_no_classifier(folder: Path) -> None:
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(4, 1)).state_dict(), folder / "single.pt")
    with pytest.raises(BadInput, match="at least 2"):
        source(folder, "single", "single.pt").graph((1, 2, 2))


def test_nothing_in_a_checkpoint_is_executed(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (folder / "ran",))

    torch.save({"state_dict": Trap()}, folder / "trap.pt")
    with pytest.raises(CertifyError):
        source(folder, "good", "trap.pt").module()
    assert not (folder / "ran").exists()


def test_usage() -> None:
    with pytest.raises(UsageError, match="--factory package.module:function"):
        ModelSource("weights.pt")
    with pytest.raises(UsageError, match="is not package.module:function"):
        ModelSource("weights.pt", "module").module()
    with pytest.raises(UsageError, match="No module named 'nowhere'"):
        ModelSource("weights.pt", "nowhere:f").module()
