"""Options that say where inputs may lie: a ball around an input, or a region from a file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from certify.cli.arguments import interval, radius
from certify.core.errors import UsageError

if TYPE_CHECKING:
    from certify.core.region import Region


def add_region(parser: Any) -> None:
    """Declare the options that `region_of` reads."""
    parser.add_argument("--input", metavar="FILE", help="the centre, a .npy file")
    parser.add_argument("--eps", type=radius, help="radius, for example 8/255")
    parser.add_argument("--norm", choices=("inf", "2", "1"), default="inf", help="default: inf")
    parser.add_argument("--clip", type=interval, metavar="LOW,HIGH", help="data range, such as 0,1")
    parser.add_argument("--region", metavar="FILE",
                        help="instead: a .npz file of arrays named KIND.FIELD, such as L2.center "
                        "and L2.eps; certify supports --regions lists them")


def region_of(options: argparse.Namespace) -> Region:
    """The region asked for.

    Raises:
        UsageError: neither a ball nor a file, or both.
        BadInput: a file that does not hold one.
    """
    ball = [name for name in ("input", "eps", "clip") if getattr(options, name) is not None]
    if options.region is not None:
        if ball:
            raise UsageError(f"--region says it all; leave out --{ball[0]}")
        from certify.importers.region_file import load_region

        return load_region(options.region)
    if options.input is None or options.eps is None:
        raise UsageError("say where inputs may lie: --input FILE --eps R, or --region FILE")
    from certify.core.region import BALLS
    from certify.importers.checkpoints import load_array

    found: Region = BALLS[options.norm](load_array(options.input), options.eps, clip=options.clip)
    return found


def region_file(options: argparse.Namespace) -> str:
    """The file the region comes from, for error messages."""
    found: str = options.region or options.input or ""
    return found
