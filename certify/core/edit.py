"""Changes made to a network before a question is asked about it, as plain data.

A certificate about an edited network names the file it came from and these changes, so that a
reader with the file can make the very same network again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from certify.core.provenance import Scalar


@dataclass(frozen=True, eq=False)
class Edit:
    """One change; `certify.semantic.edits` knows how each kind is made.

    Attributes:
        kind: what is done, such as ``"transform"`` or ``"free-weights"``.
        settings: numbers and words.
        arrays: images, label distances and the like, float64.
    """

    kind: str
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def words(self) -> str:
        """For people: the kind and its settings."""
        said = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        return f"{self.kind} ({said})" if said else self.kind
