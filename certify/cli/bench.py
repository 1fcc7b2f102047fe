"""``certify bench``: many instances, their results in a folder, resumed after any interruption."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certify.cli.arguments import add_computation, count, fraction, memory, seconds, seed, shard
from certify.cli.campaigns import effort_of, kept
from certify.cli.inputs import device_named
from certify.cli.streams import result, say
from certify.core.errors import EXIT_HOLDS, EXIT_REJECTED, UsageError, one_line
from certify.settings import METHOD_NAMES

if TYPE_CHECKING:
    from certify.campaign.instances import Instance
    from certify.campaign.job import Job

_EPILOG = """INSTANCES is a CSV file with lines 'onnx,vnnlib,timeout', or one with a header that
names at least onnx, vnnlib and timeout (or timeout_s), and perhaps family and expected. Its files
are relative to it, plain or .gz. Or it is a suite: a .toml file that lists the benchmark families
of a repository; --root is your clone of that.

The same command again goes on where the last one ended, whatever ended it. DIR then holds
items.jsonl (one line per instance), results.csv (the competition's columns), summary.md,
summary.txt, cactus.svg and counterexamples/. To share the work between machines, run --shard 1/4
to 4/4 and bring the folders together; --summary-only makes the tables of all.

The exit code is 0 when all is done, and 5 when an answer contradicts the expected one or a
counterexample does not hold up."""


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "bench", help="decide a list of instances", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Decide every instance of a list; write tables, a plot and counterexamples.")
    parser.add_argument("instances", metavar="INSTANCES", nargs="?", help="a .csv or .toml file")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the results")
    parser.add_argument("--root", metavar="DIR", help="the clone that a .toml suite is about")
    parser.add_argument("--workers", type=count, default=1, metavar="N",
                        help="instances at a time; they share the processor cores (default: 1)")
    parser.add_argument("--shard", type=shard, default=None, metavar="I/N",
                        help="only every N-th instance, from number I on")
    parser.add_argument("--families", metavar="A,B", help="only these families")
    parser.add_argument("--limit", type=count, metavar="N", help="only the first N of each family")
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument("--timeout", type=seconds, metavar="S",
                        help="seconds for every instance, whatever the list says")
    limits.add_argument("--timeout-scale", type=factor, default=1.0, metavar="F",
                        help="multiply the time limits of the list")
    parser.add_argument("--method", choices=METHOD_NAMES, default="auto",
                        help="default: auto, cheapest first")
    parser.add_argument("--semantics", choices=("real", "float32"), default="real",
                        help="the arithmetic the answers speak of (default: real)")
    parser.add_argument("--no-attack", action="store_true", help="do not look for counterexamples")
    parser.add_argument("--worker-memory", type=memory, metavar="SIZE",
                        help="most that one worker may allocate; beyond it, its instance ends in "
                        "error (default: no limit)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default: 0")
    parser.add_argument("--summary-only", action="store_true",
                        help="only write tables and plot again, from what --out holds")
    add_computation(parser)
    parser.set_defaults(run=run)


def factor(text: str) -> float:
    """A number above 0: ``0.5``, ``1/10``.

    Raises:
        argparse.ArgumentTypeError: not such a number.
    """
    value = fraction(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def run(options: argparse.Namespace) -> int:
    """Decide what is open, write the tables; the exit code tells whether all answers are right."""
    out = Path(options.out)
    if not options.summary_only:
        if options.instances is None:
            raise UsageError("INSTANCES is missing; see certify bench --help")
        _decide(options, out)
    return _report(out, options.quiet)


def _decide(options: argparse.Namespace, out: Path) -> None:
    from certify.campaign.job import Item
    from certify.campaign.progress import Progress
    from certify.campaign.runner import run

    instances = _instances(options)
    if options.device == "cuda":
        device_named("cuda")  # refused now, not once per instance
    items = [Item(i.key, i, i.timeout) for i in instances]
    threads = max(1, len(os.sched_getaffinity(0)) // options.workers)
    watch = Progress(_described, options.quiet, options.verbose)
    job = _job(options, out, threads)
    with kept(out):
        run(job, items, out, effort_of(options), watch)


def _instances(options: argparse.Namespace) -> list[Instance]:
    """The list, cut down to what was asked for, with the time limits asked for."""
    from certify.campaign.instances import read_instances, scaled
    from certify.campaign.suite import check_families, read_suite

    path = Path(options.instances)
    wanted = {name for name in (options.families or "").split(",") if name}
    if path.suffix == ".toml":
        if options.root is None:
            raise UsageError("a .toml suite needs --root, the clone it is about")
        found = read_suite(path, Path(options.root), wanted)
    elif options.root is not None:
        raise UsageError("--root is for .toml suites; the files of a .csv are relative to it")
    else:
        found = read_instances(path)
        check_families(wanted, [i.family for i in found], path)
    taken: dict[str, int] = {}
    chosen = []
    for instance in found:
        taken[instance.family] = taken.get(instance.family, 0) + 1
        if (not wanted or instance.family in wanted) and (
            options.limit is None or taken[instance.family] <= options.limit
        ):
            chosen.append(scaled(instance, options.timeout_scale, options.timeout))
    return chosen


def _job(options: argparse.Namespace, out: Path, threads: int) -> Job:
    from certify.campaign.job import Job

    root = Path(options.instances).parent if options.root is None else Path(options.root)
    settings = {
        "method": options.method, "semantics": options.semantics, "seed": options.seed,
        "attack": not options.no_attack, "device": options.device, "memory": options.memory,
        "timeout": options.timeout, "timeout_scale": options.timeout_scale,
        "families": options.families, "limit": options.limit,
    }
    local = {"root": str(root.absolute()), "workers": threads,
             "counterexamples": str((out / "counterexamples").absolute())}
    return Job("certify.cli.decide:decide", settings, local, "certify.cli.decide:prepare",
               options.worker_memory)


def _described(record: Mapping[str, Any]) -> tuple[str, str, bool]:
    """A finished instance for the progress line."""
    from certify.report.row import row

    found = row(record)
    words = [f"{found.name}: {found.word}", f"{found.seconds:.1f} s", *filter(None, [found.why])]
    line = f"WRONG: {found.wrong}" if found.wrong else ", ".join(words)
    return found.word, line, bool(found.wrong)


def _report(out: Path, quiet: bool) -> int:
    """Write tables and plot, print the summary."""
    from certify.campaign.manifest import read_manifest
    from certify.campaign.runner import read_records
    from certify.core.atomic import write_whole
    from certify.report.cactus import cactus
    from certify.report.row import rows
    from certify.report.summary import as_markdown, as_text
    from certify.report.vnncomp import results_csv

    manifest = read_manifest(out)
    found = rows(read_records(out))
    total = int(manifest["items"].get("count", len(found)))
    text = as_text(found, total)
    files = {"results.csv": results_csv(found), "summary.txt": text + "\n",
             "summary.md": as_markdown(found, total, _facts(manifest)),
             "cactus.svg": cactus(_times(found))}
    for name, content in files.items():
        write_whole(out / name, content.encode("utf-8"))
    if len(found) >= total:
        _tidy(out / "counterexamples")
    result(as_text(found, total, _coloured()))
    if not quiet:
        say(f"tables, plot and counterexamples: {one_line(out, 200)}")
    return EXIT_REJECTED if any(row.wrong for row in found) else EXIT_HOLDS


def _tidy(folder: Path) -> None:
    """Remove halves of files that killed workers left; nobody writes here any more."""
    for half in folder.glob(".*.part"):
        with suppress(OSError):
            half.unlink()


def _times(found: Sequence[Any]) -> dict[str, list[float]]:
    """Seconds of the solved instances: all of them, and by family where there are several."""
    times: dict[str, list[float]] = {"all": [r.seconds for r in found if r.solved]}
    families = list(dict.fromkeys(r.family for r in found))
    for name in families if len(families) > 1 else ():
        times[name] = [r.seconds for r in found if r.solved and r.family == name]
    return times


def _facts(manifest: Mapping[str, Any]) -> list[str]:
    machine, settings = manifest.get("machine") or {}, manifest["settings"]
    used = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    packages = ", ".join(f"{name} {v}" for name, v in manifest["versions"].items() if v)
    return [f"begun {manifest.get('started')} on {machine.get('processor')}, "
            f"{machine.get('cores')} cores", packages, used]


def _coloured() -> bool:
    return sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")

