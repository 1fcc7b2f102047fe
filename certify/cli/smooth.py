"""``certify smooth``: certified radii of a smoothed classifier, one line per input, resumed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certify.cli.arguments import add_verbosity, count, fraction, seed, shard, workers
from certify.cli.campaigns import effort_of, kept
from certify.cli.inputs import device_named
from certify.cli.streams import result, say
from certify.core.errors import EXIT_HOLDS, UsageError, one_line

if TYPE_CHECKING:
    from certify.campaign.job import Item, Job
    from certify.importers.datasets import Images

_EPILOG = """MODEL is an ONNX file, or a checkpoint with --factory package.module:function that
builds its module. --data is 'digits', an .npz file with x and y, MNIST's IDX files or a folder of
images.

The same command again goes on where the last one ended. DIR then holds items.jsonl (one line per
input, with all votes), summary.md, curve.svg and radii.tsv. With --radius only the question "is the
radius at least r?" is answered, with far fewer samples. Without --out nothing is kept.

--noise draws other noise: uniform:width=0.5, laplace:spread=0.2, replace:rate=0.2,levels=256,
flip:appear=0.1,vanish=0.3, split-levels:width=1 (with --method levels, deterministic)."""
ALIASES = {"gaussian": "two-stage"}


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "smooth", help="certified radii by randomized smoothing", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Certify a smoothed classifier on labelled inputs.")
    parser.add_argument("model", metavar="MODEL", help="an ONNX file or a checkpoint")
    parser.add_argument("--factory", metavar="M:F", help="function that builds the module")
    parser.add_argument("--right", metavar="MODEL",
                        help="the right branch of the dual methods (default: the model itself)")
    parser.add_argument("--data", required=True, metavar="SOURCE", help="labelled inputs")
    parser.add_argument("--split", choices=("train", "test"), default="test", help="default: test")
    parser.add_argument("--limit", type=count, metavar="N", help="only the first N inputs")
    parser.add_argument("--every", type=count, default=1, metavar="K", help="only every K-th input")
    noise = parser.add_mutually_exclusive_group(required=True)
    noise.add_argument("--sigma", type=fraction, metavar="S",
                       help="standard deviation of Gaussian noise, in units of the inputs")
    noise.add_argument("--noise", metavar="NAME:P=V", help="other noise, see below")
    parser.add_argument("--method", default="gaussian", metavar="M",
                        help="see certify supports --smoothing-methods (default: gaussian)")
    parser.add_argument("--n0", type=count, default=100, metavar="N",
                        help="votes that pick the class (default: 100)")
    parser.add_argument("--n", type=_votes, default=100_000, metavar="N",
                        help="votes that bound its probability (default: 100000)")
    parser.add_argument("--alpha", type=fraction, default=0.001, metavar="A",
                        help="probability that an input's certificate is wrong (default: 0.001)")
    parser.add_argument("--norm", choices=("2", "1", "inf", "0"), help="of the radius")
    parser.add_argument("--radius", type=fraction, metavar="R",
                        help="answer only whether the radius is at least R")
    parser.add_argument("--soundness", choices=("real", "exact-grid"), default="real",
                        help="exact-grid closes the leak of floating-point addition")
    parser.add_argument("--batch", type=count, default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--autocast", choices=("bfloat16", "float16"), help="run the model in it")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default: 0")
    parser.add_argument("--out", metavar="DIR", help="the folder of the results")
    parser.add_argument("--workers", type=workers, default=1, metavar="N", help="inputs at a time")
    parser.add_argument("--shard", type=shard, metavar="I/N", help="only every N-th input")
    parser.add_argument("--certificates", action="store_true",
                        help="write every certificate to DIR/certificates")
    add_verbosity(parser)
    parser.set_defaults(run=run)


def _votes(text: str) -> int:
    """A whole number from 1 to 10^10.

    Raises:
        argparse.ArgumentTypeError: not such a number.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 12 and 0 < int(text) <= 10**10):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 10^10")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Certify what is open, write tables and curve, print the summary."""
    import tempfile

    if options.out is None and (options.shard or options.certificates):
        raise UsageError("--shard and --certificates need --out DIR")
    if options.device == "cuda":
        device_named("cuda")
    if options.out is not None:
        return _run(options, Path(options.out))
    with tempfile.TemporaryDirectory() as folder:
        return _run(options, Path(folder) / "results")


