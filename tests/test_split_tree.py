"""A proof by cases has both children of every split, or cannot be written down."""

from __future__ import annotations

import numpy as np
import pytest

from certify.core.errors import BadInput
from certify.core.split_tree import LEAF, SplitTree


def _tree(steps: list[int], multipliers: tuple[np.ndarray, ...] = ()) -> SplitTree:
    step = np.array(steps, dtype=np.int32)
    return SplitTree(step, np.zeros_like(step), np.zeros(len(step)), multipliers)


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


def test_multipliers_come_one_list_per_leaf() -> None:
    _tree([2, LEAF, LEAF], (np.zeros(1), np.zeros(1)))
    with pytest.raises(BadInput, match="multipliers"):
        _tree([2, LEAF, LEAF], (np.zeros(1),))


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(BadInput, match="different lengths"):
        SplitTree(np.array([LEAF]), np.zeros(2, dtype=np.int32), np.zeros(1))
