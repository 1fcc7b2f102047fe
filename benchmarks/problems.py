"""A reference instance as the engine sees it, and one call that bounds its rows from below.

Only for child processes: importing this imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.data import Reference
from certify.bounds.alpha import Alpha
from certify.bounds.budget import Limits
from certify.bounds.crown import State
from certify.bounds.methods import METHODS, analyse, fit, lower_rows
from certify.bounds.program import prepare
from certify.core.graph import Graph
from certify.core.region import Region
from certify.core.semantics import Semantics
from certify.core.spec import Rows
from certify.importers.model_file import load
from certify.importers.vnnlib import read_vnnlib

PEER_ALPHA = Alpha(iterations=20, unit_iterations=20)  # as many steps as the other library takes
VARIANTS = {
    "ibp": ("ibp", Alpha()), "crown-ibp": ("crown-ibp", Alpha()), "crown": ("crown", Alpha()),
    "forward": ("forward", Alpha()), "alpha-20": ("alpha", PEER_ALPHA), "alpha": ("alpha", Alpha()),
}
PRECISIONS = {"search": torch.float32, "real": torch.float64}


@dataclass(frozen=True, eq=False)
class Problem:
    """A network, the first input box of its property, and the rows to bound there."""

    network: Graph
    region: Region
    rows: Rows


def read(reference: Reference, network: Graph | None = None) -> Problem:
    """The problem of an instance; ``network`` spares reading the model again."""
    network = network or load(str(reference.onnx))
    case = read_vnnlib(reference.vnnlib).cases[0]
    return Problem(network, fit(case.box, network), case.spec.rows())


@dataclass(frozen=True, eq=False)
class Found:
    """Attributes:
        margins: lower bounds of the rows minus their thresholds, ``(R,)`` float64.
        state: what is known about every step.
    """

    margins: Tensor
    state: State


def lower_bounds(
    problem: Problem, variant: str, semantics: str, precision: torch.dtype | None = None
) -> Found:
    """Lower bounds of the rows, all intermediate bounds included.

    Args:
        variant: a key of `VARIANTS`.
        semantics: ``"search"``: plain floats; ``"real"``: with all rounding accounted for.
        precision: None for the one of the semantics in `PRECISIONS`.
    """
    name, alpha = VARIANTS[variant]
    method, arithmetic = METHODS[name], Semantics(semantics)
    with torch.no_grad():
        program = prepare(problem.network, precision or PRECISIONS[semantics])
        state = analyse(program, problem.region, method, arithmetic, Limits(), alpha)
        y: Any = torch.from_numpy(problem.rows.y).to(program.dtype)
        rows = {program.output: y.reshape(*y.shape[:2], *program.shape(program.output))}
        values, _ = lower_rows(state, rows, method, alpha)
    return Found(values[0].double() - torch.from_numpy(problem.rows.bound), state)
