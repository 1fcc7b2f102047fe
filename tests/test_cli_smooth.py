"""``certify smooth`` and ``certify report``: results, resuming, shards, published logs, bad
input."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from certify.cli.main import main
from certify.core.errors import BadInput
from certify.report.cohen import as_tsv, doubts, read_tsv
from certify.report.curve import curve
from certify.report.smoothed import (
    Row,
    Run,
    as_text,
    average_radius,
    certified_accuracy,
    class_shares,
    envelope,
)
from certify.smoothing.confidence import clopper_pearson
from certify.smoothing.radii import gaussian_l2

ROOT = Path(__file__).resolve().parent.parent
MODEL = str(ROOT / "examples" / "digits" / "digits.onnx")
QUICK = ["smooth", MODEL, "--data", "digits", "--sigma", "0.1", "--n", "400", "--n0", "20"]


def lines(folder: Path) -> dict[str, dict]:
    found = {}
    for file in folder.glob("items*.jsonl"):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            found[record["key"]] = {k: v for k, v in record["result"].items() if k != "seconds"}
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert main([*QUICK, "--limit", "8", "--out", str(folder), "-q", "--certificates"]) == 0
    for name in ("summary.md", "curve.svg", "radii.tsv"):
        assert (folder / name).stat().st_size > 100
    for file in sorted((folder / "certificates").iterdir())[:2]:
        assert main(["check", str(file), "-q"]) == 0
    return lines(folder)


def test_a_line_holds_what_finds_the_radius_again(whole: dict[str, dict]) -> None:
    from certify.core.votes import Votes
    from certify.smoothing.noise import Gaussian
    from certify.smoothing.rules import apply

    assert len(whole) == 8
    for found in whole.values():
        counts = {k: np.array(v, np.int64) for k, v in found["counts"].items()}
        votes = Votes(found["rule"], found["alpha"], found["norm"], {}, counts)
        again = apply(votes, Gaussian(0.1), found["size"])
        assert (again.label, again.radius) == (found["predict"], found["radius"])


@pytest.mark.parametrize("shards", [2, 4])
def test_shards_give_the_same_lines(whole: dict[str, dict], shards: int, tmp_path: Path) -> None:
    for i in range(1, shards + 1):
        command = [*QUICK, "--limit", "8", "--out", str(tmp_path / "out"), "-q", "--batch",
                   str(97 * i), "--shard", f"{i}/{shards}"]
        assert main(command) == 0
    assert lines(tmp_path / "out") == whole


def test_killed_and_resumed_gives_the_same_lines(whole: dict[str, dict], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "certify", *QUICK, "--limit", "8", "--out",
               str(tmp_path / "out"), "-q"]
    journal = tmp_path / "out" / "items.jsonl"
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    for _ in range(600):
        if journal.exists() and journal.stat().st_size:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(command[3:]) == 0
    assert lines(tmp_path / "out") == whole


def test_other_settings_are_refused_in_the_same_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--limit", "2", "--out", str(tmp_path / "out"), "-q"]
    assert main([*QUICK, *out]) == 0
    assert main([*QUICK, *out, "--seed", "1"]) == 2
    assert "seed" in capsys.readouterr().err


def test_decision_mode_and_other_noise(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--limit", "3", "--radius", "0.1", "-q"]) == 0
    assert "0.1000" in capsys.readouterr().out
    noise = ["smooth", MODEL, "--data", "digits", "--limit", "2", "-q", "--noise"]
    assert main([*noise, "split-levels:width=1,levels=16", "--method", "levels"]) == 0
    assert "for certain" in capsys.readouterr().out
    assert main([*noise, "uniform:width=0.2", "--n", "300"]) == 0
    assert main([*QUICK, "--limit", "2", "--method", "dual", "-q"]) == 0
    assert main([*QUICK, "--limit", "2", "--method", "first-order", "--norm", "1", "-q"]) == 0


@pytest.mark.parametrize(("code", "message", "options"), [
    (4, "sigma must be", ["--sigma", "0"]),
    (4, "alpha must lie", ["--alpha", "1"]),
    (4, "at least n =", ["--radius", "2"]),
    (4, "unknown method", ["--method", "magic"]),
    (4, "no radius in the norm", ["--norm", "0"]),
    (2, "--out", ["--shard", "1/2"]),
    (2, "--n", ["--n", "0"]),
    (4, "no such file", ["--data", "nowhere.npz"]),
])
def test_bad_input_is_one_line_and_an_exit_code(
    code: int, message: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUICK, "--limit", "2", *options]) == code
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("error: ") and message in said[0]


def test_labels_beyond_the_model_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 1, 8, 8), np.float32), y=np.array([3, 11]))
    assert main(["smooth", MODEL, "--data", str(tmp_path / "d.npz"), "--sigma", "0.1"]) == 4
    assert "a label is 11" in capsys.readouterr().err


ROWS = [Row(0, 1, 1, 0.5, samples=10), Row(1, 1, -1, 0.0), Row(2, 0, 1, 0.9), Row(3, 0, 0, 0.25)]


def test_accuracy_and_average_radius_count_every_input() -> None:
    assert certified_accuracy(ROWS, 0.0) == 0.5
    assert certified_accuracy(ROWS, 0.25) == 0.25  # strictly more than the radius
    assert average_radius(ROWS) == pytest.approx(0.75 / 4)
    assert class_shares(ROWS) == {0: 0.5, 1: 0.5}


def test_envelopes_say_what_they_are() -> None:
    other = [Row(i, r.label, r.label, 0.3) for i, r in enumerate(ROWS)]
    best = envelope([Run("a", tuple(ROWS)), Run("b", tuple(other))])
    assert average_radius(best.rows) == pytest.approx((0.5 + 0.3 + 0.3 + 0.3) / 4)
    assert "no certificate" in best.name and "not what any classifier" in as_text([best])
    with pytest.raises(BadInput, match="same inputs"):
        envelope([Run("a", tuple(ROWS)), Run("b", tuple(other[:2]))])


def test_curve_is_a_picture_with_a_caption() -> None:
    import xml.etree.ElementTree as ElementTree

    text = curve([Run("run <1>", tuple(ROWS), {"alpha": 0.001}, 4)])
    root = ElementTree.fromstring(text)
    words = " ".join(e.text or "" for e in root.iter() if e.tag.endswith("text"))
    assert "abstained 25.0 %" in words and "0.999" in words and "run <1>" in words


def test_logs_are_written_and_read_again(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(as_tsv(ROWS))
    again = read_tsv(tmp_path / "log")
    assert [(r.index, r.label, r.predict, r.radius) for r in again] == [
        (r.index, r.label, r.predict, r.radius) for r in ROWS]


@pytest.mark.parametrize("text", ["", "nonsense\n", "idx\tlabel\tpredict\tradius\tcorrect\ttime\nx",
                                  "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t2\t0.1\t1\t0",
                                  "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\tnan\t1\t0"])
def test_damaged_logs_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(text)
    with pytest.raises(BadInput):
        read_tsv(tmp_path / "log")


def largest(sigma: float, n: int, alpha: float) -> tuple[float, float]:
    a, b = (float(gaussian_l2(clopper_pearson(k, n, alpha).q, sigma)) for k in (n, n - 1))
    return a, b


def test_logs_that_contradict_what_is_said_of_them_are_doubted() -> None:
    top, second = largest(0.5, 100_000, 0.001)
    honest = [Row(0, 1, 1, round(top, 3)), Row(1, 1, 1, round(second, 3)), Row(2, 1, 1, 0.7)]
    assert doubts(honest, top, second) == []
    other_alpha = [Row(0, 1, 1, 0.5 * 3.912), Row(1, 1, 1, 0.7)]
    assert "above" in doubts(other_alpha, top, second)[0]
    few = largest(0.5, 1000, 0.001)
    multiplied = [Row(0, 1, 1, top), Row(1, 1, 1, (top + second) / 2)]
    assert "lies between" in doubts(multiplied, top, second)[0] and few[0] < top


@pytest.mark.parametrize(("folder", "sigma", "published"), [
    ("cohen", "0.25", 0.911), ("cohen", "0.50", 1.558), ("cohen", "1.00", 1.618),
    ("salman/pgd_255.0_10_10/num_4", "0.50", 1.687),
    ("consistency/cohen/num_2/lbd_10.0/eta_0.5", "0.25", 0.928),
])
def test_published_logs_give_their_published_average_radii(
    data: Path, folder: str, sigma: str, published: float
) -> None:
    archive = data / "smoothing_logs" / "consistency_mnist_certify_logs.tar.gz"
    if not archive.is_file():
        pytest.skip(f"no {archive.name} in the data folder")
    means = []
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            place, _, name = member.name.partition("mnist/")[2].rpartition("/")
            if place == folder and name.startswith(f"noise_{sigma}_") and "acc" not in name:
                text = tar.extractfile(member).read().decode()
                means.append(average_radius(_parsed(text)))
    assert len(means) == 5 and round(math.fsum(means) / 5, 3) == published


def _parsed(text: str) -> list[Row]:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        file.write(text)
        file.flush()
        return read_tsv(file.name)


def test_report_compares_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").write_text(as_tsv(ROWS))
    out = tmp_path / "run"
    assert main([*QUICK, "--limit", "2", "--out", str(out), "-q"]) == 0
    capsys.readouterr()
    command = ["report", str(out), str(tmp_path / "log"), "--classes", "--sigma", "0.1", "--n",
               "1000", "--out", str(tmp_path / "made")]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "certified by class" in said.out and "warning" in said.err
    assert {p.name for p in (tmp_path / "made").iterdir()} == {"table.md", "curve.svg"}
    assert main(["report", str(tmp_path / "log"), "--envelope"]) == 2
