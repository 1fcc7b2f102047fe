"""The README's example runs, its options exist, and the shipped network is what its text says."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import certify
from certify.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "examples" / "digits"
LEVELS = (1, 2, 4)


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.findall(r"```python\n(.*?)```", readme(), re.DOTALL)[0]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("Verdict.HOLDS ")
    assert certify.load_certificate("certificate.json").verdict is certify.Verdict.HOLDS


def test_readme_snippets_run_on_a_module_and_images() -> None:
    """All but the first, which runs by itself, that of the weights file, and what goes on from the
    first."""
    import torch
    from torch import nn

    snippets = re.findall(r"```python\n(.*?)```", readme(), re.DOTALL)[2:4]
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    names = {"certify": certify, "module": module, "images": torch.rand(2, 1, 4, 4),
             "labels": torch.tensor([0, 2])}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    assert [c.guarantee.confidence for c in names["certificates"]] == [0.999] * 2
    assert names["loss"].parts["eps"] == 8 / 255 and module[1].weight.grad is not None


def test_readme_changes_to_the_network_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snippets = re.findall(r"```python\n(.*?)```", readme(), re.DOTALL)
    assert len(snippets) == 5
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for snippet in (snippets[0], snippets[4]):
        code = snippet.replace("examples/", f"{ROOT.as_posix()}/examples/")
        exec(compile(code, "README.md", "exec"), names)
    assert names["turned"].input_shapes == ((1,),)
    assert certify.bound(names["likely"], names["region"]).upper.max() <= 1
    assert len(names["loose"].input_shapes) == 2
    assert (names["rates"] > 0).all() and names["rates"].shape == (1, 10)


@pytest.mark.parametrize("command", ["verify", "bench", "bound", "check", "supports", "smooth",
                                     "eval", "train", "report", "semantic", "weights", "grid",
                                     "features"])
def test_readme_states_the_options_there_are(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = re.search(rf"certify {command} .*?(?=\ncertify|```)", readme(), re.DOTALL)
    assert usage is not None
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    for option in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", usage.group()):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", text), option


def test_readme_starts_with_the_two_commands() -> None:
    assert re.findall(r"^make (\w+)", readme(), re.MULTILINE)[:2] == ["demo", "test"]
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("exec make test")


def test_shipped_network_reads_digits() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    network = DIGITS / "digits.onnx"
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 1, 8, 8)
    scores = np.concatenate([session.run(None, {"image": image})[0] for image in images])
    assert (scores.argmax(1) == labels).mean() > 0.97


def test_shipped_specifications_are_boxes_of_the_stated_radius() -> None:
    rows = list(csv.reader((DIGITS / "instances.csv").read_text().splitlines()))
    assert len(rows) == 10 * len(LEVELS)
    for network, spec, seconds in rows:
        assert (DIGITS / network).is_file()
        assert float(seconds) > 0
        label, level = map(int, re.fullmatch(r"digit(\d)_eps(\d)\.vnnlib", spec).groups())
        (case,) = certify.read_vnnlib(DIGITS / spec).cases
        width = np.asarray(case.box.upper) - np.asarray(case.box.lower)
        assert width.max() == 2 * level / 16
        assert (width >= level / 16).all()
        expected = certify.Spec.classify(label, 10).rows()
        np.testing.assert_array_equal(case.spec.rows().y, expected.y)


@pytest.mark.parametrize(
    ("spec", "verdict"), [("digit0_eps1", "holds"), ("digit0_eps4", "violated")]
)
def test_demo_decides(spec: str, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.delitem(sys.modules, "verify_digits", raising=False)
    import verify_digits

    certificate = verify_digits.decide(DIGITS / "digits.onnx", DIGITS / f"{spec}.vnnlib", 30)
    assert certificate.verdict.value == verdict
    if certificate.counterexample is not None:
        rows = verify_digits.picture(np.asarray(certificate.counterexample.input))
        assert [len(row) for row in rows] == [16] * 8
