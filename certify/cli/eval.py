"""``certify eval``: clean, certified and attacked accuracy of a classifier on labelled images."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certify.cli.arguments import add_computation, count, radius, seconds, seed, shard
from certify.cli.campaigns import effort_of, kept, threads_per_worker
from certify.cli.inputs import about, device_named
from certify.cli.streams import result, say
from certify.core.errors import EXIT_HOLDS, UsageError, one_line

if TYPE_CHECKING:
    from certify.campaign.job import Item, Job
    from certify.evaluation.finding import Finding, Tally

_BLOCKS = {False: 100, True: 10}  # images per item, without and with a complete search
_EPILOG = """MODEL is an ONNX file, or a checkpoint (.pt, .safetensors, .npz) with --factory, the
function of yours that builds the module; nothing in a file is executed. Inputs lie in [0, 1];
normalisation belongs into the model.

Robust accuracy lies between 'certified', what a verifier proved, and 'attacked', what no attack
broke. An image the search could not finish in time is unknown and counts as not certified. The
same command goes on where it was interrupted. With --out, DIR holds items.jsonl, examples.jsonl
(one line per image and radius), summary.json, summary.txt and accuracy.svg.

The exit code is 0 when all is done, 5 when an attack broke a certified image (the run stops)."""


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "eval", help="clean, certified and attacked accuracy", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Bracket the robust accuracy of a classifier on labelled images.")
    add_source(parser)
    parser.add_argument("--eps", required=True, type=radii, metavar="R[,R...]",
                        help="radii, for example 8/255, for values in [0, 1]")
    parser.add_argument("--norm", choices=("inf", "2", "1"), default="inf", help="default: inf")
    parser.add_argument("--verifier", default="union", help="default: union, of all but complete",
                        choices=("ibp", "crown-ibp", "crown", "alpha", "union", "complete"))
    parser.add_argument("--attack", choices=("none", "quick", "full"), default="full",
                        help="default: full, PGD and an ensemble like AutoAttack's")
    parser.add_argument("--timeout", type=seconds, default=60.0, metavar="S",
                        help="of the complete search, per image (default: 60)")
    parser.add_argument("--semantics", choices=("real", "float32"), default="real",
                        help="the arithmetic the proofs speak of (default: real)")
    add_campaign(parser)
    add_computation(parser)
    parser.set_defaults(run=run)


def add_source(parser: argparse.ArgumentParser) -> None:
    """MODEL, its factory, and the data."""
    parser.add_argument("model", metavar="MODEL", help="an ONNX file, or a checkpoint")
    parser.add_argument("--factory", metavar="PACKAGE.MODULE:FUNCTION",
                        help="builds the module a checkpoint belongs to")
    parser.add_argument("--data", required=True, metavar="DATA",
                        help="'digits', .npz, MNIST's IDX files, or a folder of images")
    parser.add_argument("--split", choices=("train", "test"), default="test",
                        help="where the data have both (default: test)")


def add_campaign(parser: argparse.ArgumentParser) -> None:
    """Which of the images, where to, and with how many processes."""
    parser.add_argument("--limit", type=count, metavar="N", help="only the first N images")
    parser.add_argument("--out", metavar="DIR", help="the folder of the results")
    parser.add_argument("--shard", type=shard, default=None, metavar="I/N",
                        help="only every N-th block of images, from number I on")
    parser.add_argument("--workers", type=count, default=1, metavar="N",
                        help="processes; they share the processor cores (default: 1)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default: 0")


def radii(text: str) -> list[float]:
    """``1/255,8/255``.

    Raises:
        argparse.ArgumentTypeError: not such numbers, or one twice.
    """
    found = [radius(part) for part in text.split(",")]
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} names a radius twice")
    return found


def run(options: argparse.Namespace) -> int:
    """Judge what is open, write and print the summary."""
    if options.shard is not None and options.out is None:
        raise UsageError("--shard needs --out: the folder where the shards come together")
    if options.out is not None:
        _evaluate(options, Path(options.out))
        return EXIT_HOLDS
    with tempfile.TemporaryDirectory() as folder:
        _evaluate(options, Path(folder))
    return EXIT_HOLDS


def _evaluate(options: argparse.Namespace, out: Path) -> None:
    from certify.campaign.progress import Progress
    from certify.campaign.runner import read_records
    from certify.campaign.runner import run as run_campaign
    from certify.evaluation.block import described

    job, items = job_of(options)
    shown = options.verbose and not options.quiet
    watch = _Strict(Progress(described, options.quiet, shown))
    with kept(options.out):
        if (out / "manifest.json").exists():
            for record in read_records(out):
                watch.check(record)
        records = run_campaign(job, items, out, effort_of(options), watch)
    _report(records, len(items), out, options)


class _Strict:
    """A `Watch` that stops the run at the first contradiction."""

    def __init__(self, watch: Any) -> None:
        self._watch = watch
        self.begin, self.end = watch.begin, watch.end

    def finished(self, record: Mapping[str, Any]) -> None:
        """Tell, then check; the record is on the disk."""
        self._watch.finished(record)
        self.check(record)

    def check(self, record: Mapping[str, Any]) -> None:
        """Stop at a contradiction."""
        from certify.evaluation.block import findings_of
        from certify.evaluation.evaluate import refuse_contradictions

        refuse_contradictions(findings_of(record))


def job_of(options: argparse.Namespace) -> tuple[Job, list[Item]]:
    """What is to be done, once it is clear that model and data can be used."""
    from certify.campaign.job import Item, Job
    from certify.evaluation.evaluate import check_fit
    from certify.evaluation.plan import Plan
    from certify.importers.datasets import load_images
    from certify.importers.model_source import ModelSource
    from certify.settings import DEFAULT_MEMORY

    source = ModelSource(options.model, options.factory)
    with about(options.data):
        images = load_images(options.data, options.split)
    total = min(len(images), options.limit or len(images))
    with about(options.model, options.data):
        check_fit(source.graph(images.shape), images.x, images.y)
    plan = {
        "norm": options.norm, "verifier": options.verifier, "attack": options.attack,
        "timeout": options.timeout, "semantics": options.semantics, "seed": options.seed,
        "device": device_named(options.device), "memory": options.memory or DEFAULT_MEMORY,
    }
    size = _BLOCKS[Plan(options.eps[0], **plan).complete]
    items = [Item(f"{eps!r}:{start}", {"eps": eps, "start": start, "first": eps == options.eps[0],
                                       "stop": min(total, start + size)})
             for eps in options.eps for start in range(0, total, size)]
    settings = {**plan, "model_sha256": source.digest(), "data_sha256": images.sha256,
                "split": options.split, "eps": options.eps, "limit": options.limit}
    data = options.data if options.data == "digits" else os.path.abspath(options.data)
    local = {"model": os.path.abspath(options.model), "factory": options.factory, "data": data,
             "threads": threads_per_worker(options.workers)}
    return Job("certify.evaluation.block:judge_block", settings, local,
               "certify.evaluation.block:prepare"), items


def _report(records: Sequence[Mapping[str, Any]], total: int, out: Path,
            options: argparse.Namespace) -> None:
    """Write one line per image, the summary and the picture; print the summary."""
    from certify.core.atomic import write_whole
    from certify.evaluation.block import findings_of
    from certify.evaluation.finding import tally
    from certify.report.robustness import as_svg, as_text

    findings = [f for record in records for f in findings_of(record)]
    tallies = [tally(mine) for eps in options.eps if (mine := _within(findings, eps))]
    rows = [_row(t) for t in tallies]
    tight = [v for r in records if r["status"] == "done" for v in r["result"]["tightness"] or ()]
    failed = [r for r in records if r["status"] != "done"]
    lines = [as_text(rows), f"propagation tightness {sum(tight) / max(1, len(tight)):.3f}"]
    lines += [f"failed, its images are unknown: {r['key']}: {one_line(r.get('error', ''), 150)}"
              for r in failed[:5]]
    lines += [f"{len(records)} of {total} blocks finished"] if len(records) < total else []
    text = "\n".join(lines)
    summary = {"rows": rows, "tightness": sum(tight) / len(tight) if tight else None,
               "failed_blocks": len(failed), "finished": len(records) == total,
               "norm": options.norm, "verifier": options.verifier, "attack": options.attack}
    files = {
        "examples.jsonl": "".join(json.dumps(f.record()) + "\n" for f in findings),
        "summary.json": json.dumps(summary, indent=1) + "\n", "summary.txt": text + "\n",
        "accuracy.svg": as_svg(rows, f"{Path(options.model).name}, l{options.norm}, "
                                     f"{options.verifier}"),
    }
    for name, content in files.items():
        write_whole(out / name, content.encode("utf-8"))
    result(text)
    if options.out is not None and not options.quiet:
        say(f"lines, summary and picture: {one_line(out, 200)}")


def _within(findings: Sequence[Finding], eps: float) -> list[Finding]:
    return [f for f in findings if f.eps == eps]


def _row(found: Tally) -> dict[str, float]:
    by = {f"by {name}": share for name, share in found.certified_by.items()}
    return {"eps": found.eps, "images": found.count, "clean": found.clean,
            "certified": found.certified, "attacked": found.attacked, "unknown": found.unknown,
            **by}
