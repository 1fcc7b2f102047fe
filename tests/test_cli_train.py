"""``certify train``: killed and gone on with, from training to certify bench, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import certify
from certify.cli.main import main

OPTIONS = ["--data", "digits", "--eps", "0.03", "--method", "ibp", "--epochs", "8", "--warmup", "1",
           "--ramp", "4", "--rate", "2e-3", "--batch", "64", "--limit", "20"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted, with three queries."""
    out = tmp_path_factory.mktemp("train") / "whole"
    assert main(["train", *OPTIONS, "--out", str(out), "--queries", "3", "-q"]) == 0
    return out


def test_a_run_leaves_what_it_says(whole: Path) -> None:
    names = {p.name for p in whole.iterdir()}
    assert names == {"recipe.json", "metrics.jsonl", "last.pt", "best.pt", "weights.pt",
                     "model.onnx", "eval", "queries", "instances.csv"}
    row = json.loads((whole / "eval" / "summary.json").read_text())["rows"][0]
    assert row["images"] == 20 and row["clean"] > 60 and 30 < row["certified"] <= row["attacked"]
    network = certify.load(whole / "model.onnx")
    assert network.input_shapes == ((1, 1, 8, 8),) and network.output_shape == (1, 10)
    weights = certify.load_weights(whole / "weights.pt")
    best = certify.load_weights(whole / "best.pt")
    assert all((weights[name] == best[name]).all() for name in weights)


def test_killed_it_goes_on_to_the_same_weights(whole: Path, tmp_path: Path, root: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "certify", "train", *OPTIONS, "--out", str(out), "-q"]
    threads = str(torch.get_num_threads())
    begun = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(root),
                                           "OMP_NUM_THREADS": threads})
    until = time.monotonic() + 120
    while not (out / "last.pt").exists():
        assert time.monotonic() < until and begun.poll() is None
        time.sleep(0.01)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    done = torch.load(out / "last.pt", weights_only=True)["epoch"]
    assert done < 8 and not (out / "weights.pt").exists()
    assert main(["train", *OPTIONS, "--out", str(out), "--limit", "10"]) == 0
    assert f"{done} of 8 epochs done before, going on" in capsys.readouterr().err
    for name in ("weights.pt", "metrics.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert main(["train", *OPTIONS, "--out", str(out), "--eps", "0.05"]) == 2
    assert "eps was 0.03 and is now 0.05" in capsys.readouterr().err


def test_training_flows_into_bench(whole: Path, tmp_path: Path,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(whole / "instances.csv"), "--out", str(tmp_path / "bench"), "-q",
                 "--timeout", "30"]) == 0
    assert "wrong" in capsys.readouterr().out
    records = [json.loads(line) for line in
               (tmp_path / "bench" / "items.jsonl").read_text().splitlines()]
    found = {int(re.findall(r"image_(\d+)", r["item"]["vnnlib"])[0]): r["result"]["verdict"]
             for r in records}
    lines = [json.loads(line) for line in
             (whole / "eval" / "examples.jsonl").read_text().splitlines()]
    assert sorted(found) == [0, 1, 2]
    for index, verdict in found.items():
        allowed = {"certified": {"unsat"}, "broken": {"sat"}, "misclassified": {"sat"}}
        assert verdict in allowed.get(lines[index]["status"], {"sat", "unsat", "timeout"})


@pytest.mark.parametrize(("change", "code", "words"), [
    ([], 2, "give a CONFIG.toml, or --data and --eps"),
    (["--data", "digits", "--eps", "8"], 2, "write 8/255"),
    (["--data", "digits", "--eps", "0.1", "--method", "best"], 2, "choose one of standard"),
    (["--data", "digits", "--eps", "0.1", "--arch", "vgg"], 4, "there is no architecture 'vgg'"),
    (["--data", "digits", "--eps", "0.1", "--arch", "nowhere:f"], 2, "No module named 'nowhere'"),
    (["--data", "nowhere", "--eps", "0.1"], 4, "no such file or folder"),
    (["--data", "digits", "--eps", "0.1", "--epochs", "3", "--ramp", "5"], 2, "must fit"),
    (["missing.toml"], 4, r"missing\.toml: no such file"),
])
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str],
                   code: int, words: str) -> None:
    assert main(["train", *change, "--out", str(tmp_path / "out")]) == code
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("error: ") and re.search(words, said[0]), said


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    assert main(["train", *OPTIONS, "--out", str(tmp_path)]) == 2
    assert "holds other things" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
