"""``certify eval``: files, resuming, shards, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import own_factories
import pytest
import torch

import certify
from certify.cli.main import main
from certify.evaluation import judge

EPS = "0.01,1/20"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights, images and labels that the network mostly gets right."""
    folder = tmp_path_factory.mktemp("eval")
    torch.manual_seed(0)
    model = own_factories.plain()
    torch.save(model.state_dict(), folder / "net.pt")
    x = torch.rand(230, 1, 2, 2)
    with torch.no_grad():
        y = model(x).argmax(1).numpy()
    y[:5] = (y[:5] + 1) % 3
    np.savez(folder / "data.npz", x=x.numpy(), y=y)
    return folder


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.chdir(root / "tests")  # where the factories are found


def call(place: Path, *more: str, factory: str = "own_factories:plain") -> int:
    return main(["eval", str(place / "net.pt"), "--factory", factory, "--data",
                 str(place / "data.npz"), "--eps", EPS, "--verifier", "crown", *more])


def test_everything_is_written_and_equals_the_python_answer(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(place, "--out", str(out)) == 0
    printed = capsys.readouterr()
    assert "certified" in printed.out and "propagation tightness 0." in printed.out
    lines = [json.loads(line) for line in (out / "examples.jsonl").read_text().splitlines()]
    assert len(lines) == 460 and [e["index"] for e in lines[:230]] == list(range(230))
    summary = json.loads((out / "summary.json").read_text())
    data = np.load(place / "data.npz")
    module = own_factories.plain()
    module.load_state_dict(torch.load(place / "net.pt"))
    graph = certify.from_torch(module, torch.zeros(1, 1, 2, 2))
    for row in summary["rows"]:
        found = certify.evaluate(graph, data["x"], data["y"], row["eps"], verifier="crown",
                                 attack="none")
        assert (row["clean"], row["certified"]) == (found.clean, found.certified)
        assert row["clean"] < 100 and 0 < row["certified"] <= row["attacked"] <= row["clean"]
    picture = (out / "accuracy.svg").read_text()
    assert picture.startswith("<svg") and picture.count("<title>") == 8
    assert summary["finished"] and summary["failed_blocks"] == 0


def test_shards_and_a_second_run_give_the_same_lines(place: Path, tmp_path: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    quick = ["--attack", "quick", "--out"]
    assert call(place, *quick, str(whole), "--workers", "2") == 0
    assert call(place, *quick, str(parts), "--shard", "2/2") == 0
    assert "3 of 6 blocks finished" in capsys.readouterr().out
    assert call(place, *quick, str(parts), "--shard", "1/2") == 0
    lines = (whole / "examples.jsonl").read_text()
    assert (parts / "examples.jsonl").read_text() == lines
    cut = (whole / "items.jsonl").read_bytes().splitlines(keepends=True)
    (whole / "items.jsonl").write_bytes(b"".join(cut[:3]) + cut[3][:50])  # torn by a kill
    assert call(place, *quick, str(whole)) == 0
    assert "3 of 6 done before, going on" in capsys.readouterr().err
    assert (whole / "examples.jsonl").read_text() == lines
    assert call(place, *quick, str(whole), "--norm", "2") == 2
    assert "norm was \"inf\" and is now \"2\"" in capsys.readouterr().err


def test_a_contradiction_stops_the_run(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(judge, "decide", judge.decide)  # the factory's lie ends with this test
    out = tmp_path / "out"
    again = ["--out", str(out), "--eps", "1/2", "--limit", "30"]
    assert call(place, *again, factory="own_factories:lying") == 5
    said = capsys.readouterr().err
    assert "error: example" in said and "is certified within 0.5 by crown, and pgd broke" in said
    assert not (out / "summary.json").exists()
    assert call(place, *again, factory="own_factories:lying") == 5  # and stays stopped


@pytest.mark.parametrize(("change", "code", "words"), [
    (["--eps", "-1"], 2, "negative"),
    (["--eps", "0.1,0.1"], 2, "names a radius twice"),
    (["--shard", "1/2"], 2, "--shard needs --out"),
    (["--data", "nowhere.npz"], 4, "no such file"),
    (["--data", "digits"], 4, "does not fit|takes inputs|failed|cannot"),
    (["--factory", "own_factories:none"], 2, "has no attribute 'none'"),
    (["--limit", "0"], 2, "whole number"),
    (["--verifier", "best"], 2, "invalid choice"),
])
def test_bad_input(place: Path, capsys: pytest.CaptureFixture[str], change: list[str], code: int,
                   words: str) -> None:
    import re

    assert call(place, *change) == code
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("error: ") and re.search(words, said[0]), said


def test_onnx_and_builtin_digits_without_a_folder(root: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    net = root / "examples" / "digits" / "digits.onnx"
    assert main(["eval", str(net), "--data", "digits", "--eps", "1/16", "--limit", "10",
                 "--verifier", "crown", "--attack", "quick", "-q"]) == 0
    printed = capsys.readouterr()
    assert "0.0625      10" in printed.out and printed.err == ""
    assert main(["eval", "weights.pt", "--data", "digits", "--eps", "1/16"]) == 2
    assert "--factory package.module:function" in capsys.readouterr().err
