"""The planted faults still fit the code they are planted in."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.mutation.faults import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("fault", MUTATIONS, ids=lambda m: m.name)
def test_a_fault_can_be_planted(fault: Mutation) -> None:
    code = (ROOT / fault.file).read_text(encoding="utf-8")
    assert code.count(fault.old) == 1
    assert fault.old != fault.new
    assert all((ROOT / test.partition("::")[0]).is_file() for test in fault.tests)


def test_names_are_unique() -> None:
    assert len({fault.name for fault in MUTATIONS}) == len(MUTATIONS)
