"""One line of a benchmark's table, read from the record of a finished instance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from certify.core.errors import BadInput, one_line

ANSWERS = ("unsat", "sat")
ACCEPTED = "accepted"
WORDS = (*ANSWERS, "unknown", "timeout", "error")


@dataclass(frozen=True)
class Row:
    """One instance.

    Attributes:
        word: one of `WORDS`; an answer that came after the time limit counts as ``timeout``.
        answer: what was answered, in time or not.
        seconds: from the request to the answer, reading the files included.
        expected: ``sat``, ``unsat``, or "" where nobody knows.
        check: of the counterexample: "" where there is none, ``accepted``, or what is wrong with
            it.
        why: why there is no answer; "" where there is one.
        counterexample: the name of its file.
    """

    family: str
    onnx: str
    vnnlib: str
    timeout: float
    answer: str
    seconds: float
    expected: str = ""
    method: str = ""
    check: str = ""
    why: str = ""
    counterexample: str = ""

    @property
    def word(self) -> str:
        """What counts, see above."""
        return "timeout" if self.answer in ANSWERS and self._late else self.answer

    @property
    def solved(self) -> bool:
        """There is an answer, in time."""
        return self.word in ANSWERS

    @property
    def wrong(self) -> str:
        """What contradicts the answer, as a sentence; "" where nothing does."""
        if self.answer == "sat" and self.check not in ("", ACCEPTED):
            return f"{self.name}: the counterexample was rejected: {self.check}"
        if {self.answer, self.expected} == set(ANSWERS):
            return f"{self.name}: {self.answer} by {self.method}, expected {self.expected}"
        return ""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.family} {self.onnx} {self.vnnlib}"

    @property
    def _late(self) -> bool:
        return self.seconds > self.timeout


def row(record: Mapping[str, Any]) -> Row:
    """The row of one record.

    Raises:
        BadInput: the record is of something else.
    """
    try:
        item, result = record["item"], record["result"] or {}
        answer = result["verdict"] if record["status"] == "done" else _WORD[record["status"]]
        if answer not in WORDS:
            raise ValueError(f"the verdict {answer!r}")
        seconds = float(result.get("seconds", record["seconds"]))
        return Row(
            item["family"], item["onnx"], item["vnnlib"], float(item["timeout"]), answer, seconds,
            item["expected"], result.get("method", ""), result.get("check", ""),
            result.get("reason") or record.get("error", ""), result.get("counterexample", ""))
    except (KeyError, TypeError, ValueError) as problem:
        raise BadInput(f"record {one_line(record.get('key'), 80)!r} is not of an instance: "
                       f"{type(problem).__name__}: {one_line(problem, 80)}") from None


def rows(records: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows of many records, see `row`."""
    return [row(record) for record in records]


_WORD = {"error": "error", "crashed": "error", "timeout": "timeout"}
