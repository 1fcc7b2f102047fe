"""``certify report``: tables and curves from runs of ``certify smooth`` and from published logs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certify.cli.arguments import add_verbosity, fraction
from certify.cli.streams import result, say
from certify.core.errors import EXIT_HOLDS, BadInput, CannotWrite, UsageError, one_line

if TYPE_CHECKING:
    from certify.report.smoothed import Run

_EPILOG = """A RUN is the --out folder of certify smooth, or a tab-separated log with the columns
idx label predict radius correct time. With --sigma, --n and --alpha a log is compared with what is
said of it: a radius that the declared votes cannot give is reported."""


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "report", help="certified accuracy of runs and published logs", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compare runs: certified accuracy over radius, mean radius, class by class.")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a folder or a log")
    parser.add_argument("--sigma", type=fraction, metavar="S", help="what logs are said to be from")
    parser.add_argument("--n", type=int, default=100_000, metavar="N", help="default: 100000")
    parser.add_argument("--alpha", type=fraction, default=0.001, metavar="A", help="default: 0.001")
    parser.add_argument("--envelope", action="store_true",
                        help="add the best of all runs per input, which no classifier certifies")
    parser.add_argument("--classes", action="store_true", help="certified accuracy class by class")
    parser.add_argument("--out", metavar="DIR", help="write table.md and curve.svg there")
    add_verbosity(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the table; write it and the curve where asked."""
    from certify.core.atomic import write_whole
    from certify.report.curve import curve
    from certify.report.smoothed import as_markdown, as_text, class_shares, envelope

    runs = [_read(path, options) for path in options.runs]
    if options.envelope:
        if len(runs) < 2:
            raise UsageError("--envelope needs at least two runs")
        runs.append(envelope(runs))
    result(as_text(runs))
    if options.classes:
        for each in runs:
            shares = "  ".join(f"{c}: {100 * s:.1f}" for c, s in class_shares(each.rows).items())
            result(f"{each.name}, certified by class in percent: {shares}")
    if options.out is not None:
        out = Path(options.out)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise CannotWrite(f"{one_line(out, 120)}: {problem.strerror}") from None
        write_whole(out / "table.md", as_markdown(runs).encode("utf-8"))
        write_whole(out / "curve.svg", curve(runs).encode("utf-8"))
    return EXIT_HOLDS


def _read(path: str, options: argparse.Namespace) -> Run:
    from certify.report.smoothed import Run

    place = Path(path)
    if place.is_dir():
        return _campaign(place)
    from certify.report.cohen import doubts, read_tsv

    rows = read_tsv(place)
    if options.sigma is not None:
        largest, second = (_radius(k, options) for k in (options.n, options.n - 1))
        for line in doubts(rows, largest, second):
            say(f"warning: {one_line(path, 120)}: {line}")
    settings = {} if options.sigma is None else {"alpha": options.alpha}
    return Run(place.name, tuple(rows), settings, len(rows))


def _radius(votes: int, options: argparse.Namespace) -> float:
    from certify.smoothing.confidence import clopper_pearson
    from certify.smoothing.radii import gaussian_l2

    if options.n < 2 or not 0 < options.alpha < 1:
        raise UsageError("--n must be at least 2, and --alpha strictly between 0 and 1")
    return float(gaussian_l2(clopper_pearson(votes, options.n, options.alpha).q, options.sigma))


def _campaign(folder: Path) -> Run:
    from certify.campaign.manifest import read_manifest
    from certify.campaign.runner import read_records
    from certify.report.smoothed import Run, rows

    manifest = read_manifest(folder)
    if "noise" not in manifest["settings"]:
        raise BadInput(f"{one_line(folder, 120)}: not a folder of certify smooth")
    total = int(manifest["items"]["count"])
    return Run(folder.name, tuple(rows(read_records(folder))), manifest["settings"], total)
