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


@pytest.mark.parametrize("example", ["digits_meaning"], indirect=True)
def test_meanings_are_proved_and_drawn(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(example, "COUNT", 8)
    monkeypatch.setattr(example, "RADII", (0.005,))
    example.main()
    assert "consistency" in (tmp_path / "digits_meaning.svg").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("example", ["text_substitution"], indirect=True)
def test_texts_are_certified_and_never_contradicted(example: ModuleType) -> None:
    data = example.corpus(None)
    rows = example.report(data, 2, 3)
    assert [row[0] for row in rows[1:]] == ["1", "2", "3"]
    for row in rows[1:3]:
        assert float(row[2]) <= float(row[3]) <= float(row[1])
