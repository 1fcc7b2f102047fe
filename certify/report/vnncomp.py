"""The competition's table of results."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from certify.report.row import Row

NOTHING_PREPARED = 0.0  # seconds: reading and converting the network counts as run time


def results_csv(rows: Sequence[Row]) -> str:
    """Category, network, property, prepare time, result, run time; no header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow([row.family, row.onnx, row.vnnlib, f"{NOTHING_PREPARED:.3f}", row.word,
                         f"{row.seconds:.3f}"])
    return text.getvalue()
