"""The digits table in a reduced form: shorter runs, fewer images, the same pattern."""

from __future__ import annotations

import pytest

from benchmarks.digits_table.__main__ import _COMPARED, TOLERANCE, _worse
from benchmarks.digits_table.cell import COLUMNS, cell, recipe

METHODS = ("standard", "ibp", "mtl-ibp")


@pytest.fixture(scope="module")
def cells() -> dict[str, dict[str, float]]:
    """Three methods, thirty of the 150 epochs, 150 of the 450 images."""
    return {name: cell(recipe(name, 0.05, 0, epochs=30), 150) for name in METHODS}


@pytest.mark.slow
def test_columns_are_in_order(cells: dict[str, dict[str, float]]) -> None:
    for name, one in cells.items():
        assert set(one) == set(COLUMNS)
        assert one["ibp-no-elision"] <= one["ibp"] <= one["crown-ibp"] <= one["union"], name
        assert one["ibp"] <= one["crown"] <= one["union"] <= one["pgd"] <= one["clean"], name


@pytest.mark.slow
def test_the_pattern_of_the_table(cells: dict[str, dict[str, float]]) -> None:
    standard, ibp, mixed = (cells[name] for name in METHODS)
    assert standard["ibp"] == 0 and standard["crown"] < ibp["crown"]
    assert ibp["ibp"] > 75 and ibp["ibp-no-elision"] < ibp["ibp"] - 10
    assert ibp["ibp-no-elision"] > mixed["ibp-no-elision"]
    assert ibp["ibp"] > mixed["ibp"] and mixed["crown"] > 80
    assert standard["tightness"] < mixed["tightness"] < ibp["tightness"]


def test_what_counts_as_worse() -> None:
    means = dict.fromkeys(_COMPARED, 90.0)
    row = {"eps": 0.05, "method": "ibp", "mean": means, "published": {**means, "crown": 92.4}}
    assert _worse(row) == []
    row["published"] = {**means, "crown": 90 + TOLERANCE + 0.1}
    assert _worse(row) == ["eps 0.05 ibp crown: 90.0, published 92.6"]
