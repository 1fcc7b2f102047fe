"""The campaign runner: each item once, whatever the items do."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from certify.campaign.job import Item, Job
from certify.campaign.pool import Pool
from certify.campaign.runner import Effort, read_records, run
from certify.campaign.shard import Shard, parse_shard
from certify.core.errors import BadInput, UsageError

SQUARE = Job("campaign_jobs:square", {"offset": 7})
MIXED = Job("campaign_jobs:mixed", memory=2**30, grace=0.2)


class Heard:
    """A watch that remembers."""

    def __init__(self) -> None:
        self.begun: tuple[int, int] = (-1, -1)
        self.notes: Sequence[str] = ()
        self.records: list[Mapping[str, Any]] = []
        self.ended = 0

    def begin(self, total: int, before: int, notes: Sequence[str]) -> None:
        self.begun, self.notes = (total, before), notes

    def finished(self, record: Mapping[str, Any]) -> None:
        self.records.append(record)

    def end(self) -> None:
        self.ended += 1


def numbers(count: int) -> list[Item]:
    return [Item(f"n{n}", {"n": n}) for n in range(count)]


def do(job: Job, items: Sequence[Item], folder: Path, **effort: Any) -> list[dict[str, Any]]:
    return run(job, items, folder, Effort(**effort), Heard())


def alone(*ways: str, limit: float | None = 20.0, workers: int = 1) -> dict[str, dict[str, Any]]:
    """The records of `mixed` items by their way."""
    items = [Item(way, {"way": way}, 0.3 if "hang" in way else limit) for way in ways]
    with Pool(MIXED, workers) as pool:
        return {o.item.key: o.record() for o in pool.outcomes(items)}


def test_every_item_once_in_order(tmp_path: Path) -> None:
    heard = Heard()
    records = run(SQUARE, numbers(20), tmp_path, Effort(workers=2), heard)
    assert [r["key"] for r in records] == [f"n{n}" for n in range(20)]
    assert [r["result"]["value"] for r in records] == [n * n + 7 for n in range(20)]
    assert all(r["status"] == "done" and r["peak_memory"] > 2**20 for r in records)
    assert heard.begun == (20, 0)
    assert len(heard.records) == 20 and heard.ended == 1
    again = Heard()
    assert run(SQUARE, numbers(20), tmp_path, Effort(), again) == records
    assert again.begun == (20, 20) and not again.records


def test_workers_stay_warm_and_are_prepared_once(tmp_path: Path) -> None:
    pids = {r["result"]["pid"] for r in do(Job("campaign_jobs:process"), numbers(9), tmp_path)}
    assert len(pids) == 1 and os.getpid() not in pids
    job = dataclasses.replace(SQUARE, function="campaign_jobs:prepared",
                              prepare="campaign_jobs:prepare")
    records = do(job, numbers(3), tmp_path / "prepared")
    assert [r["result"] for r in records] == [{"prepared": [7]}] * 3


def test_settings_and_local_settings_reach_the_job(tmp_path: Path) -> None:
    job = Job("campaign_jobs:square", {"offset": 1}, {"pause": 0.1})
    (record,) = do(job, numbers(1), tmp_path)
    assert record["result"] == {"value": 1}
    assert record["seconds"] >= 0.1 > record["cpu_seconds"]


def test_items_may_be_dataclasses(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Number:
        n: int

    (record,) = do(SQUARE, [Item("three", Number(3))], tmp_path)
    assert record["item"] == {"n": 3} and record["result"] == {"value": 16}


@pytest.mark.parametrize(("way", "status", "said"), [
    ("hang", "timeout", "0.3 s"), ("hang alone", "timeout", "0.3 s"),
    ("abort", "crashed", "SIGABRT"), ("killed", "crashed", "memory"), ("leave", "crashed", "3"),
    ("hog", "error", "out of memory"), ("raise", "error", "ValueError: odd thing"),
    ("exit", "error", "gone"), ("nan", "error", "ValueError"), ("set", "error", "JSON"),
    ("nothing", "error", "NoneType"),
])
def test_a_bad_item_costs_only_itself(way: str, status: str, said: str) -> None:
    started = time.monotonic()
    items = [Item(f"fine {i}", {"way": "fine"}, 20.0) for i in range(4)]
    items.insert(2, Item(way, {"way": way}, 0.3 if "hang" in way else 20.0))
    with Pool(MIXED, 1) as pool:
        found = {o.item.key: o.record() for o in pool.outcomes(items)}
    assert set(found) == {item.key for item in items}
    bad = found.pop(way)
    assert (bad["status"], bad["result"]) == (status, None)
    assert said in bad["error"] and bad["error"].isprintable()
    assert all(r["status"] == "done" and r["result"] == {"fine": True} for r in found.values())
    assert time.monotonic() - started < 30


def test_what_a_bad_item_said_is_kept() -> None:
    found = alone("abort", "raise", "hang")
    assert "about to\nfall over" in found["abort"]["stderr"]
    assert "Traceback" in found["raise"]["stderr"] and "fall over" not in found["raise"]["stderr"]
    assert "_hang" in found["hang"]["stderr"]  # where it hung
    assert 0.5 <= found["hang"]["seconds"] < 5 and found["hang"]["cpu_seconds"] < 0.4


def test_a_hang_that_holds_the_interpreter_is_seen_as_work() -> None:
    assert alone("hang alone")["hang alone"]["cpu_seconds"] > 0.05


def test_a_limit_ends_with_its_item() -> None:
    items = [Item("short", {"way": "fine"}, 0.3), Item("long", {"way": "slow"}, None)]
    with Pool(MIXED, 1) as pool:
        assert [o.status for o in pool.outcomes(items)] == ["done", "done"]


def test_prints_are_no_answers() -> None:
    assert alone("print")["print"]["result"] == {"fine": True}


def test_one_hung_worker_does_not_hold_up_the_other() -> None:
    fine = [f"fine{i}" for i in range(10)]
    items = [Item("hang", {"way": "hang"}, 3.0), *(Item(k, {"way": "fine"}, 9.0) for k in fine)]
    with Pool(MIXED, 2) as pool:
        order = [o.item.key for o in pool.outcomes(items)]
    assert order == [*fine, "hang"]


def test_a_job_that_cannot_start_is_said_at_once(tmp_path: Path) -> None:
    for job, said in (
        (Job("campaign_jobs:nonsense"), "nonsense"), (Job("no_such_module:f"), "no_such_module"),
        (Job("campaign_jobs"), "module:function"),
        (dataclasses.replace(SQUARE, prepare="campaign_jobs:unprepared"), "no such device"),
    ):
        with pytest.raises(BadInput, match=said):
            do(job, numbers(3), tmp_path / said.replace(" ", ""))
    assert read_records(tmp_path / "nonsense") == []


def test_a_campaign_without_workers_or_with_equal_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one worker"):
        do(SQUARE, numbers(1), tmp_path / "a", workers=0)
    with pytest.raises(BadInput, match="items 1 and 4 .*'n1'"):
        do(SQUARE, [*numbers(4), Item("n1", {"n": 9})], tmp_path / "b")
    assert not (tmp_path / "b").exists()
    for data in ({"n": {1}}, [1], {"n": float("inf")}):
        with pytest.raises(BadInput, match="odd"):
            do(SQUARE, [Item("odd", data)], tmp_path / "c")


@pytest.mark.parametrize("count", [1, 2, 3, 7, 30])
def test_shards_partition_the_items(count: int) -> None:
    items = numbers(17)
    shards = [Shard(i, count).of(items) for i in range(1, count + 1)]
    assert sorted((i for s in shards for i in s), key=lambda i: int(i.key[1:])) == items
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert len({Shard(i, count).journal for i in range(1, count + 1)}) == count


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/4/2", "1/1000000"])
def test_wrong_shards(text: str) -> None:
    with pytest.raises(UsageError):
        parse_shard(text)


def test_shards_in_one_folder_make_one_table(tmp_path: Path) -> None:
    whole = do(SQUARE, numbers(11), tmp_path / "whole")
    for index in (3, 1, 2):
        records = do(SQUARE, numbers(11), tmp_path / "parts", shard=Shard(index, 3))
    assert [(r["key"], r["result"]) for r in records] == [(r["key"], r["result"]) for r in whole]
    assert sorted(p.name for p in (tmp_path / "parts").glob("items*")) == [
        "items-1of3.jsonl", "items-2of3.jsonl", "items-3of3.jsonl"]
    heard = Heard()
    run(SQUARE, numbers(11), tmp_path / "parts", Effort(), heard)
    assert heard.begun == (11, 11)
