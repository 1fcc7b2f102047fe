"""What was found about each image, and what that comes to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from certify.core.errors import EXIT_REJECTED, CertifyError

CERTIFIED, BROKEN, UNKNOWN, WRONG = "certified", "broken", "unknown", "misclassified"
STATUSES = (CERTIFIED, UNKNOWN, BROKEN, WRONG)


class Contradiction(CertifyError):
    """An attack succeeded on a certified example: an error of this program, or of the machine."""

    exit_code = EXIT_REJECTED


@dataclass(frozen=True)
class Finding:
    """One image.

    Attributes:
        index: its place in the data.
        eps: radius of the region.
        label, predicted: classes; a tie predicts -1.
        certified: the verifier that proved it, or "".
        broken: the attack that broke it, or "".
        margin: the best lower bound of its margin that the bound methods gave; None without one.
        why: in words, why it is unknown; "" otherwise.
        seconds: of the search, 0.0 where there was none.
    """

    index: int
    eps: float
    label: int
    predicted: int
    certified: str = ""
    broken: str = ""
    margin: float | None = None
    why: str = ""
    seconds: float = 0.0

    @property
    def status(self) -> str:
        """One of `STATUSES`."""
        if self.predicted != self.label:
            return WRONG
        if self.broken:
            return BROKEN
        return CERTIFIED if self.certified else UNKNOWN

    @property
    def contradiction(self) -> str:
        """What cannot be, in words; "" where all is well."""
        if not (self.certified and self.broken):
            return ""
        return (f"example {self.index} is certified within {self.eps:g} by {self.certified}, and "
                f"{self.broken} broke it")

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "status": self.status}

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Finding:
        """The inverse of `record`."""
        return cls(**{name: record[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Tally:
    """Shares of all images, in per cent.

    Attributes:
        count: of images.
        certified_by: shares by verifier; each counts what the ones before it left open.
    """

    eps: float
    count: int
    clean: float
    certified: float
    attacked: float
    certified_by: Mapping[str, float]

    @property
    def unknown(self) -> float:
        """The width of the bracket: neither certified nor broken."""
        return self.attacked - self.certified


def tally(findings: Iterable[Finding]) -> Tally:
    """What findings of one radius come to. ``attacked`` is accuracy under attack."""
    every = list(findings)
    unit = max(1, len(every)) / 100
    share = {status: sum(f.status == status for f in every) for status in STATUSES}
    by = Counter(f.certified for f in every if f.status == CERTIFIED)
    attacked = share[CERTIFIED] + share[UNKNOWN]
    return Tally(every[0].eps if every else 0.0, len(every), (attacked + share[BROKEN]) / unit,
                 share[CERTIFIED] / unit, attacked / unit,
                 {name: count / unit for name, count in by.items()})
