"""Our margins against the other library's, row by row.

Differences are relative: divided by the size of the other library's margin in that row, or by the
mean size over the instance's rows where that is larger, so that a margin near 0 does not count
for more than its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.data import Reference

PEER_NAMES = {"ibp": "IBP", "crown-ibp": "CROWN-IBP", "crown": "CROWN", "forward": "forward",
              "alpha-20": "CROWN-Optimized", "alpha": "CROWN-Optimized"}
TOLERANCE = 1e-4  # what the other library's float32 numbers are good to

Results = dict[tuple[int, str], dict[str, Any]]  # by instance and method


class Line(NamedTuple):
    """One network and method.

    Attributes:
        ran, compared: instances with our margins, and with the other library's too.
        worst, mean: smallest and mean relative difference, ours minus theirs.
        ours_worse: instances with a row of ours below theirs by more than the tolerance.
        gain: smallest gain over our own `crown`, relative to crown's mean margin size, of the mean
            margin of an instance.
        not_above: instances where the mean margin is not above `crown`'s.
        unsound: rows above what random points reached.
        seconds: CPU seconds per instance.
        errors: messages.
    """

    net: str
    method: str
    ran: int
    compared: int
    worst: float | None
    mean: float | None
    ours_worse: int
    gain: float | None
    not_above: int | None
    unsound: int
    seconds: float | None
    errors: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """One word or two; ``good`` when nothing is wrong."""
        if self.unsound:
            return "UNSOUND"
        if self.errors:
            return "incomplete"
        if self.not_above:
            return "not above crown"
        better = self.method == "ibp" and self.mean is not None and self.mean > TOLERANCE
        return "worse" if self.ours_worse else "not equal" if better else "good"


def lines(references: Sequence[Reference], results: Results, methods: Sequence[str]) -> list[Line]:
    """One line per method for the instances of one network."""
    return [_line(references, results, method) for method in methods]


def _line(references: Sequence[Reference], results: Results, method: str) -> Line:
    worst, means, gains, seconds, errors = [], [], list[float](), [], list[str]()
    unsound = 0
    for reference in references:
        found = results.get((reference.number, method), {"error": "no result in time"})
        if "margins" not in found:
            errors.append(f"instance {reference.number}: {found['error']}")
            continue
        mine, theirs = found["margins"], reference.margins(PEER_NAMES[method])
        seconds.append(found["seconds"])
        unsound += _above(mine, reference.sampled)
        if theirs is not None:
            differences = relative(mine, theirs)
            worst.append(min(differences))
            means.append(math.fsum(differences) / len(differences))
        plain = results.get((reference.number, "crown"), {}).get("margins")
        if method.startswith("alpha") and plain is not None:
            gains.append(math.fsum(relative(mine, plain)) / len(plain))
    return Line(
        references[0].net, method, len(seconds), len(worst), min(worst, default=None),
        math.fsum(means) / len(means) if means else None, sum(w < -TOLERANCE for w in worst),
        min(gains, default=None), sum(g <= 0 for g in gains) if gains else None, unsound,
        math.fsum(seconds) / len(seconds) if seconds else None, tuple(errors),
    )


def relative(mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Relative differences; where theirs is NaN or infinite there is nothing to be worse than."""
    sizes = [abs(t) for t in theirs if math.isfinite(t)]
    typical = math.fsum(sizes) / len(sizes) if sizes else 1.0
    return [
        (m - t) / max(abs(t), typical, 1e-12) if math.isfinite(t) and not math.isnan(m)
        else (-math.inf if math.isnan(m) else 0.0)
        for m, t in zip(mine, theirs, strict=True)
    ]


def _above(mine: Sequence[float], sampled: Sequence[float]) -> int:
    """Rows whose bound is above a sampled value by more than float32's rounding of that value."""
    slack = 1e-5 * max(1.0, *(abs(s) for s in sampled))
    return sum(m > s + slack for m, s in zip(mine, sampled, strict=True))
