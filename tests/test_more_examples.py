"""The training and smoothing examples run, shortened, and do what their text says."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, request.param, raising=False)
    return importlib.import_module(request.param)


@pytest.mark.parametrize("example", ["train_certified"], indirect=True)
def test_a_plain_loop_trains_what_certifies(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(example, "EPOCHS", 12)
    monkeypatch.setattr(example, "EPS", 0.03)
    example.main()
    clean, certified = map(float, re.findall(r"([\d.]+) %", capsys.readouterr().out))
    assert clean > 85 and 50 < certified <= clean
    body = (EXAMPLES / "train_certified.py").read_text().partition("def main")[2]
    assert len(body.splitlines()) < 40


@pytest.mark.parametrize("example", ["train_lightning_style"], indirect=True)
def test_a_trainer_can_own_the_loop(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(example, "EPOCHS", 4)
    example.main()
    said = capsys.readouterr().out
    assert said.count("robust") >= 3 and float(re.findall(r"([\d.]+) %", said)[-1]) > 60


@pytest.mark.parametrize("example", ["smooth_digits"], indirect=True)
def test_a_denoiser_makes_a_clean_classifier_certifiable(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from certify.report.smoothed import average_radius

    monkeypatch.setattr(example, "EPOCHS", 10)
    monkeypatch.setattr(example, "IMAGES", 20)
    monkeypatch.setattr(example, "VOTES", 1000)
    clean, denoised, robust = map(lambda run: average_radius(run.rows),
                                  example.main(tmp_path / "curve.svg"))
    assert clean < denoised and clean < robust
    assert "denoised" in (tmp_path / "curve.svg").read_text()
