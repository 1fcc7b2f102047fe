"""Every malformed or hostile ONNX file and checkpoint of the catalogue is turned away correctly."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path

import pytest
from conftest import ROOT

from certify.core.errors import BadInput, CertifyError, LimitExceeded, Refused, Unsupported
from certify.importers.checkpoints import load_weights
from certify.importers.onnx_graph import load_onnx

FOLDER = Path(os.environ.get("CERTIFY_DATA", ROOT.parent / "shared" / "data")) / "badinputs"
LOADERS = {"onnx": load_onnx, "checkpoint": load_weights}
CLASSES = {
    "malformed": (BadInput, Unsupported),  # what is broken may also be called unreadable
    "nonfinite": (BadInput,),
    "missing": (BadInput,),
    "limit": (LimitExceeded,),
    "refused": (Refused,),
    "unsupported": (Unsupported,),
}


def catalogue() -> list[dict[str, object]]:
    """Cases this level decides; empty, and the tests visibly skipped, without the data."""
    if not FOLDER.is_dir():
        return []
    return [c for c in json.loads((FOLDER / "manifest.json").read_text()) if c["kind"] in LOADERS]


def name(case: dict[str, object]) -> str:
    return str(case["file"])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A payload that ran would leave its mark in the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("case", [c for c in catalogue() if c["expect"] != "accept"], ids=name)
def test_is_turned_away_in_one_line(case: dict[str, object], tmp_path: Path) -> None:
    path = FOLDER / str(case["file"])
    before = {f for f in FOLDER.rglob("*")}
    start = time.process_time()
    with pytest.raises(CertifyError) as caught:
        LOADERS[str(case["kind"])](path)
    assert time.process_time() - start < 2
    message = str(caught.value)
    assert isinstance(caught.value, CLASSES[str(case["expect"])]), type(caught.value)
    assert caught.value.exit_code == case["exit"] == 4
    assert str(case["message_mentions"]) in message
    assert path.name in message
    assert message.isprintable() and len(message) <= 300
    assert not list(tmp_path.rglob("CANARY*"))
    assert {f for f in FOLDER.rglob("*")} == before


@pytest.mark.parametrize("case", [c for c in catalogue() if c["expect"] == "accept"], ids=name)
def test_controls_are_accepted(case: dict[str, object]) -> None:
    graph = load_onnx(FOLDER / str(case["file"]))
    assert graph.input_shapes == ((1, 4),)
    assert graph.output_shape == (1, 3)


def test_the_whole_catalogue_fits_into_a_gibibyte() -> None:
    """Run after the others in this process: its peak covers them all."""
    if not FOLDER.is_dir():
        pytest.skip(f"no data folder: set CERTIFY_DATA (looked at {FOLDER})")
    for case in catalogue():
        if case["expect"] == "limit":
            with pytest.raises(LimitExceeded):
                LOADERS[str(case["kind"])](FOLDER / str(case["file"]))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2**20  # KiB
