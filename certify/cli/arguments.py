"""What arguments mean: numbers as people write them, and a parser whose errors are one line."""

from __future__ import annotations

import argparse
import math
import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NoReturn

from certify.cli.streams import result
from certify.core.errors import UsageError

if TYPE_CHECKING:
    from certify.campaign.shard import Shard


class Parser(argparse.ArgumentParser):
    """Raises `UsageError` instead of printing usage and exiting; abbreviations are refused."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self._negative_number_matcher = re.compile(r"^-[0-9.]")  # so that "--clip -1,1" is a value

    def error(self, message: str) -> NoReturn:
        """Report a wrong argument.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{message}; see {self.prog} --help")

    def print_help(self, file: Any = None) -> None:
        """Help is a result: it goes to stdout."""
        result(self.format_help().rstrip("\n"))


class Answer(argparse.Action):
    """An option that prints ``const`` and ends the program with success."""

    def __init__(self, option_strings: list[str], dest: str, const: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, const=const, help=help)

    def __call__(self, *_: object) -> NoReturn:
        """Print and leave.

        Raises:
            SystemExit: with status 0.
        """
        result(str(self.const))
        raise SystemExit(0)


def fraction(text: str) -> float:
    """A finite number: ``8/255``, ``0.03``, ``1e-3``.

    Raises:
        argparse.ArgumentTypeError: not such a number.
    """
    try:
        if len(text) > 50:  # Fraction("1e999999999") would build an integer of that many digits
            raise ValueError
        top, slash, bottom = text.partition("/")
        value = float(Fraction(_short(top)) / Fraction(_short(bottom))) if slash else float(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; write 8/255 or 0.03")
    return value


def _short(text: str) -> str:
    if abs(int(text.lower().partition("e")[2] or 0)) > 400:
        raise ValueError(text)
    return text


def radius(text: str) -> float:
    """A number of at least 0.

    Raises:
        argparse.ArgumentTypeError: not such a number.
    """
    value = fraction(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is negative")
    return value


def seconds(text: str) -> float:
    """A number above 0.

    Raises:
        argparse.ArgumentTypeError: not such a number.
    """
    value = fraction(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def interval(text: str) -> tuple[float, float]:
    """Two numbers ``low,high``.

    Raises:
        argparse.ArgumentTypeError: not two numbers in order.
    """
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not low,high; write for example 0,1")
    low, high = fraction(parts[0]), fraction(parts[1])
    if low > high:
        raise argparse.ArgumentTypeError(f"{text!r} is empty: its low end is above its high end")
    return low, high


def seed(text: str) -> int:
    """A whole number from 0 to 2**63 - 1.

    Raises:
        argparse.ArgumentTypeError: not such a number.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**63 - 1")
    return int(text)


def whole(text: str) -> int:
    """A whole number below 10^9.

    Raises:
        argparse.ArgumentTypeError: not such a number.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number below 10^9")
    return int(text)


def count(text: str) -> int:
    """A whole number from 1 to 100000.

    Raises:
        argparse.ArgumentTypeError: not such a number.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 7 and 0 < int(text) <= 100_000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 100000")
    return int(text)


def shard(text: str) -> Shard:
    """``1/4``.

    Raises:
        UsageError: not a shard.
    """
    from certify.campaign.shard import parse_shard

    return parse_shard(text)


def workers(text: str) -> int:
    """A whole number from 1 to 1024.

    Raises:
        argparse.ArgumentTypeError: not such a number.
    """
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:5]) <= 1024):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 1024")
    return int(text)


def memory(text: str) -> int:
    """Bytes: ``8GiB``, ``500MB``.

    Raises:
        UsageError: not a size.
    """
    from certify.bounds.budget import parse_memory  # late: nothing heavy while arguments are read

    return parse_memory(text)


def add_computation(parser: argparse.ArgumentParser) -> None:
    """Options every command that computes bounds shares."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="where to compute (default: auto, a GPU if there is one)")
    parser.add_argument("--memory", type=memory, default=None, metavar="SIZE",
                        help="memory for bounds, for example 8GiB (default: 4GiB)")
    add_verbosity(parser)


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """``-q`` or ``-v``."""
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="nothing on stderr but errors")
    loudness.add_argument("-v", "--verbose", action="store_true",
                          help="progress on stderr; a traceback if something breaks")
