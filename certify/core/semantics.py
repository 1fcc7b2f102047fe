"""Whose arithmetic a bound speaks of."""

from __future__ import annotations

from enum import Enum


class Semantics(Enum):
    """Whose arithmetic a bound speaks of."""

    SEARCH = "search"  # plain floats: good for searching, proves nothing
    REAL = "real"  # real arithmetic on the stored weights
    FLOAT32 = "float32"  # any float32 evaluation in any order; also implies REAL

    @property
    def rigorous(self) -> bool:
        """Whether a bound in these semantics may carry a proof."""
        return self is not Semantics.SEARCH
