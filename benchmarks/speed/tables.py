"""The speed tables in words and numbers."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import header
from benchmarks.report import table
from benchmarks.speed.cell import PUBLISHED

_TIMES = ("net", "method", "ours CPU ms", "wall ms", "real CPU ms", "peer CPU ms", "published",
          "ours/peer", "ours MB", "real MB", "peer MB", "margin", "peer margin")
_FLOORS = ("net", "method", "MFLOP as run", "by definition", "floor ms", "ours/floor",
           "real floor ms", "real/floor")
_ABOUT = f"""CPU milliseconds of one call after warm-up: lower bounds of the specification's rows
with every intermediate bound, model and property already read. *ours* is plain float32, the
arithmetic of the peer; *real* is float64 with all rounding accounted for.

* Peer: auto_LiRPA in the same run. Published: {PUBLISHED['source']}. ours/peer takes the same run
  where there is one, else the published number.
* `alpha-20` optimises as many steps as the peer does, `alpha` has our defaults.
* MB: resident memory at its largest. Margin: mean over the rows of the first instance.
* A star: one call took too long to repeat, or to repeat after warm-up."""
_FLOOR = """Floor: what the matrix products and convolutions that really ran would take at the
measured rate of a large product, in CPU milliseconds. By definition: MFLOP had every pass been a
full matrix pass and every optimiser used all its steps."""


def report(machine: dict[str, Any], cells: list[dict[str, Any]]) -> str:
    """Everything as markdown.

    Args:
        cells: with ``net``, ``method``, and records ``search``, ``real``, ``peer``, ``published``.
    """
    rates = {name: 1e6 * rate["cpu"] for name, rate in machine["gflops"].items()}
    notes = [f"* {c['net']} {c['method']}, {line}" for c in cells for line in failures(c)]
    return "\n".join([
        "# Speed", "", header(machine), "", _ABOUT, "", table(_TIMES, [_times(c) for c in cells]),
        "", _FLOOR, "", table(_FLOORS, [_floors(c, rates) for c in cells]),
        *(["", "What failed:", "", *notes] if notes else []),
    ])


def failures(cell: dict[str, Any]) -> list[str]:
    """What went wrong, one line each."""
    return [f"{who}: {cell[who]['error']}" for who in ("search", "real", "peer")
            if cell[who] and "error" in cell[who]]


def _times(cell: dict[str, Any]) -> list[Any]:
    search, real, peer, known = (cell[k] or {} for k in ("search", "real", "peer", "published"))
    mine, base = search.get("cpu_ms"), peer.get("cpu_ms") or known.get("cpu_ms")
    memory = peer.get("peak_mb") or float(known.get("peak_mb", (0, 0))[1]) or None
    return [
        cell["net"], cell["method"], _starred(search), search.get("wall_ms"), _starred(real),
        _starred(peer), known.get("cpu_ms"), mine / base if mine and base else None,
        search.get("peak_mb"), real.get("peak_mb"), memory, search.get("margin"),
        peer.get("margin"),
    ]


def _starred(record: dict[str, Any]) -> Any:
    value = record.get("cpu_ms")
    return f"{value:.0f}*" if value is not None and not record["calls"] else value


def _floors(cell: dict[str, Any], rates: dict[str, float]) -> list[Any]:
    """Rates are in operations per CPU millisecond."""
    work, dense = (cell["search"].get(key) for key in ("flops", "dense_flops"))
    row = [cell["net"], cell["method"], *(None if w is None else w / 1e6 for w in (work, dense))]
    for who, precision in (("search", "float32"), ("real", "float64")):
        work = cell[who].get("flops")
        floor = work / rates[precision] if work else None
        row += [floor, cell[who]["cpu_ms"] / floor if floor else None]
    return row
