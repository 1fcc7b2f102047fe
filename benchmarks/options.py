"""Options that several commands share."""

from __future__ import annotations

import argparse

METHODS = ("ibp", "crown-ibp", "crown", "forward", "alpha-20", "alpha")


def methods(parser: argparse.ArgumentParser) -> None:
    """``--methods ibp,crown``: names separated by commas."""
    parser.add_argument("--methods", type=_names, metavar="M,...", default=list(METHODS),
                        help=f"default: {','.join(METHODS)}")


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in METHODS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(METHODS)}")
    return names