def _run(options: argparse.Namespace, out: Path) -> int:
    from certify.campaign.progress import Progress
    from certify.campaign.runner import run
    from certify.cli.smooth_input import tried
    from certify.importers.datasets import load_images

    images = load_images(options.data, options.split)
    job = _job(options, images, out)
    tried({**job.settings, **job.local})  # refused now, not once per input
    watch = Progress(_described, options.quiet, options.verbose)
    with kept(options.out):
        run(job, _items(options, images), out, effort_of(options), watch)
    return _report(options, out)


def _items(options: argparse.Namespace, images: Images) -> list[Item]:
    from certify.campaign.job import Item

    chosen = range(0, len(images), options.every)
    return [Item(f"{i:06d}", {"index": i, "label": int(images.y[i])})
            for i in list(chosen)[: options.limit]]


def _job(options: argparse.Namespace, images: Images, out: Path) -> Job:
    from certify.campaign.job import Job
    from certify.importers.model_source import ModelSource

    sources = [ModelSource(options.model, options.factory)]
    if options.right is not None:
        sources.append(ModelSource(options.right, options.factory))
    settings = {
        "models": [source.digest() for source in sources], "data": images.sha256,
        "noise": _noise(options), "method": ALIASES.get(options.method, options.method),
        "n0": options.n0, "n": options.n, "alpha": options.alpha, "norm": options.norm,
        "radius": options.radius, "soundness": options.soundness, "seed": options.seed,
        "autocast": options.autocast or "",
    }
    folder = str((out / "certificates").absolute()) if options.certificates else ""
    local = {"paths": [str(Path(s.path).absolute()) for s in sources], "factory": options.factory,
             "source": str(options.data), "split": options.split, "batch": options.batch,
             "device": options.device, "certificates": folder}
    return Job("certify.cli.smooth_input:certify_input", settings, local)


def _noise(options: argparse.Namespace) -> dict[str, Any]:
    """Name and parameters."""
    if options.noise is None:
        grid = options.soundness == "exact-grid"
        more = {"levels": 255.0, "fine": 16.0} if grid else {}
        return {"name": "gaussian-grid" if grid else "gaussian", "sigma": options.sigma, **more}
    if options.soundness != "real":
        raise UsageError("--soundness exact-grid is for Gaussian noise: give --sigma")
    from certify.smoothing.noise import noise_from

    name, _, rest = options.noise.partition(":")
    given: dict[str, float] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"--noise {one_line(options.noise, 60)!r}: write NAME:parameter=value")
        try:
            given[key] = fraction(value)
        except argparse.ArgumentTypeError as problem:
            raise UsageError(f"--noise: {problem}") from None
    return {"name": name, **noise_from(name, _with_defaults(name, given)).parameters}


def _with_defaults(name: str, given: dict[str, float]) -> dict[str, float]:
    import dataclasses

    from certify.smoothing.noise import NOISES

    if name not in NOISES:
        return given
    default = {f.name: f.default for f in dataclasses.fields(NOISES[name])
               if f.default is not dataclasses.MISSING}
    return {**default, **given}


def _described(record: Mapping[str, Any]) -> tuple[str, str, bool]:
    found = record.get("result") or {}
    if record["status"] != "done":
        return "error", f"{record['key']}: {record.get('error', record['status'])}", True
    if found["predict"] < 0:
        return "abstained", f"{record['key']}: abstained: {found['why']}", False
    word = "correct" if found["correct"] else "other class"
    return word, f"{record['key']}: {word}, radius {found['radius']:.4g}", False


def _report(options: argparse.Namespace, out: Path) -> int:
    from certify.campaign.manifest import read_manifest
    from certify.campaign.runner import read_records
    from certify.core.atomic import write_whole
    from certify.report.cohen import as_tsv
    from certify.report.curve import curve
    from certify.report.smoothed import Run, as_markdown, as_text, rows

    manifest = read_manifest(out)
    found = Run(Path(options.model).name, tuple(rows(read_records(out))), manifest["settings"],
                int(manifest["items"]["count"]))
    if options.out is not None:
        files = {"summary.md": as_markdown([found]), "curve.svg": curve([found]),
                 "radii.tsv": as_tsv(found.rows)}
        for name, text in files.items():
            write_whole(out / name, text.encode("utf-8"))
        if not options.quiet:
            say(f"votes, table and curve: {one_line(out, 200)}")
    result(as_text([found]))
    return EXIT_HOLDS
