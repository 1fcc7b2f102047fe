"""``certify verify``: one word on stdout, and the certificate in a file."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from certify.cli.arguments import add_computation, count, seconds, seed, whole, workers
from certify.cli.inputs import about, read_model
from certify.cli.regions import add_region, region_file, region_of
from certify.cli.streams import check_target, result, say, write_file
from certify.core.errors import (
    EXIT_HOLDS,
    EXIT_UNDECIDED,
    EXIT_VIOLATED,
    CannotWrite,
    UsageError,
)
from certify.settings import METHOD_NAMES

if TYPE_CHECKING:
    from certify.core.certificate import Certificate


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "verify", help="decide a specification",
        description="Print unsat (holds), sat (violated, with an assignment), unknown or timeout.",
        epilog="Without a SPEC: certify verify MODEL --input x.npy --eps 8/255 --label 7, or "
        "--region FILE --label 7.")
    parser.add_argument("model", metavar="MODEL", help="an ONNX file, plain or gzip")
    parser.add_argument("spec", metavar="SPEC", nargs="?",
                        help="a VNN-LIB 1.0 file, plain or gzip")
    parser.add_argument("--label", type=whole, metavar="K",
                        help="instead of a SPEC: the class that every input must have")
    parser.add_argument("--top", type=count, metavar="N",
                        help="the class must be among the N likeliest (default: 1)")
    add_region(parser)
    parser.add_argument("--timeout", type=seconds, default=60.0, metavar="S",
                        help="seconds for everything, loading included (default: 60)")
    parser.add_argument("--method", choices=METHOD_NAMES, default="auto",
                        help="default: auto, cheapest first")
    parser.add_argument("--semantics", choices=("real", "float32"), default="real",
                        help="the arithmetic the answer speaks of (default: real)")
    parser.add_argument("--no-attack", action="store_true", help="do not look for counterexamples")
    parser.add_argument("--certificate", metavar="FILE", help="write the certificate")
    parser.add_argument("--results-file", metavar="FILE",
                        help="write the competition's result file; the exit code is then 0")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default: 0")
    parser.add_argument("--workers", type=workers, default=2, metavar="N",
                        help="processor cores to keep busy (default: 2)")
    parser.add_argument("--explain", action="store_true",
                        help="say on stderr what was chosen, and why")
    add_computation(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Decide, print, save; the exit code tells the answer."""
    check_target(options.certificate)
    check_target(options.results_file, device=True)
    certificate = _decide(options)
    answer = _answer(certificate)
    if not options.quiet:
        say(certificate.sentence())
    _deliver([
        lambda: result(answer),
        lambda: _save(certificate, options),
        lambda: _results_file(options.results_file, answer),
    ])
    return EXIT_HOLDS if options.results_file else _exit_code(certificate)


def _decide(options: argparse.Namespace) -> Certificate:
    if (options.spec is None) == (options.label is None):
        raise UsageError("say what to decide: either SPEC, or --label K")
    settings: dict[str, Any] = {} if options.memory is None else {"memory": options.memory}
    if options.verbose:
        settings["progress"] = say
    if options.explain:
        settings["explain"] = say
    settings |= {"method": options.method, "semantics": options.semantics, "seed": options.seed,
                 "attack": not options.no_attack, "device": options.device,
                 "workers": options.workers}
    if options.label is not None:
        return _about_label(options, settings)
    _refuse_region(options)
    from certify.importers.vnnlib import read_vnnlib

    with about(options.spec):
        query = read_vnnlib(options.spec)
    network = read_model(options.model)
    from certify.verify import verify_query

    with about(options.model, options.spec):
        return verify_query(
            network, query, options.timeout, started=options.started, **settings)


def _refuse_region(options: argparse.Namespace) -> None:
    for name in ("region", "input", "eps", "clip", "top"):
        if getattr(options, name) is not None:
            raise UsageError(f"a SPEC says where inputs may lie; leave out --{name}")


def _about_label(options: argparse.Namespace, settings: dict[str, Any]) -> Certificate:
    region = region_of(options)
    network = read_model(options.model)
    from certify.core.spec import Spec
    from certify.verify import verify

    with about(options.model, region_file(options)):
        classes = math.prod(network.output_shape)
        spec = Spec.classify(options.label, classes) if options.top in (None, 1) else \
            Spec.top_k(options.label, options.top, classes)
        return verify(network, region, spec, options.timeout, **settings)


def _answer(certificate: Certificate) -> str:
    word, found = certificate.verdict.word, certificate.counterexample
    if found is None:
        return word
    from certify.search.witness import format_assignment

    return f"{word}\n{format_assignment(found.flat, found.output)}"


def _exit_code(certificate: Certificate) -> int:
    return {"unsat": EXIT_HOLDS, "sat": EXIT_VIOLATED}.get(certificate.verdict.word, EXIT_UNDECIDED)


def _save(certificate: Certificate, options: argparse.Namespace) -> None:
    if options.certificate is None:
        return
    certificate.save(options.certificate)
    if not options.quiet:
        say(f"certificate saved: {options.certificate}")


def _results_file(path: str | None, answer: str) -> None:
    if path is not None:
        write_file(path, answer + "\n")


def _deliver(steps: list[Callable[[], None]]) -> None:
    """Take every step, also after one failed: a closed pipe must not cost the certificate."""
    first: CannotWrite | None = None
    for step in steps:
        try:
            step()
        except CannotWrite as problem:
            first = first or problem
    if first is not None:
        raise first
