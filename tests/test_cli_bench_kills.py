"""``certify bench`` on real instances, interrupted at any moment."""

from __future__ import annotations

import csv
import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_cli import ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "examples" / "digits" / "instances.csv"
KILLS, COUNT = 10, "16"


def bench(out: Path, *options: str, **streams: int) -> subprocess.Popen[bytes]:
    usual = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(
        [sys.executable, "-m", "certify", "bench", str(DIGITS), "--out", str(out), "--method",
         "crown", *options], env=ENVIRONMENT, **{**usual, **streams})


def table(out: Path) -> list[list[str]]:
    """The competition's table without its times."""
    with open(out / "results.csv", newline="") as file:
        return [[*row[:3], row[4]] for row in csv.reader(file)]


def wait_for_lines(process: subprocess.Popen[bytes], out: Path, more: int) -> bool:
    """Wait until there are so many more finished instances; False if the process ends first."""
    journal = out / "items.jsonl"

    def lines() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    begun = lines()
    while process.poll() is None:
        if lines() >= begun + more:
            return True
        time.sleep(0.002)
    return False


@pytest.mark.slow
def test_ten_kills_lose_and_repeat_nothing(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert bench(whole, "--limit", COUNT).wait(120) == 0
    moments = random.Random(0)
    for _ in range(KILLS):
        process = bench(broken, "--limit", COUNT)
        assert wait_for_lines(process, broken, 1)
        time.sleep(moments.uniform(0, 0.02))  # sixteen instances, ten kills
        process.kill()
        process.wait()
    assert bench(broken, "--limit", COUNT).wait(120) == 0
    assert table(broken) == table(whole)
    assert len(table(whole)) == int(COUNT)
    assert {row[3] for row in table(whole)} >= {"sat", "unsat"}
    assert (broken / "items.jsonl").read_bytes().count(b"\n") == int(COUNT)
    assert {p.name: p.read_bytes() for p in (broken / "counterexamples").iterdir()} == {
        p.name: p.read_bytes() for p in (whole / "counterexamples").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on(
    tmp_path: Path, how: signal.Signals, code: int
) -> None:
    process = bench(tmp_path, "--limit", "8", stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert wait_for_lines(process, tmp_path, 2)
    process.send_signal(how)
    said = process.stderr.read().decode().splitlines()
    assert process.wait(20) == code
    assert "the same command goes on from there" in said[0]
    assert said[1].startswith("error: ") and len(said) == 2
    process.stderr.close()
    assert bench(tmp_path, "--limit", "8").wait(60) == 0
    assert len(table(tmp_path)) == 8


@pytest.mark.slow
def test_a_terminal_shows_how_far_it_is(tmp_path: Path) -> None:
    reader, writer = pty.openpty()
    process = bench(tmp_path, "--limit", "3", stderr=writer)
    os.close(writer)
    shown = b""
    while True:
        try:
            block = os.read(reader, 4096)
        except OSError:  # the other end is closed
            break
        if not block:
            break
        shown += block
    os.close(reader)
    assert process.wait(20) == 0
    assert b"0/3" in shown and b"3/3" in shown and b"ETA" in shown and b"unsat" in shown
