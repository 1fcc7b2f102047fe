"""``certify semantic``: certified ranges of image transformations."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from certify.cli.arguments import add_computation, count, fraction
from certify.cli.campaigns import effort_of, kept, threads_per_worker
from certify.cli.eval import add_campaign, add_source
from certify.cli.inputs import about, device_named
from certify.cli.streams import result, say
from certify.core.errors import EXIT_HOLDS, UsageError, one_line

_BLOCK = 50  # images per item
_EPILOG = """A transformation is NAME=LOW:HIGH with an optional width of the smallest pieces:
rotate=-30:30/0.25. Several are separated by commas and act in that order, geometric ones first:
scale=0.95:1.05,rotate=-5:5,brightness=-0.01:0.01. See certify supports --transforms.

'certified' is proved for every parameter in the range; 'no attack within' is the range in which
a grid of parameters found no other label: the truth lies between. With --out, DIR holds
items.jsonl, images.jsonl, summary.json, summary.txt and, for one parameter, ranges.svg; the same
command goes on where it was interrupted."""


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "semantic", help="certified ranges of rotations, hues, brightness ...", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="How far may an image be turned, moved or recoloured without changing its "
                    "label?")
    add_source(parser)
    parser.add_argument("--transform", required=True, type=transform, metavar="NAME=LOW:HIGH[/W]",
                        help="what may happen to the images, see below")
    parser.add_argument("--method", default="auto",
                        choices=("auto", "intervals", "planes", "crown-ibp", "forward", "crown",
                                 "alpha"),
                        help="default: auto, from cheap to tight")
    parser.add_argument("--attack", type=_points, default=241, metavar="N",
                        help="parameters tried by the attack, 0 for none (default: 241)")
    parser.add_argument("--semantics", choices=("real", "float32"), default="real",
                        help="the arithmetic the proofs speak of (default: real)")
    parser.add_argument("--certificates", action="store_true",
                        help="write a certificate per image into DIR/certificates")
    add_campaign(parser)
    add_computation(parser)
    parser.set_defaults(run=run)


def transform(text: str) -> list[tuple[str, float, float, float | None]]:
    """``rotate=-30:30/0.25,brightness=-0.1:0.1`` as names, ends and widths of pieces.

    Raises:
        argparse.ArgumentTypeError: not of that form.
    """
    found = []
    for part in text.split(","):
        name, equals, rest = part.partition("=")
        ends, slash, width = rest.partition("/")
        low, colon, high = ends.partition(":")
        if not (name and equals and colon):
            raise argparse.ArgumentTypeError(f"{part!r} is not NAME=LOW:HIGH, such as "
                                             "rotate=-30:30")
        found.append((name.strip(), fraction(low), fraction(high),
                      fraction(width) if slash else None))
    return found


def _points(text: str) -> int:
    return 0 if text == "0" else count(text)


def run(options: argparse.Namespace) -> int:
    """Certify what is open, write tables and picture, print the summary."""
    if options.out is None and (options.shard is not None or options.certificates):
        raise UsageError("--shard and --certificates need --out DIR")
    if options.out is not None:
        _run(options, Path(options.out))
        return EXIT_HOLDS
    with tempfile.TemporaryDirectory() as folder:
        _run(options, Path(folder) / "results")
    return EXIT_HOLDS


def _run(options: argparse.Namespace, out: Path) -> None:
    from certify.campaign.progress import Progress
    from certify.campaign.runner import run as run_campaign
    from certify.evaluation.transformed.block import described

    job, items = _job(options, out)
    watch = Progress(described, options.quiet, options.verbose)
    with kept(options.out):
        records = run_campaign(job, items, out, effort_of(options), watch)
    _report(records, len(items), out, options)


def _job(options: argparse.Namespace, out: Path) -> tuple[Any, list[Any]]:
    from certify.campaign.job import Item, Job
    from certify.evaluation.evaluate import check_fit
    from certify.evaluation.transformed.pieces import Pieces
    from certify.evaluation.transformed.sweep import Options, ladder
    from certify.importers.datasets import load_images
    from certify.importers.model_source import ModelSource
    from certify.semantic.transforms import image_graph

    source = ModelSource(options.model, options.factory)
    with about(options.data):
        images = load_images(options.data, options.split)
    with about(options.model, options.data):
        check_fit(source.graph(images.shape), images.x, images.y)
    ranges = [(name, low, high) for name, low, high, _ in options.transform]
    piece = {name: width for name, _, _, width in options.transform if width is not None}
    Pieces.of({name: (low, high) for name, low, high in ranges}, piece)
    names = [name for name, _, _ in ranges]
    image_graph(images.x[0], names)
    ladder(names, Options(method=options.method, semantics=options.semantics))
    total = min(len(images), options.limit or len(images))
    items = [Item(f"{start}", {"start": start, "stop": min(total, start + _BLOCK)})
             for start in range(0, total, _BLOCK)]
    settings = {"ranges": ranges, "piece": piece, "method": options.method,
                "attack": options.attack, "semantics": options.semantics, "split": options.split,
                "limit": options.limit, "device": device_named(options.device),
                "model_sha256": source.digest(), "data_sha256": images.sha256}
    local = {"model": os.path.abspath(options.model), "factory": options.factory,
             "data": options.data if options.data == "digits" else os.path.abspath(options.data),
             "certificates": str((out / "certificates").absolute()) if options.certificates else "",
             "threads": threads_per_worker(options.workers)}
    return Job("certify.evaluation.transformed.block:judge_block", settings, local,
               "certify.evaluation.transformed.block:prepare"), items


def _report(records: Sequence[Mapping[str, Any]], total: int, out: Path,
            options: argparse.Namespace) -> None:
    """Write one line per image, the summary and the picture; print the summary."""
    from certify.core.atomic import write_whole
    from certify.evaluation.transformed.block import findings_of
    from certify.report.transformed import as_svg, as_text, summary

    found = sorted((f for r in records for f in findings_of(r)), key=lambda f: f["index"])
    ranges = [(name, low, high) for name, low, high, _ in options.transform]
    said = ", ".join(f"{name} {low:g} to {high:g}" for name, low, high in ranges)
    title = f"{Path(options.model).name}: {said}"
    text = as_text(found, title)
    failed = [r for r in records if r["status"] != "done"]
    text += "".join(f"\nfailed, its images are unknown: {r['key']}: "
                    f"{one_line(r.get('error', ''), 150)}" for r in failed[:5])
    text += f"\n{len(records)} of {total} blocks finished" if len(records) < total else ""
    facts = {**summary(found), "transform": said, "method": options.method,
             "finished": len(records) == total, "failed_blocks": len(failed)}
    files = {"images.jsonl": "".join(json.dumps(f) + "\n" for f in found),
             "summary.json": json.dumps(facts, indent=1) + "\n", "summary.txt": text + "\n"}
    if len(ranges) == 1:
        files["ranges.svg"] = as_svg(found, title, *ranges[0][1:])
    for name, content in files.items():
        write_whole(out / name, content.encode("utf-8"))
    result(text)
    if options.out is not None and not options.quiet:
        say(f"lines, summary and pictures: {one_line(out, 200)}")
