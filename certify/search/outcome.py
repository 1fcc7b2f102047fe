"""What deciding a claim came to, by whatever road."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from certify.core.certificate import Counterexample, Verdict
    from certify.core.split_tree import SplitTree


@dataclass(frozen=True, eq=False)
class Proof:
    """A proved example.

    Attributes:
        method: that proved it.
        margins: of its rows, ``(R,)``; None where a search proved it case by case.
        slopes: optimised slopes by node name.
        trees: of a proof by cases, one per clause; () where they are not kept.
    """

    method: str
    margins: np.ndarray | None = None
    slopes: Mapping[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
    trees: tuple[SplitTree, ...] = ()


@dataclass(frozen=True, eq=False)
class Outcome:
    """What was found; see `Certificate` for the fields.

    Attributes:
        proofs: by case and example.
    """

    verdict: Verdict
    method: str
    device: str
    margin: float | None
    reason: str = ""
    counterexample: Counterexample | None = None
    proofs: dict[tuple[int, int], Proof] = field(default_factory=dict)
