"""The commands about transformations and weights, and the new options of ``certify bound``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from certify.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
MODEL = str(ROOT / "examples" / "digits" / "digits.onnx")
SEMANTIC = ["semantic", MODEL, "--data", "digits", "--limit", "5", "-q"]


def test_ranges_are_written_drawn_and_resumed(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    command = [*SEMANTIC, "--transform", "rotate=-1:1/0.25", "--method", "auto", "--attack",
               "13", "--out", str(out), "--certificates"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert "rotate -1 to 1" in first
    rows = [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]
    assert [r["index"] for r in rows] == list(range(5))
    for row in rows:
        proved, possible = row["certified_range"], row["attacked_range"]
        if proved is not None:
            assert possible[0] <= proved[0] <= 0 <= proved[1] <= possible[1]
    assert (out / "ranges.svg").read_text().startswith("<svg")
    before = (out / "items.jsonl").read_bytes()
    assert main(command) == 0  # nothing is left to do
    assert (out / "items.jsonl").read_bytes() == before
    assert capsys.readouterr().out == first
    certified = next(r["index"] for r in rows if r["verdict"] == "certified")
    path = str(out / "certificates" / f"image_{certified}.json")
    assert main(["check", path]) == 0
    assert main(["check", path, "--model", MODEL]) == 0


def test_several_transformations_and_linear_bounds(capsys) -> None:
    assert main([*SEMANTIC, "--transform", "contrast=0.95:1.05/0.1,brightness=-0.02:0.02/0.04",
                 "--attack", "4"]) == 0
    said = capsys.readouterr().out
    assert "contrast 0.95 to 1.05, brightness -0.02 to 0.02" in said
    assert "certified" in said


@pytest.mark.parametrize(("given", "code", "said"), [
    (["--transform", "twist=0:1"], 2, "no transformation 'twist'"),
    (["--transform", "rotate"], 2, "NAME=LOW:HIGH"),
    (["--transform", "rotate=5:1"], 2, "no range"),
    (["--transform", "brightness=0:1,rotate=0:1"], 2, "geometric"),
    (["--transform", "hue=0:1"], 4, "3 channels"),
    (["--transform", "rotate=0:1/0.000000001"], 2, "too many"),
    (["--transform", "brightness=0:1", "--method", "intervals"], 2, "geometric"),
    (["--transform", "rotate=0:1", "--certificates"], 2, "--out"),
])
def test_wrong_questions_are_refused(given: list[str], code: int, said: str, capsys) -> None:
    assert main([*SEMANTIC, *given]) == code
    assert said in capsys.readouterr().err


def test_rounded_weights(tmp_path: Path, capsys) -> None:
    out = tmp_path / "weights.jsonl"
    assert main(["weights", MODEL, "--data", "digits", "--bits", "12,3", "--limit", "6", "-q",
                 "--out", str(out)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[0] == "bits"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 12
    assert sum(r["certified"] for r in rows if r["bits"] == 12) >= 5
    assert not any(r["certified"] for r in rows if r["bits"] == 3)
    assert main(["weights", MODEL, "--data", "digits", "--bits", "1"]) == 2


def test_bounds_of_functions_of_the_output_and_of_gradients(tmp_path: Path, capsys) -> None:
    x = tmp_path / "x.npy"
    np.save(x, np.full((1, 1, 8, 8), 0.5, np.float32))
    common = ["bound", MODEL, "--input", str(x), "--eps", "0.001", "-q", "--json"]
    assert main([*common, "--output", "softmax"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = found["rows"] if "rows" in found else found["bounds"]
    assert len(rows) == 10
    distances = "/".join(str(i) for i in range(10))
    assert main([*common, "--output", f"distance:distances={distances}"]) == 0
    capsys.readouterr()
    assert main([*common, "--output", "nonsense"]) == 4
    assert "choose from" in capsys.readouterr().err
    assert main([*common, "--output", "distance:distances=a"]) == 2
    assert main([*common, "--gradient", "--method", "ibp"]) == 0
