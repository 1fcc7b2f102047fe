"""``certify supports``: what this version can do, answered from the registries.

The long options are those of the solver interface of the VNN-LIB standard; each prints one answer
per line, so that other programs can read it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from certify.cli.streams import result

if TYPE_CHECKING:
    from certify.ops.record import Composite, Op

OLDEST_OPSET = 9


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "supports", help="operators, methods and regions of this version",
        description="Print what this version supports; without an option, an overview.")
    which = parser.add_mutually_exclusive_group()
    for option, (_, text) in QUERIES.items():
        which.add_argument(option, dest="query", action="store_const", const=option, help=text)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the answer; the exit code is 0."""
    lines = QUERIES[options.query][0]() if options.query else _overview()
    result("\n".join(lines))
    return 0


def _overview() -> list[str]:
    parts = (("methods", _methods), ("regions", _regions),
             ("smoothing methods", _smoothing_methods), ("noises", _noises),
             ("image transformations", _transforms),
             ("functions of outputs", _outputs), ("ONNX operators", _onnx),
             ("ATen operators", _aten))
    lines: list[str] = []
    for title, answer in parts:
        lines += [f"{title}:", *(f"  {line}" for line in answer()), ""]
    return lines[:-1]


def _methods() -> list[str]:
    from certify.bounds.methods import METHODS

    rows = [("auto", "cheapest first, until everything is decided")]
    return _aligned(rows + [(method.name, method.summary) for method in METHODS.values()])


def _smoothing_methods() -> list[str]:
    from certify.smoothing import levels  # noqa: F401  registers its method
    from certify.smoothing.methods import METHODS

    return _aligned([(m.name, m.summary) for m in METHODS.values()])


def _noises() -> list[str]:
    import dataclasses

    from certify.smoothing import discrete_noise, grid, levels  # noqa: F401  register theirs
    from certify.smoothing.noise import NOISES

    return [f"{name}:{','.join(f.name for f in dataclasses.fields(kind))}  radii in the norms "
            f"{', '.join(kind.norms)}" for name, kind in sorted(NOISES.items())]


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Words in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows]


def _regions() -> list[str]:
    import dataclasses

    from certify.core.region import REGIONS

    rows = []
    for name, kind in REGIONS.items():
        fields = ", ".join(f.name for f in dataclasses.fields(kind) if f.name != "shape")
        first, _, _ = (kind.__doc__ or "").partition("\n")
        rows.append((name, fields, first.rstrip(".").replace("`", "")))
    return _aligned(sorted(rows))


def _outputs() -> list[str]:
    from certify.semantic.outputs import OUTPUTS

    rows = [(o.name, ", ".join(o.settings) or "-", o.summary) for o in OUTPUTS.values()]
    return _aligned(rows)


def _transforms() -> list[str]:
    from certify.semantic import colour, geometry, light  # noqa: F401  register theirs
    from certify.semantic.transforms import TRANSFORMS

    rows = [(t.name, t.unit, t.summary) for t in TRANSFORMS.values()]
    return _aligned(sorted(rows))


def _onnx() -> list[str]:
    """Operators with a record, and those that are settled while a model is read."""
    from certify.importers.onnx_builtin import BUILTINS
    from certify.ops import load

    return sorted({*load().onnx, *BUILTINS})


def _aten() -> list[str]:
    from certify.ops import load

    return sorted(load().aten)


def _operators() -> list[str]:
    from certify.ops import load

    registry = load()
    records: list[Op | Composite] = [*registry.ops.values(), *registry.composites.values()]
    rows = [("operator", "ONNX", "meaning")]
    rows += sorted((r.name, " ".join(r.onnx) or "-", r.summary) for r in records)
    return _aligned(rows)


def _opsets() -> list[str]:
    from onnx.defs import onnx_opset_version

    return [str(OLDEST_OPSET), str(onnx_opset_version())]


def _one(*lines: str) -> Callable[[], list[str]]:
    return lambda: list(lines)


QUERIES: dict[str, tuple[Callable[[], list[str]], str]] = {
    "--methods": (_methods, "bound methods"),
    "--regions": (_regions, "input regions"),
    "--smoothing-methods": (_smoothing_methods, "ways to certify smoothed classifiers"),
    "--noises": (_noises, "noise models for smoothing, with their parameters"),
    "--transforms": (_transforms, "image transformations, with the unit of their parameter"),
    "--outputs": (_outputs, "functions of a network's output, with their settings"),
    "--aten-operators": (_aten, "torch operators"),
    "--operators": (_operators, "operator records"),
    "--onnx-operators": (_onnx, "ONNX operators"),
    "--onnx-opset-versions": (_opsets, "oldest and newest ONNX opset"),
    "--onnx-element-types": (_one("real", "float32"), "semantics: arithmetic a result speaks of"),
    "--vnnlib-versions": (_one("1.0", "1.0"), "oldest and newest VNN-LIB version"),
    "--hidden-node-theories": (_one("NH"), "no constraints on hidden nodes"),
    "--multiple-input-output-theories": (_one("SIO"), "one input and one output tensor"),
    "--multiple-network-theories": (_one("SNET"), "one network per query"),
    "--multiple-node-comparison-theories": (_one("MNC"), "comparisons of several variables"),
    "--arithmetic-complexity-theories": (_one("LIN"), "linear arithmetic"),
    "--optimised-disjunctive-reasoning": (_one("false"), "shared work between disjuncts"),
    "--serialise-assignments": (_one("false"), "assignments in files"),
}
