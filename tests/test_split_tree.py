"""A proof by cases has both children of every split, or cannot be written down."""

from __future__ import annotations

import numpy as np
import pytest

from certify.core.errors import BadInput
from certify.core.split_tree import LEAF, SplitTree


def _tree(steps: list[int], multipliers: int = 0) -> SplitTree:
    step = np.array(steps, dtype=np.int32)
    numbers = np.zeros(multipliers, dtype=np.float32)
    return SplitTree(step, np.zeros_like(step), np.zeros(len(step)), numbers)


@pytest.mark.parametrize(
    ("steps", "leaves"),
    [
        ([LEAF], 1),
        ([2, LEAF, LEAF], 2),
        ([2, 3, LEAF, LEAF, LEAF], 3),
        ([2, LEAF, 3, LEAF, LEAF], 3),
    ],
)
def test_whole_trees_are_accepted(steps: list[int], leaves: int) -> None:
    assert _tree(steps).leaves == leaves


@pytest.mark.parametrize(
    "steps", [[], [2], [2, LEAF], [LEAF, LEAF], [2, LEAF, LEAF, LEAF], [2, 3, LEAF, LEAF]]
)
def test_a_missing_or_extra_child_is_refused(steps: list[int]) -> None:
    with pytest.raises(BadInput, match="lacks a child"):
        _tree(steps)


def test_multipliers_come_one_per_leaf_and_split_above_it() -> None:
    _tree([2, 3, LEAF, LEAF, LEAF], 5)
    for wrong in (2, 4, 6):
        with pytest.raises(BadInput, match="multipliers"):
            _tree([2, 3, LEAF, LEAF, LEAF], wrong)


def test_paths_name_every_split_above_a_leaf_and_its_side() -> None:
    tree = _tree([2, 3, LEAF, LEAF, 4, LEAF, LEAF])
    assert [list(p) for p in tree.paths()] == [[0, 1], [0, ~1], [~0, 4], [~0, ~4]]
    assert [list(p) for p in _tree([LEAF]).paths()] == [[]]


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(BadInput, match="different lengths"):
        SplitTree(np.array([LEAF]), np.zeros(2, dtype=np.int32), np.zeros(1))
