"""Interrupted campaigns: torn lines, kills at any moment, and folders that belong to others."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_campaign import SQUARE, Heard, do, numbers

from certify.campaign import manifest
from certify.campaign.job import Item, Job
from certify.campaign.runner import Effort, read_records, run
from certify.core.errors import BadInput, CannotWrite, UsageError
from certify.core.journal import Journal, read_journal

ROOT = Path(__file__).resolve().parent.parent
COUNT = 30
DRIVER = f"""
import sys
from pathlib import Path
from test_campaign import *
job = Job("campaign_jobs:square", {{"offset": 7}}, {{"pause": 0.01}})
run(job, numbers({COUNT}), Path(sys.argv[1]), Effort(workers=2), Heard())
"""


def driver(folder: Path) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(folder)],
                            env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.DEVNULL)


def ended_before(
    process: subprocess.Popen[bytes], journal: Path, moments: random.Random
) -> bool:
    """Wait for a random moment: some lines later, or while it starts; True if it ended first."""
    lines, until = moments.choice([0, 2, 5, 8, 1000]), time.monotonic() + moments.uniform(0.02, 0.3)
    begun = journal.stat().st_size if journal.exists() else 0
    while process.poll() is None:
        grown = (journal.stat().st_size if journal.exists() else 0) - begun
        if grown > lines * 150 or (lines == 1000 and time.monotonic() > until):
            time.sleep(moments.uniform(0, 0.01))
            return False
        time.sleep(0.002)
    return True


def table(records: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(r["index"], r["key"], r["status"], r["result"]) for r in records]


@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_moments_lose_and_repeat_nothing(tmp_path: Path, seed: int) -> None:
    expected = [(n, f"n{n}", "done", {"value": n * n + 7}) for n in range(COUNT)]
    moments = random.Random(seed)
    journal, kills, seen = tmp_path / "items.jsonl", 0, 0
    process = driver(tmp_path)
    while not ended_before(process, journal, moments):
        process.kill()
        process.wait()
        kills += 1
        if moments.random() < 0.5 and journal.exists():  # as a power failure may leave it
            with open(journal, "ab") as file:
                file.write(b'{"key": "n3", "sta')
        now = len(read_records(tmp_path))
        assert now >= seen  # what was finished stays
        seen = now
        process = driver(tmp_path)
    assert process.returncode == 0
    assert kills > 2
    assert table(read_records(tmp_path)) == expected
    assert [r["key"] for r in read_journal(journal)].count("n3") == 1
    assert len(read_journal(journal)) == COUNT  # nothing was done twice


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_worker_outlives_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    code = ("import sys; from pathlib import Path; from test_campaign import *\n"
            "items = [Item('a', {'n': 0}, 50.0), Item('hang', {'way': 'hang'}, 50.0)]\n"
            "class Loud(Heard):\n"
            "    def finished(self, record): print(record['result']['pid'], flush=True)\n"
            "run(Job('test_campaign_resume:pid_or_hang'), items, Path(sys.argv[1]), "
            "Effort(), Loud())\n")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert alive(pid)
    time.sleep(0.2)
    process.send_signal(how)
    process.wait(20)
    process.stdout.close()
    until = time.monotonic() + 5
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(pid)
    assert [r["key"] for r in read_records(tmp_path)] == ["a"]


def pid_or_hang(item: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    if item.get("way") == "hang":
        time.sleep(600)
    return {"pid": os.getpid()}


# -- the journal ----------------------------------------------------------------------------------


def test_a_torn_line_is_cut_back_wherever_it_was_torn(tmp_path: Path) -> None:
    lines = [json.dumps({"key": k, "text": "é" * n}).encode() + b"\n"
             for n, k in enumerate("abc")]
    whole = b"".join(lines)
    file = tmp_path / "items.jsonl"
    for cut in range(len(whole) + 1):
        file.write_bytes(whole[:cut])
        kept = whole[:cut].count(b"\n")
        assert len(read_journal(file)) == kept
        with Journal(file) as journal:
            journal.append({"key": "d"})
        assert file.read_bytes() == b"".join(lines[:kept]) + b'{"key": "d"}\n'


def test_a_long_torn_line_is_cut_back(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_bytes(b'{"key": "a"}\n' + b"x" * 200_000)
    with Journal(file):
        assert file.read_bytes() == b'{"key": "a"}\n'
    file.write_bytes(b"\0" * 200_000)
    with Journal(file):
        assert file.read_bytes() == b""


@pytest.mark.parametrize("line", [b"{", b"[]", b"{}", b'{"key": 3}', b"\xff", b"[" * 100_000])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "items.jsonl"
    file.write_bytes(b'{"key": "a"}\n' + line + b'\n{"key": "b"}\n')
    with pytest.raises(BadInput, match=r"items\.jsonl, line 2"):
        read_journal(file)


def test_a_full_disk_keeps_what_was_finished(tmp_path: Path) -> None:
    file, old = tmp_path / "items.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(file) as journal:
        journal.append({"key": "a"})
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, old[1]))
        try:
            with pytest.raises(CannotWrite, match=r"items\.jsonl.*kept"):
                journal.append({"key": "b" * 100})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert file.read_bytes() == b'{"key": "a"}\n'
        journal.append({"key": "c"})
    assert [r["key"] for r in read_journal(file)] == ["a", "c"]


def test_two_runs_do_not_write_to_one_journal(tmp_path: Path) -> None:
    assert len(do(SQUARE, numbers(2), tmp_path)) == 2
    with Journal(tmp_path / "items.jsonl"), pytest.raises(CannotWrite, match="another run"):
        do(SQUARE, numbers(2), tmp_path)
    assert len(do(SQUARE, numbers(2), tmp_path)) == 2


def test_a_journal_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "no" / "items.jsonl", tmp_path, tmp_path / "link"):
        with pytest.raises(CannotWrite):
            Journal(path)
    with pytest.raises(CannotWrite):
        (tmp_path / "file").write_text("")
        do(SQUARE, numbers(1), tmp_path / "file")


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("precious")
    with pytest.raises(UsageError, match=r"such as results\.csv"):
        do(SQUARE, numbers(2), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["results.csv"]
    assert (tmp_path / "results.csv").read_text() == "precious"


# -- the manifest ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "said"), [
    ({"offset": 8}, "offset was 7 and is now 8"),
    ({"offset": 7, "more": None}, "more was absent and is now null"),
    ({}, "offset was 7 and is now absent"),
])
def test_other_settings_are_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    do(SQUARE, numbers(2), tmp_path)
    before = sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir())
    with pytest.raises(UsageError, match=said) as refused:
        do(Job("campaign_jobs:square", settings), numbers(2), tmp_path)
    assert "another folder" in str(refused.value)
    assert sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir()) == before


def test_other_items_or_another_job_are_refused(tmp_path: Path) -> None:
    do(SQUARE, numbers(2), tmp_path)
    for job, items, said in (
        (SQUARE, numbers(3), "had 2 items, now there are 3"),
        (SQUARE, numbers(2)[::-1], "the list of items has changed"),
        (SQUARE, [Item(i.key, i.data, 9.0) for i in numbers(2)], "list of items has changed"),
        (Job("campaign_jobs:process", {"offset": 7}), numbers(2), "campaign_jobs:square"),
        (Job("campaign_jobs:square", {"offset": 7}, memory=2**30), numbers(2), "worker_memory"),
    ):
        with pytest.raises(UsageError, match=said):
            do(job, items, tmp_path)


def test_other_versions_and_local_settings_are_no_obstacle(tmp_path: Path) -> None:
    do(SQUARE, numbers(2), tmp_path)
    file = tmp_path / manifest.NAME
    content = json.loads(file.read_text())
    content["versions"]["torch"] = "0.0.1"
    file.write_text(json.dumps(content))
    heard = Heard()
    job = Job(SQUARE.function, SQUARE.settings, {"pause": 0.0})
    assert len(run(job, numbers(2), tmp_path, Effort(workers=2), heard)) == 2
    (note,) = heard.notes
    assert note.startswith("torch was 0.0.1 when this campaign began")


def test_the_manifest_is_written_first_and_says_what_it_is_about(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        do(Job("campaign_jobs:nonsense", {"a": 1}), numbers(2), tmp_path)
    found = manifest.read_manifest(tmp_path)
    assert found["settings"] == {"a": 1, "worker_memory": None}
    assert found["items"]["count"] == 2 and len(found["items"]["sha256"]) == 64
    assert found["machine"]["cores"] == os.cpu_count()
    assert {"python", "torch", "certify"} <= set(found["versions"]) and found["started"]
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": "certify-campaign/1"}'])
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / manifest.NAME).write_text(text)
    with pytest.raises(BadInput, match=r"manifest\.json"):
        do(SQUARE, numbers(1), tmp_path)
