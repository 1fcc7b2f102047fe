"""The catalogue of malformed and hostile files, met through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from certify.cli.main import main

FOLDER = Path(os.environ.get("CERTIFY_DATA", ROOT.parent / "shared" / "data")) / "badinputs"
Case = dict[str, Any]
IN_A_PROCESS = (
    "onnx/cycle.onnx",
    "vnnlib/unbalanced_open.vnnlib",
    "ckpt/npy_object.npy",
    "ckpt/pickle_exec.pt",
)


def catalogue() -> list[Case]:
    """Every case; empty, and the tests visibly skipped, without the data."""
    if not FOLDER.is_dir():
        return []
    return list(json.loads((FOLDER / "manifest.json").read_text()))


def name(case: Case) -> str:
    return str(case["file"])


def command(case: Case) -> list[str]:
    """What a user would type to use the file of a case."""
    path = str(FOLDER / case["file"])
    good = {kind: str(FOLDER / f"good.{kind}") for kind in ("onnx", "vnnlib")}
    if case["kind"] == "vnnlib":
        return ["verify", good["onnx"], path, "--timeout", "20"]
    if path.endswith(".npy"):
        return ["bound", good["onnx"], "--input", path, "--eps", "0.1"]
    return ["verify", path, good["vnnlib"], "--timeout", "20"]


def codes(case: Case) -> Sequence[int]:
    return case["exit"] if isinstance(case["exit"], list) else [case["exit"]]


def read_by_the_command(case: Case) -> bool:
    """Weights alone are no model: the command line says so without opening the file."""
    return case["kind"] != "checkpoint" or name(case).endswith(".npy")


def check_error(case: Case, stdout: str, stderr: str) -> None:
    """One line that names the file and the problem, and nothing that acts on a terminal."""
    assert stdout == ""
    assert stderr.endswith("\n")
    line = stderr[:-1]
    assert line.startswith("error: ")
    assert line.isprintable()
    assert len(line) <= 300
    assert Path(case["file"]).name in line
    word = str(case["message_mentions"]) if read_by_the_command(case) else "load_weights"
    assert word.lower() in line.lower()


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A payload that ran would leave its mark in the working directory."""
    monkeypatch.chdir(tmp_path)
    before = set(FOLDER.rglob("*"))
    yield
    assert not list(tmp_path.iterdir())
    assert set(FOLDER.rglob("*")) == before


@pytest.mark.parametrize("case", [c for c in catalogue() if codes(c) == [4]], ids=name)
def test_is_one_line_and_exit_code_4(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.process_time()
    code = main(command(case))
    assert time.process_time() - start < 2
    assert code == 4
    check_error(case, *capsys.readouterr())


@pytest.mark.parametrize("case", [c for c in catalogue() if codes(c) != [4]], ids=name)
def test_odd_but_valid_files_get_a_verdict(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(command(case))
    out, err = capsys.readouterr()
    assert code in codes(case), err
    if code == 4:
        check_error(case, out, err)
        return
    words = {0: ("unsat",), 1: ("sat",), 3: ("unknown", "timeout")}
    assert out.splitlines()[0] in words[code]


@pytest.mark.parametrize("case", [c for c in catalogue() if c["file"] in IN_A_PROCESS], ids=name)
def test_the_same_in_a_process_of_its_own(case: Case, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "certify", *command(case)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 4
    check_error(case, done.stdout, done.stderr)


def test_the_catalogue_is_there() -> None:
    if not FOLDER.is_dir():
        pytest.skip(f"no data folder: set CERTIFY_DATA (looked at {FOLDER})")
    assert len(catalogue()) > 100
    assert {c["file"] for c in catalogue()} >= set(IN_A_PROCESS)
