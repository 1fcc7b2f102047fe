"""``certify``: finds the command, runs it, and turns every error into one line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import certify
from certify.cli import (
    bench,
    bound,
    check,
    eval,
    features,
    grid,
    report,
    semantic,
    smooth,
    supports,
    train,
    verify,
    weights,
)
from certify.cli.arguments import Answer, Parser
from certify.cli.streams import open_standard_streams, say
from certify.core.errors import EXIT_BAD_INPUT, EXIT_USAGE, CertifyError, one_line

EXIT_INTERNAL = 70  # a bug in this program; the number sysexits.h gives such errors
_LONGEST_LINE = 300
_EPILOG = """exit codes:
  0  every claim holds              4  bad or unsupported input
  1  violated                       5  a certificate or a re-check did not hold up
  2  wrong usage                    6  cannot write
  3  undecided (unknown, timeout)   70 internal error (please report)"""


def parser() -> Parser:
    """The parser of the whole command line."""
    import argparse

    top = Parser(prog="certify", description="Certified robustness of neural networks.",
                 epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action=Answer, const=certify.__version__,
                     help="print the version")
    top.add_argument("--name", action=Answer, const="certify",
                     help="print the name of this solver")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (verify, bound, grid, features, semantic, weights, bench, eval, train, smooth,
                    report, check, supports):
        command.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; never raises for a user's mistake.

    Args:
        arguments: without the program's name; None for the process's own.
    """
    started = time.monotonic()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = parser().parse_args(given)
        options.started = started
        return int(options.run(options))
    except CertifyError as problem:
        return _fail(str(problem), problem.exit_code, given)
    except _Terminated:
        return _fail("terminated", 128 + signal.SIGTERM, given)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT, given)
    except MemoryError:
        return _fail("out of memory; give --memory, or a smaller network", EXIT_BAD_INPUT, given)
    except Exception as problem:  # the last line of defence
        text = one_line(f"internal: {type(problem).__name__}: {problem}", 200)
        return _fail(f"{text}; please report it with the output of -v", EXIT_INTERNAL, given)


def entry() -> NoReturn:
    """The ``certify`` program.

    Raises:
        SystemExit: always, with the exit code.
    """
    open_standard_streams()
    _calm_threads()
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())


class _Terminated(BaseException):
    """SIGTERM arrived."""


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


def _calm_threads() -> None:
    """Idle OpenMP threads sleep instead of spinning: less CPU time for the same wall time."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


def _fail(message: str, code: int, given: Sequence[str]) -> int:
    if code != EXIT_USAGE and {"-v", "--verbose"} & set(given):
        import traceback

        say(traceback.format_exc().rstrip("\n"))
    prefix = "error: "
    say(prefix + one_line(message, _LONGEST_LINE - len(prefix)))
    return code
