"""``certify grid``: an exhaustive search over a few inputs of a property's box."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from certify.cli.arguments import add_verbosity, fraction, seconds, whole
from certify.cli.inputs import about, device_named, read_model
from certify.cli.streams import check_target, result, say
from certify.core.errors import EXIT_HOLDS, EXIT_UNDECIDED, EXIT_VIOLATED, BadInput

if TYPE_CHECKING:
    from certify.core.certificate import Certificate

_MORE = """The answer is about the box of the named inputs with every other input fixed at its
centre. A property with one input box is wanted."""


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "grid", help="search a grid over a few inputs", epilog=_MORE,
        description="Print holds, violated (with an assignment), unknown or timeout.")
    parser.add_argument("model", metavar="MODEL", help="an ONNX file, plain or gzip")
    parser.add_argument("spec", metavar="SPEC", help="a VNN-LIB 1.0 file, plain or gzip")
    parser.add_argument("--dims", type=_several(whole), metavar="I,J",
                        help="inputs to move, at most 6 (default: those that matter most)")
    parser.add_argument("--count", type=whole, default=2, metavar="N",
                        help="inputs chosen where --dims is not given (default: 2)")
    parser.add_argument("--step", type=_several(fraction), metavar="S",
                        help="distance of grid points, one for all or one each: 0.01 or 0.1,0.2")
    parser.add_argument("--depth", type=whole, default=8, metavar="N",
                        help="how often an open cell may be halved (default: 8)")
    parser.add_argument("--timeout", type=seconds, default=60.0, metavar="S",
                        help="seconds (default: 60)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu",
                        help="default: cpu")
    parser.add_argument("--certificate", metavar="FILE", help="write the certificate")
    add_verbosity(parser)
    parser.set_defaults(run=run)


def _several(one: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Values separated by commas."""

    def read(text: str) -> list[Any]:
        return [one(part.strip()) for part in text.split(",")]

    return read


def run(options: argparse.Namespace) -> int:
    """Search, print, save; the exit code tells the answer."""
    check_target(options.certificate)
    certificate = _searched(options)
    if not options.quiet:
        say(certificate.sentence())
    if options.verbose:
        for key, value in certificate.provenance.settings.items():
            say(f"{key}: {value}")
    result(_answer(certificate))
    if options.certificate is not None:
        certificate.save(options.certificate)
        if not options.quiet:
            say(f"certificate saved: {options.certificate}")
    return {"holds": EXIT_HOLDS, "violated": EXIT_VIOLATED}.get(certificate.verdict.value,
                                                              EXIT_UNDECIDED)


def _searched(options: argparse.Namespace) -> Certificate:
    from certify.importers.vnnlib import read_vnnlib

    with about(options.spec):
        query = read_vnnlib(options.spec)
        if len(query) != 1:
            raise BadInput(f"has {len(query)} input boxes; certify grid wants one")
    network = read_model(options.model)
    device = device_named(options.device)
    from certify.grid_search import grid_search

    step = options.step
    if step is not None and len(step) == 1:
        step = step[0]
    case = query[0]
    with about(options.model, options.spec):
        sizes = [math.prod(shape) for shape in (*network.input_shapes, network.output_shape)]
        query.check_sizes(sum(sizes[:-1]), sizes[-1])
        return grid_search(network, case.box, case.spec, options.dims, step, count=options.count,
                           depth=options.depth, timeout=options.timeout, device=device)


def _answer(certificate: Certificate) -> str:
    word, found = certificate.verdict.value, certificate.counterexample
    if found is None:
        return word
    from certify.search.witness import format_assignment

    return f"{word}\n{format_assignment(found.flat, found.output)}"
