"""Counterexamples in the text form of VNN-LIB 1.0: ``((X_0 v) (X_1 v) ... (Y_0 v))``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from certify.core.errors import BadInput, LimitExceeded, one_line

_PAIR = re.compile(r"\(\s*([XY])_(\d{1,9})\s+([+-]?[0-9.][0-9.eE+-]{0,60})\s*\)\s*")
_LONGEST = 2**28  # characters


def format_assignment(x: Any, y: Any) -> str:
    """Inputs and outputs, one per line; every number reads back as exactly the same float.

    Args:
        x, y: arrays of any shape, in row-major order.
    """
    pairs = [
        f"({letter}_{i} {float(v)!r})"
        for letter, values in (("X", x), ("Y", y))
        for i, v in enumerate(np.asarray(values).reshape(-1))
    ]
    return "(" + "\n".join(pairs) + ")"


def parse_assignment(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and outputs as float64 vectors; the layouts of all known tools are read.

    Raises:
        BadInput: not an assignment, a number that is missing, given twice or not finite.
        LimitExceeded: longer than 256 MiB.
    """
    if len(text) > _LONGEST:
        raise LimitExceeded(f"an assignment of {len(text)} characters (at most {_LONGEST})")
    start, end = text.find("("), len(text.rstrip()) - 1
    if start < 0 or end <= start or text[end] != ")" or text[:start].strip() not in ("", "sat"):
        raise BadInput("not an assignment: it must look like ((X_0 0.5) (Y_0 1.0))")
    found: dict[str, dict[int, float]] = {"X": {}, "Y": {}}
    for letter, index, value in _pairs(text[start + 1 : end]):
        if index in found[letter]:
            raise BadInput(f"{letter}_{index} is given twice")
        found[letter][index] = value
    if not found["X"]:
        raise BadInput("an assignment without X_0: it must look like ((X_0 0.5) (Y_0 1.0))")
    return _vector("X", found["X"]), _vector("Y", found["Y"])


def _pairs(body: str) -> Iterable[tuple[str, int, float]]:
    at = len(body) - len(body.lstrip())
    while at < len(body):
        match = _PAIR.match(body, at)
        if match is None:
            raise BadInput(f"not an assignment at {one_line(body[at : at + 30])!r}")
        try:
            value = float(match[3])
        except ValueError:
            raise BadInput(f"{one_line(match[3], 40)} is not a number") from None
        if not math.isfinite(value):
            raise BadInput(f"{match[1]}_{match[2]} is not finite")
        yield match[1], int(match[2]), value
        at = match.end()


def _vector(letter: str, values: dict[int, float]) -> np.ndarray:
    missing = next((i for i in range(len(values)) if i not in values), None)
    if missing is not None:
        raise BadInput(f"{letter}_{missing} is missing")
    return np.array([values[i] for i in range(len(values))])
