"""VNN-LIB 1.0 property files, plain or gzipped, as the verification competition ships them.

The assertions of a file describe a counterexample. A query is therefore *unsat*, the property
holds, when every `Case` of it holds. Decimals are never rounded to nearest: boxes and thresholds
are rounded so that the unsafe set only grows, and the exact ends are kept for counterexamples.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from certify.core.errors import BadInput, CertifyError, one_line
from certify.importers.vnnlib_cases import Case, build, inner, inner_float32
from certify.importers.vnnlib_parser import parse
from certify.importers.vnnlib_text import Limits, read_text
from certify.importers.vnnlib_writer import write_vnnlib

__all__ = ["Case", "Limits", "VnnlibQuery", "inner", "inner_float32", "read_vnnlib", "write_vnnlib"]


@dataclass(frozen=True, eq=False)
class VnnlibQuery:
    """A property file; a sequence of its cases.

    Attributes:
        num_inputs: declared ``X_i``: elements of the model's flattened inputs, in order.
        num_outputs: declared ``Y_i``.
        cases: input boxes with the unsafe set in each; the query holds iff all of them hold.
        sha256: of the uncompressed file.
    """

    num_inputs: int
    num_outputs: int
    cases: tuple[Case, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)

    def __getitem__(self, index: int) -> Case:
        return self.cases[index]

    def check_sizes(self, num_inputs: int, num_outputs: int) -> None:
        """Raise `BadInput` unless a model with these flattened sizes fits the file."""
        for what, letter, declared, wanted in (("inputs", "X", self.num_inputs, num_inputs),
                                               ("outputs", "Y", self.num_outputs, num_outputs)):
            if declared != wanted:
                raise BadInput(f"the property declares {declared} {what} (up to {letter}_"
                               f"{declared - 1}) but the model has {wanted}: use the file made for "
                               "this model")


def read_vnnlib(path: str | os.PathLike[str], *, limits: Limits | None = None) -> VnnlibQuery:
    """Read a property.

    Args:
        path: a ``.vnnlib`` or ``.vnnlib.gz`` file (compression is told by content).
        limits: what an untrusted file may ask for.

    Raises:
        BadInput: unreadable, malformed, inconsistent (an empty box, an input without a bound); the
            message names the file and the line or the variable.
        LimitExceeded: beyond ``limits``.
        Unsupported: negation, products of variables, VNN-LIB 2.0.
    """
    limits = limits or Limits()
    try:
        text = read_text(Path(path), limits)
        symbols, formula = parse(text, limits)
        cases = build(symbols, formula, limits)
        return VnnlibQuery(symbols.count(True), symbols.count(False), cases, text.sha256)
    except CertifyError as error:
        raise type(error)(one_line(f"{os.fspath(path)}: {error}")) from error
