"""One example to decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from certify.core.region import Region
from certify.core.spec import Spec


@dataclass(frozen=True, eq=False)
class Target:
    """One example to decide.

    Attributes:
        case, example: where it stands in the claim.
        region: batch 1, fitted to the network.
        place: what a counterexample must lie in: the region, or a property file's exact box.
    """

    case: int
    example: int
    region: Region
    spec: Spec
    place: Any

    @property
    def key(self) -> tuple[int, int]:
        """The target's place in the claim."""
        return self.case, self.example
