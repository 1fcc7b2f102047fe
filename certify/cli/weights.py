"""``certify weights``: is this network safe with its weights rounded to 8 bits?"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certify.cli.arguments import add_verbosity, count, radius
from certify.cli.eval import add_source
from certify.cli.inputs import about
from certify.cli.streams import result, say
from certify.cli.table import columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from certify.evaluation.quantised import Rounding

_EPILOG = """Every weight of a linear layer or convolution may be off by half a step; a step is the
largest weight of its output channel over 2^(bits-1) - 1. 'certified' is proved for every such
network at once, whatever the way of rounding; 'rounded' is the accuracy of the one network that is
rounded to the nearest step."""


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "weights", help="labels that survive rounding of the weights", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Which labels are safe against rounding of the weights?")
    add_source(parser)
    parser.add_argument("--bits", type=bits, default=[8, 6, 4], metavar="N[,N...]",
                        help="of the signed integers (default: 8,6,4)")
    parser.add_argument("--eps", type=radius, default=0.0, metavar="R",
                        help="inputs may change by this much as well (default: 0)")
    parser.add_argument("--limit", type=count, default=100, metavar="N",
                        help="only the first N inputs (default: 100)")
    parser.add_argument("--out", metavar="FILE", help="one JSON line per input and bits")
    add_verbosity(parser)
    parser.set_defaults(run=run)


def bits(text: str) -> list[int]:
    """``8,6,4``.

    Raises:
        argparse.ArgumentTypeError: not whole numbers from 2 to 32.
    """
    parts = text.split(",")
    if not all(p.isdigit() and 2 <= int(p) <= 32 for p in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers from 2 to 32")
    return [int(p) for p in parts]


def run(options: argparse.Namespace) -> int:
    """Certify and print; the exit code is 0."""
    from certify.core.atomic import write_whole
    from certify.evaluation.evaluate import check_fit
    from certify.evaluation.quantised import evaluate_quantised
    from certify.importers.datasets import load_images
    from certify.importers.model_source import ModelSource

    with about(options.data):
        images = load_images(options.data, options.split)
    with about(options.model, options.data):
        network = ModelSource(options.model, options.factory).graph(images.shape)
        check_fit(network, images.x, images.y)
    found: list[Rounding] = []
    here = slice(0, options.limit)
    for each in options.bits:
        found += evaluate_quantised(network, images.x[here], images.y[here], [each], options.eps)
        if not options.quiet:
            say(f"{each} bits done")
    if options.out is not None:
        lines = "".join(json.dumps(_plain(f)) + "\n" for f in found)
        write_whole(Path(options.out), lines.encode("ascii"))
    result(columns(_table(found, options.bits)))
    return 0


def _plain(found: Rounding) -> dict[str, Any]:
    plain = dataclasses.asdict(found)
    return {**plain, "margin": found.margin if found.certified else None}


def _table(found: Sequence[Rounding], every: Sequence[int]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("bits", "inputs", "clean %", "rounded %", "certified %")]
    for each in every:
        mine = [f for f in found if f.bits == each]
        shares = [100 * sum(part) / max(1, len(mine)) for part in (
            [f.predicted == f.label for f in mine], [f.rounded == f.label for f in mine],
            [f.certified for f in mine])]
        rows.append((str(each), str(len(mine)), *(f"{s:.1f}" for s in shares)))
    return rows
