"""Certified accuracy of smoothed classifiers, from the records of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from certify.core.errors import BadInput

_POINTS = 10  # columns of a table


@dataclass(frozen=True)
class Row:
    """What came of one input.

    Attributes:
        predict: the certified class; -1 where the classifier abstained.
        radius: 0 where it abstained.
    """

    index: int
    label: int
    predict: int
    radius: float
    seconds: float = 0.0
    samples: int = 0

    @property
    def correct(self) -> bool:
        """Certified, and as the class of the data."""
        return self.predict == self.label and self.radius > 0


@dataclass(frozen=True)
class Run:
    """The rows of one run.

    Attributes:
        total: inputs it was about; fewer rows mean that it is unfinished.
        envelope: the best of several runs per input: no classifier, and no certificate.
    """

    name: str
    rows: tuple[Row, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    total: int = 0
    envelope: bool = False


def rows(records: Iterable[Mapping[str, Any]]) -> list[Row]:
    """From the journal of ``certify smooth``; inputs that failed count as abstained."""
    found = []
    for record in records:
        item, done = record["item"], record.get("result") or {}
        counts = done.get("counts", {}).values()
        found.append(Row(item["index"], item["label"], done.get("predict", -1),
                         done.get("radius", 0.0), done.get("seconds", record["seconds"]),
                         sum(map(sum, counts))))
    return found


def certified_accuracy(found: Sequence[Row], radius: float) -> float:
    """Share of all inputs that are certified as their class with more than this radius."""
    return sum(row.correct and row.radius > radius for row in found) / max(1, len(found))


def average_radius(found: Sequence[Row]) -> float:
    """Mean over all inputs, 0 where the class is wrong or was not certified (Zhai et al. 2020)."""
    return sum(row.radius for row in found if row.correct) / max(1, len(found))


def abstention(found: Sequence[Row]) -> float:
    """Share of inputs without a certificate."""
    return sum(row.predict < 0 for row in found) / max(1, len(found))


def envelope(runs: Sequence[Run], name: str = "envelope") -> Run:
    """The largest radius of any run, input by input. Choosing so is not a classifier: no single
    certificate says this; it is a bound on what choosing could reach.

    Raises:
        BadInput: the runs are about different inputs.
    """
    tables = [{row.index: row for row in run.rows} for run in runs]
    if not tables or any(set(t) != set(tables[0]) for t in tables):
        raise BadInput("an envelope needs runs about the same inputs")
    best = [max((t[i] for t in tables), key=lambda row: (row.correct, row.radius))
            for i in sorted(tables[0])]
    return Run(f"{name} (best of {len(runs)} per input; no certificate)", tuple(best), {},
               len(best), True)


def class_shares(found: Sequence[Row], radius: float = 0.0) -> dict[int, float]:
    """Certified accuracy by class: where smoothing shrinks some classes more than others."""
    labels = sorted({row.label for row in found})
    return {label: certified_accuracy([r for r in found if r.label == label], radius)
            for label in labels}


def radii_of(runs: Sequence[Run]) -> list[float]:
    """Round radii from 0 to the largest certified one."""
    most = max([row.radius for run in runs for row in run.rows if row.correct], default=0.0)
    step = next((s for s in _STEPS if s * _POINTS >= most), most / _POINTS)
    return [round(step * k, 10) for k in range(_POINTS) if k == 0 or step * k < most]


_STEPS = tuple(m * 10.0**e for e in range(-6, 5) for m in (1, 2, 2.5, 5))


def table(runs: Sequence[Run]) -> list[list[str]]:
    """Head and one line per run: accuracy in percent at each radius, average radius, abstention."""
    radii = radii_of(runs)
    head = ["run", "inputs", *(f"r > {r:g}" for r in radii), "mean r", "abstained",
            "samples per input"]
    lines = []
    for run in runs:
        shares = [f"{100 * certified_accuracy(run.rows, r):.1f}" for r in radii]
        samples = sum(row.samples for row in run.rows) / max(1, len(run.rows))
        lines.append([run.name, f"{len(run.rows)}", *shares, f"{average_radius(run.rows):.4f}",
                      f"{100 * abstention(run.rows):.1f} %", f"{samples:.0f}" if samples else "-"])
    return [head, *lines]


def as_text(runs: Sequence[Run]) -> str:
    """For a terminal."""
    cells = table(runs)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in
             zip(line[1:], widths[1:], strict=True))]).rstrip() for line in cells]
    return "\n".join([*lines, *caption(runs)])


def as_markdown(runs: Sequence[Run]) -> str:
    """For a repository."""
    head, *lines = table(runs)
    rule = ["---", *["---:"] * (len(head) - 1)]
    text = ["| " + " | ".join(line) + " |" for line in (head, rule, *lines)]
    return "\n".join([*text, "", *(f"* {line}" for line in caption(runs)), ""])


def caption(runs: Sequence[Run]) -> list[str]:
    """What the numbers mean, and how sure they are."""
    said = ["certified accuracy in percent of all inputs; abstentions and errors count as radius 0"]
    for run in runs:
        if run.envelope:
            said.append(f"{run.name}: an envelope over runs, not what any classifier certifies")
        if len(run.rows) < run.total:
            said.append(f"{run.name}: {len(run.rows)} of {run.total} inputs finished")
    if any(run.settings.get("method") == "levels" for run in runs):
        said.append("certificates of the method levels hold for certain")
    alphas = {run.settings["alpha"] for run in runs
              if run.settings.get("alpha") is not None and run.settings.get("method") != "levels"}
    if alphas:
        said.append("each certificate holds with probability " + " or ".join(
            f"{1 - a:g}" for a in sorted(alphas)) + _wrong(runs, max(alphas)))
    return said


def _wrong(runs: Sequence[Run], alpha: float) -> str:
    """How many of a table's certificates may be wrong: the 99 % quantile of a binomial."""
    from scipy.stats import binom

    count = max((len(run.rows) for run in runs), default=0)
    most = int(binom.ppf(0.99, count, alpha)) if count else 0
    return f"; of {count}, with probability 0.99 at most {most} are wrong"
