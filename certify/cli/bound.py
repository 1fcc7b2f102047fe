"""``certify bound``: a table of bounds of a network's outputs around one input."""

from __future__ import annotations

import argparse
import re
import time
from typing import TYPE_CHECKING, Any

from certify.cli.arguments import add_computation
from certify.cli.inputs import about, device_named, read_model
from certify.cli.regions import add_region, region_file, region_of
from certify.cli.streams import result, say
from certify.cli.table import as_json, as_table
from certify.core.errors import BadInput, UsageError
from certify.importers.files import shown
from certify.settings import METHOD_NAMES

if TYPE_CHECKING:

    from certify.core.graph import Graph

_ROWS = """--rows takes a .npy file of coefficients (R, number of outputs), or outputs and
differences of outputs: '3', '3-0', '0-1,0-2'. Differences bounded directly are tighter than
differences of bounds. --output takes a function from certify supports --outputs with its settings,
such as softmax, or distance:distances=0/1/2 (numbers of one setting separated by slashes)."""


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "bound", help="bounds of a network's outputs around an input", epilog=_ROWS,
        description="Bound every output of a network, or rows of them, over a region.")
    parser.add_argument("model", metavar="MODEL", help="an ONNX file, plain or gzip")
    add_region(parser)
    parser.add_argument("--method", choices=(*METHOD_NAMES, "forward"), default="crown",
                        help="default: crown")
    parser.add_argument("--semantics", choices=("real", "float32"), default="real",
                        help="the arithmetic the bounds speak of (default: real)")
    parser.add_argument("--rows", help="what to bound instead of every output, see below")
    parser.add_argument("--output", type=_output, metavar="KIND[:NAME=V...]",
                        help="bound a function of the output instead, see below")
    parser.add_argument("--gradient", action="store_true",
                        help="bound the gradients of the outputs with respect to the input")
    parser.add_argument("--json", action="store_true", help="JSON with all digits, not a table")
    add_computation(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compute and print; the exit code is 0."""
    region = region_of(options)
    network = read_model(options.model)
    network = _edited(network, options)
    coefficients, names = _rows(options.rows, network.output_shape)
    device = device_named(options.device)
    from certify.bounds.methods import Settings, bound, fit

    settings: dict[str, Any] = {"semantics": options.semantics, "device": device}
    if options.memory is not None:
        settings["memory"] = options.memory
    started = time.monotonic()
    with about(options.model, region_file(options)):
        region = fit(region, network)
        if region.batch != 1:
            raise BadInput(
                f"holds {region.batch} examples; give one, or use certify.bound in Python"
            )
        found = bound(network, region, options.method, coefficients, settings=Settings(**settings))
    lower = found.lower.detach().cpu().numpy().reshape(-1)
    upper = found.upper.detach().cpu().numpy().reshape(-1)
    seconds = time.monotonic() - started
    facts = {"method": options.method, "semantics": options.semantics, "device": device,
             "seconds": round(seconds, 3)}
    result(as_json(facts, names, lower, upper) if options.json else as_table(names, lower, upper))
    if not options.quiet:
        say(", ".join(f"{key} {value}" for key, value in facts.items()))
    return 0


def _output(text: str) -> tuple[str, dict[str, Any]]:
    """``distance:distances=0/1/2`` as a name and its settings.

    Raises:
        argparse.ArgumentTypeError: not of that form.
    """
    kind, colon, rest = text.partition(":")
    settings: dict[str, Any] = {}
    for part in rest.split(":") if colon else ():
        name, equals, value = part.partition("=")
        try:
            numbers = [float(v) for v in value.split("/")]
        except ValueError:
            numbers = []
        if not (name and equals and numbers):
            raise argparse.ArgumentTypeError(f"{part!r} is not NAME=NUMBER or NAME=N/N/N")
        settings[name] = numbers[0] if len(numbers) == 1 else numbers
    return kind, settings


def _edited(network: Graph, options: argparse.Namespace) -> Graph:
    import math

    import numpy as np

    from certify.semantic.edits import jacobian, with_output

    if options.output is not None:
        kind, settings = options.output
        network = with_output(network, kind, **settings)
    if options.gradient:
        network = jacobian(network, np.eye(math.prod(network.output_shape)))
    return network


def _rows(text: str | None, shape: tuple[int, ...]) -> tuple[Any, list[str]]:
    """Coefficients ``(R, outputs)`` or None for every output, and a name for each row."""
    import math

    import numpy as np

    size = math.prod(shape)
    if text is None:
        return None, [f"Y_{i}" for i in range(size)]
    if text.endswith((".npy", ".npy.gz")):
        return _rows_in(text, shape)
    names = text.split(",")
    coefficients = np.zeros((len(names), size))
    for row, name in zip(coefficients, names, strict=True):
        found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", name.strip())
        chosen = [int(n) for n in found.groups() if n is not None] if found else [size]
        if max(chosen) >= size:
            raise UsageError(f"--rows {name!r} is not an output or a difference of two; "
                             f"the outputs are 0 to {size - 1}, write for example 0-1")
        for index, sign in zip(chosen, (1.0, -1.0), strict=False):
            row[index] += sign
    return coefficients, [_label(n) for n in names]


def _rows_in(path: str, shape: tuple[int, ...]) -> tuple[Any, list[str]]:
    """Coefficients in a file: one row, ``(R, outputs)`` or ``(R, *shape)``."""
    import math

    import numpy as np

    from certify.importers.checkpoints import load_array

    C, size = load_array(path).astype(np.float64), math.prod(shape)
    if C.shape == (size,):
        C = C[None]
    fits = C.ndim > 0 and len(C) > 0 and C.shape[1:] in ((size,), shape)
    if not fits:
        raise BadInput(f"{shown(path)}: coefficients of shape {C.shape} do not fit {size} outputs; "
                       f"give (rows, {size})")
    return C.reshape(len(C), size), [f"row {i}" for i in range(len(C))]


def _label(name: str) -> str:
    return " - ".join(f"Y_{part.strip()}" for part in name.split("-"))
