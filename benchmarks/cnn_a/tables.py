"""Verified accuracy per network, beside what others have published."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import header
from benchmarks.report import table

PUBLISHED: dict[str, Any] = json.loads(
    (Path(__file__).resolve().parent / "published.json").read_text(encoding="utf-8"))
_TITLES = ("network", "images", "clean %", "verified %", "attack bound %", "unknown", "failed",
           "mean s", "median s", "published verified % (200 images)", "published attack bound %")
_BEST = ("β-CROWN", "GCP-CROWN", "BICCOS", "Clip+BICCOS")


def plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a line of the journal says about its image."""
    found = record["result"] or {"correct": None, "verdict": record["status"], "margin": None,
                                 "seconds": record["seconds"], "reason": record["error"]}
    return {**record["item"], **found, "cpu_seconds": record["cpu_seconds"]}


def report(machine: dict[str, Any], lines: Sequence[Mapping[str, Any]], asked: int,
           settings: Mapping[str, Any]) -> str:
    """Everything as markdown.

    Args:
        lines: of all finished images, as `plain` gives them.
        asked: how many images per network there are to be.
        settings: of the job.
    """
    nets = list(dict.fromkeys(line["net"] for line in lines))
    rows = [_row(net, [line for line in lines if line["net"] == net]) for net in nets]
    commits = sorted({line["commit"] for line in lines if "commit" in line})
    return "\n".join([
        "# CNN-A networks", "", header(machine), "",
        f"The first {asked} images per network, at most {settings['timeout']:g} s each, with "
        f"{settings['threads']} threads; decided at commit {', '.join(commits) or '-'}.",
        "L-infinity balls in pixel space: MNIST 0.3, CIFAR-10 2/255, within [0, 1]. A",
        "misclassified image is not searched and counts as not verified. Verified: proved for real",
        "arithmetic, all rounding accounted for. Attack bound: not misclassified and no",
        "counterexample found, so no verifier can prove more. Unknown: neither proved nor refuted",
        "in time. Failed: no answer; clean is of the others. Mean and median: wall seconds of the",
        "verified ones.", "",
        table(_TITLES, rows), "",
        f"Published figures are about 200 images and a GPU: {', '.join(_BEST)}. An image is "
        f"{100 / asked:.2g} % here, and the first {asked} images may be easier or harder than "
        "the 200.", "",
        _others(nets), "",
        *(f"* {name}: {source}" for name, source in PUBLISHED["sources"].items()), "",
        *_failures(lines),
    ]).rstrip()


def _row(net: str, lines: Sequence[Mapping[str, Any]]) -> list[Any]:
    verdicts, count = Counter(line["verdict"] for line in lines), len(lines)
    seconds = [line["seconds"] for line in lines if line["verdict"] == "holds"]
    wrong, failed = verdicts["misclassified"], sum(_failed(line) for line in lines)
    unknown = count - wrong - failed - verdicts["holds"] - verdicts["violated"]
    theirs = PUBLISHED["nets"][net]

    def percent(images: int, of: int = count) -> str | None:
        return f"{100 * images / of:.1f}" if of else None

    return [
        net, count, percent(count - failed - wrong, count - failed), percent(verdicts["holds"]),
        percent(count - wrong - verdicts["violated"]), unknown, failed,
        statistics.mean(seconds) if seconds else None,
        statistics.median(seconds) if seconds else None,
        " / ".join(f"{theirs[name]['verified']:.1f}" for name in _BEST),
        f"{theirs['attack bound']['verified']:.1f}",
    ]


def _others(nets: Sequence[str]) -> str:
    """All published figures: percent, and seconds in brackets."""
    names = list(PUBLISHED["sources"])

    def cell(found: Mapping[str, float]) -> str:
        seconds = f" ({found['seconds']:g} s)" if "seconds" in found else ""
        return f"{found['verified']:.1f}{seconds}"

    return table(("published", *names),
                 [[net, *(cell(PUBLISHED["nets"][net][name]) for name in names)] for net in nets])


def _failed(line: Mapping[str, Any]) -> bool:
    """No answer at all: an error, a crash, or a process that had to be ended."""
    return line["correct"] is None


def _failures(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [line for line in lines if _failed(line)]
    return ["Failed:", "", *(f"* {line['net']} image {line['index']}: {line['verdict']}, "
                             f"{line['reason']}" for line in found)] if found else []
