"""Tables and plots from records alone."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from certify.core.errors import BadInput
from certify.report.cactus import cactus
from certify.report.row import Row, row
from certify.report.summary import as_markdown, as_text
from certify.report.vnncomp import results_csv

RECORD: dict[str, Any] = {
    "key": "k", "status": "done", "seconds": 9.0, "index": 0,
    "item": {"family": "f", "onnx": "a.onnx", "vnnlib": "b.vnnlib", "timeout": 10.0,
             "expected": ""},
    "result": {"verdict": "unsat", "seconds": 2.5, "method": "crown"},
}


def record(**changes: Any) -> dict[str, Any]:
    item = {**RECORD["item"], **changes.pop("item", {})}
    result = changes.pop("result", {})
    merged = None if result is None else {**RECORD["result"], **result}
    return {**RECORD, **changes, "item": item, "result": merged}


def test_seconds_are_those_until_the_answer() -> None:
    assert row(RECORD).seconds == 2.5
    assert (row(RECORD).word, row(RECORD).solved, row(RECORD).wrong) == ("unsat", True, "")


@pytest.mark.parametrize(("status", "word"), [
    ("error", "error"), ("crashed", "error"), ("timeout", "timeout")])
def test_what_never_answered_counts_as_error_or_timeout(status: str, word: str) -> None:
    found = row(record(status=status, result=None, error="because"))
    assert (found.word, found.why, found.solved, found.seconds) == (word, "because", False, 9.0)


def test_a_late_answer_is_not_solved_but_may_be_wrong() -> None:
    late = {"seconds": 10.5}
    found = row(record(result=late, item={"expected": "unsat"}))
    assert (found.word, found.solved, found.wrong) == ("timeout", False, "")
    assert row(record(result=late, item={"expected": "sat"})).wrong


@pytest.mark.parametrize(("verdict", "expected", "check", "wrong"), [
    ("unsat", "unsat", "", False), ("unsat", "sat", "", True), ("sat", "unsat", "accepted", True),
    ("sat", "sat", "accepted", False), ("sat", "sat", "outside the region", True),
    ("sat", "", "outside the region", True), ("unknown", "sat", "", False),
    ("unsat", "", "", False),
])
def test_contradictions(verdict: str, expected: str, check: str, wrong: bool) -> None:
    found = row(record(result={"verdict": verdict, "check": check}, item={"expected": expected}))
    assert bool(found.wrong) is wrong


@pytest.mark.parametrize("bad", [
    record(result={"verdict": "maybe"}), record(status="odd"), {"key": "k"},
    record(item={"timeout": "soon"}), {**RECORD, "item": None},
])
def test_foreign_records_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="'k'"):
        row(bad)


def made(family: str, answer: str, seconds: float, **more: Any) -> Row:
    return Row(family, "n.onnx", "p.vnnlib", 10.0, answer, seconds, **more)


ROWS = [made("a", "unsat", 1.0), made("a", "sat", 3.0, expected="sat"),
        made("a", "unknown", 9.0), made("b|c", "unsat", 2.0, expected="sat", method="crown"),
        *(made("b|c", "error", 0.1, why=f"reason {i}") for i in range(12))]


def test_the_text_table() -> None:
    lines = as_text(ROWS, 20).splitlines()
    assert lines[0].startswith("WRONG: b|c n.onnx p.vnnlib: unsat by crown, expected sat")
    assert lines[1].split() == ["family", "instances", "solved", "unsat", "sat", "unknown",
                                "timeout", "error", "wrong", "median", "s", "longest", "s"]
    assert lines[2].split() == ["a", "3", "2", "1", "1", "1", "0", "0", "0", "2.00", "3.00"]
    assert lines[3].split() == ["b|c", "13", "1", "1", "0", "0", "0", "12", "1", "2.00", "2.00"]
    assert lines[4].split() == ["all", "16", "3", "2", "1", "1", "0", "12", "1", "2.00", "3.00"]
    assert lines[5].endswith("reason 0") and lines[15] == "and 2 more errors"
    assert lines[16] == "16 of 20 instances finished"
    assert len(lines) == 17


def test_colour_is_only_where_it_is_asked_for() -> None:
    assert "\x1b" not in as_text(ROWS, 16)
    assert as_text(ROWS, 16, colour=True).startswith("\x1b[31mWRONG")
    assert as_text(ROWS, 16, colour=True).count("\x1b") == 2
    assert "\x1b" not in as_text(ROWS[:3], 3, colour=True)


def test_the_markdown_table_survives_odd_names() -> None:
    text = as_markdown(ROWS, 16, ["a fact"])
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in table} == {12}
    assert "* a fact" in text and text.startswith("**WRONG**")


def test_nothing_finished_is_a_table_too() -> None:
    assert as_text([], 3).splitlines()[-1] == "0 of 3 instances finished"
    assert results_csv([]) == ""
    ElementTree.fromstring(cactus({"all": []}))


def test_the_competitions_columns() -> None:
    assert results_csv([made("f,g", "sat", 1.23456)]) == '"f,g",n.onnx,p.vnnlib,0.000,sat,1.235\n'


def points(svg: str) -> list[list[tuple[float, float]]]:
    lines = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}polyline")
    return [[tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]  # type: ignore
            for line in lines]


def test_a_cactus_climbs_one_step_per_instance() -> None:
    first, second = points(cactus({"all": [0.1, 10.0, 1.0], "<f>": [1.0]}))
    xs, ys = zip(*first, strict=True)
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys, reverse=True)
    assert len(set(ys)) == 4  # none, one, two, three
    steps = sorted({x for x, _ in first})
    assert abs((steps[-1] - steps[-2]) - (steps[-2] - steps[-3])) < 0.2  # decades are even
    assert second[-1][1] == [y for y in sorted(set(ys), reverse=True)][1]
    for extreme in ([0.0, 1e-9, 1e9], [5.0] * 1000):
        assert len(points(cactus({"all": extreme}))[0]) == 2 * len(extreme) + 2
