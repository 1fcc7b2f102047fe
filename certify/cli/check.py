"""``certify check``: does a certificate hold up when its evidence is evaluated again?"""

from __future__ import annotations

import argparse
from typing import Any

from certify.cli.arguments import add_verbosity
from certify.cli.inputs import about
from certify.cli.streams import result, say
from certify.core.errors import EXIT_HOLDS, EXIT_REJECTED, one_line


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "check", help="re-run a certificate's evidence",
        description="Run a counterexample again, or derive a bound again, and compare.")
    parser.add_argument("certificate", metavar="CERTIFICATE", help="a file from certify verify")
    parser.add_argument("--model", metavar="MODEL",
                        help="the ONNX file it is about (default: where it was when certified)")
    add_verbosity(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print ``accepted`` or ``rejected``, and why on stderr; the exit code is 0 or 5."""
    from certify.core.certificate import load_certificate

    with about(options.certificate):
        certificate = load_certificate(options.certificate)
    from certify.recheck import check

    with about(options.certificate):
        report = check(certificate, options.model)
    result("accepted" if report.accepted else "rejected")
    if not (options.quiet and report.accepted):
        say(one_line(report.reason))
    return EXIT_HOLDS if report.accepted else EXIT_REJECTED
