"""Verified accuracy of the five CNN-A networks, beside published figures.

One JSON line per image goes to ``OUT/cnn_a/items.jsonl`` as soon as it is decided, and the same
command goes on where the last one ended. A failed image is not tried again. Remove that folder to
begin anew.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.child import THREADS, environment
from benchmarks.cnn_a.tables import PUBLISHED, plain, report
from benchmarks.data import folder
from benchmarks.machine import describe, header
from benchmarks.report import RESULTS, write
from certify.campaign.job import Item, Job
from certify.campaign.progress import Progress
from certify.campaign.runner import Effort, read_records, run
from certify.core.errors import CertifyError

NETS = tuple(PUBLISHED["nets"])
_IMAGES = 200
_GRACE = 60.0  # seconds beyond the limit: importing the network, on a busy machine


def main() -> int:
    """Decide what is open, print and write the table; exit code 1 when an image failed."""
    options = _arguments()
    place = folder("nets/sdp")
    lines = options.out / "cnn_a"
    machine = describe()
    job, effort = _job(options, place, machine["commit"])
    print(header(machine), "\n", file=sys.stderr)
    machine = _begun(options.out, lines) or machine
    settings = {**job.settings, **job.local}
    watch = _Tables(options, machine, settings)
    try:
        run(job, _items(place, options), lines, effort, watch)
    except CertifyError as problem:
        sys.exit(str(problem))
    print(watch.tables())
    return int(any(record["result"] is None for record in read_records(lines)))


class _Tables(Progress):
    """Prints a line per image, and writes the tables after each."""

    def __init__(self, options: argparse.Namespace, machine: dict[str, Any],
                 settings: Mapping[str, Any]) -> None:
        super().__init__(_described, verbose=True)
        self._options, self._machine, self._settings = options, machine, settings

    def finished(self, record: Mapping[str, Any]) -> None:
        """Say it and write the tables."""
        super().finished(record)
        self.tables()

    def tables(self) -> str:
        """The report on all finished images, which is also written."""
        found = [plain(r) for r in read_records(self._options.out / "cnn_a")]
        text = report(self._machine, found, self._options.images, self._settings)
        write(self._options.out, "cnn_a", text,
              {"machine": self._machine, "timeout": self._options.timeout, "images": found})
        return text


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cnn_a", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", metavar="NET", choices=NETS, default=NETS,
                        help=f"default: all, {' '.join(NETS)}")
    parser.add_argument("--images", type=int, choices=range(1, _IMAGES + 1), default=50,
                        metavar="N", help=f"the first N of {_IMAGES} (default: 50)")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S",
                        help="per image (default: 120)")
    parser.add_argument("--workers", type=int, choices=range(1, 257), default=1, metavar="N",
                        help="images at a time; they share the processor cores (default: 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    return parser.parse_args()


def _items(place: Path, options: argparse.Namespace) -> list[Item]:
    """Image by image, so that an interrupted run says something about every network."""
    from benchmarks.cnn_a.networks import dataset
    from certify import load_array

    labels = {net: load_array(place / f"{dataset(net)}_y_sdp.npy") for net in options.nets}
    return [Item(f"{net}:{i}", {"net": net, "index": i, "label": int(labels[net][i])},
                 options.timeout) for i in range(options.images) for net in options.nets]


def _job(options: argparse.Namespace, place: Path, commit: str) -> tuple[Job, Effort]:
    cores = len(os.sched_getaffinity(0))
    threads = max(1, min(THREADS, cores // options.workers))
    job = Job("benchmarks.cnn_a.decide:decide", {"timeout": options.timeout, "threads": threads},
              {"folder": str(place.absolute()), "commit": commit},
              "benchmarks.cnn_a.decide:prepare", grace=_GRACE)
    calm = {**environment(), "OMP_NUM_THREADS": str(threads)}
    return job, Effort(options.workers, environment=calm)


def _begun(out: Path, lines: Path) -> dict[str, Any] | None:
    """The machine as it was when this campaign began; None when it begins now."""
    file = out / "cnn_a.json"
    if not (lines.is_dir() and file.is_file()):
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["machine"]
    return found


def _described(record: Mapping[str, Any]) -> tuple[str, str, bool]:
    """A finished image for the progress line."""
    line = plain(record)
    margin = "" if line["margin"] is None else f", margin {line['margin']:.3g}"
    words = f"{line['net']} image {line['index']}: {line['verdict']}, {line['seconds']:.1f} s"
    return line["verdict"], words + margin, line["correct"] is None


if __name__ == "__main__":
    sys.exit(main())
