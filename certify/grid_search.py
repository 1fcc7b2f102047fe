"""`grid_search`: an exhaustive search over a few inputs, as a certificate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.certificate import Certificate, Counterexample, Evidence, Guarantee, Verdict
from certify.core.claim import Case
from certify.core.errors import BadInput, UsageError
from certify.core.outward import narrow
from certify.core.provenance import Provenance, Scalar, now, versions
from certify.core.region import Box, Product, Region, as_inputs
from certify.importers.model_claim import claim_about
from certify.settings import DEFAULT_MEMORY
from certify.wording import assumptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from certify.core.graph import Graph
    from certify.core.spec import Spec
    from certify.search.boxes import Frame
    from certify.search.grid import GridFindings
    from certify.search.problem import Problem

MOST_DIMS = 6
_LARGEST_TREES = 2**25  # bytes of all trees in a certificate
_POINTS = 9  # per dimension, where no step is given
Step = float | Sequence[float] | None


@dataclass(frozen=True)
class GridOptions:
    """How to search.

    Attributes:
        at: where the other inputs are fixed, all inputs flat and joined; None: the centre.
        count: dimensions chosen where none are named.
        depth: how often an open cell may be halved.
        cells: the most cells at any one time.
        timeout: seconds.
        memory: bytes that coefficient tensors may take.
        device: ``"cpu"`` or ``"cuda"``.
    """

    at: Any = None
    count: int = 2
    depth: int = 8
    cells: int = 200_000
    timeout: float = 60.0
    memory: int = DEFAULT_MEMORY
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_DIMS:
            raise UsageError(f"count must be from 1 to {MOST_DIMS}, got {self.count}")
        if self.depth < 0 or self.cells < 1 or not self.timeout > 0:
            raise UsageError("depth must be at least 0, cells at least 1 and timeout above 0")


def grid_search(
    network: Graph,
    region: Region,
    spec: Spec,
    dims: Sequence[int] | None = None,
    step: Step = None,
    **options: Any,
) -> Certificate:
    """Search a grid over a few inputs, the others fixed (Huang et al. 2017, made rigorous).

    The claim is about the box of the manipulated inputs only: its region, in the certificate, is
    ``region`` with every other input fixed. A grid point alone proves nothing about the points
    around it; see `certify.search.grid` for what does.

    Args:
        network: from `certify.load` or `certify.from_torch`.
        region: one `Box` or `Linf`, or a `Product` of them; one example.
        spec: of one example.
        dims: at most 6 positions in the flattened, joined inputs; None: those in which the margin
            changes most.
        step: distance of grid points, one number or one per dimension in ascending order of
            ``dims``; None: 9 points in each.
        options: fields of `GridOptions`.

    Returns:
        A certificate about real arithmetic. HOLDS with evidence that `certify.check` establishes
        again; VIOLATED with a point on which the model itself was run; UNKNOWN with the reason
        "tested, not proved" where a cell stayed open; TIMEOUT. Its settings count the cells by how
        they were decided.

    Raises:
        BadInput: region, specification, ``dims``, ``at`` or ``step`` that do not fit.
        LimitExceeded: the grid has too many points.
        UsageError: an unknown option, or a value out of range.
    """
    started, begun = time.monotonic(), now()
    try:
        chosen = GridOptions(**options)
    except TypeError:
        raise UsageError(f"unknown option among {', '.join(sorted(options))}") from None
    whole = _fitted(network, region, spec)
    problem = _problem(network, whole, spec, chosen, started)
    slab = _slab(problem, dims, chosen)
    finds = _Witness(network, slab, spec)
    found = _searched(problem, slab, finds, step, chosen)
    settings: dict[str, Scalar] = {
        "dims": ",".join(str(d) for d in _frame(slab).free),
        "step": "" if step is None else ",".join(f"{s:.17g}" for s in np.atleast_1d(step)),
        "depth": chosen.depth,
        "timeout": chosen.timeout,
        "model_path": str(network.source.get("path", "")),
        **_counts(found),
    }
    claim = claim_about(network, (Case(slab, spec),))
    seconds = time.monotonic() - started
    provenance = Provenance(claim.model_sha256, None, "grid", settings, 0, versions(),
                            chosen.device, seconds, begun)
    return Certificate(found.verdict, claim, Guarantee(1.0, "real", assumptions("real")),
                       provenance, counterexample=finds.found, evidence=_evidence(found),
                       reason=_reason(found, chosen))


class _Witness:
    """Keeps the counterexample that the model itself confirmed."""

    def __init__(self, network: Graph, region: Region, spec: Spec) -> None:
        from certify.search.replay import confirm

        self._confirm = partial(confirm, network, region, spec)
        self.found: Counterexample | None = None

    def __call__(self, x: np.ndarray) -> bool:
        self.found = self._confirm(x)
        return self.found is not None


def _fitted(network: Graph, region: Region, spec: Spec) -> Region:
    parts = as_inputs(region, list(network.input_shapes))
    whole: Region = parts[0] if len(parts) == 1 else Product(parts)
    if whole.batch != 1 or spec.batch != 1:
        raise BadInput("a grid search is about one example; give a region and a spec of batch 1")
    size = int(np.prod(network.output_shape, dtype=np.int64))
    if spec.num_outputs != size:
        raise BadInput(f"the specification is about {spec.num_outputs} outputs, the network has "
                       f"{size}")
    return whole


def _problem(
    network: Graph, region: Region, spec: Spec, options: GridOptions, started: float
) -> Problem:
    from certify.bounds.budget import Limits
    from certify.search.problem import Problem

    limits = Limits(options.memory, started + 0.95 * options.timeout)
    return Problem(network, region, spec.rows(), limits=limits, device=options.device)


def _frame(region: Region) -> Frame:
    from certify.search.boxes import Frame

    found = Frame.of(region)
    if found is None:
        raise BadInput("a grid is laid over a box: give a Box or Linf region")
    return found


def _slab(problem: Problem, dims: Sequence[int] | None, options: GridOptions) -> Region:
    """The region with all inputs but ``dims`` fixed."""
    from certify.search.grid import strongest

    frame = _frame(problem.region)
    picked = strongest(problem, options.count) if dims is None else _named(dims, len(frame.lower))
    at = _fixed(problem, frame, options.at)
    lower, upper = at.copy(), at
    lower[picked], upper[picked] = frame.lower[picked], frame.upper[picked]
    ends = zip(frame.split(lower[None]), frame.split(upper[None]), strict=True)
    parts = tuple(Box(a, b).batched(s) for (a, b), s in zip(ends, frame.shapes, strict=True))
    return parts[0] if len(parts) == 1 else Product(parts)


def _named(dims: Sequence[int], size: int) -> NDArray[np.int64]:
    wanted = sorted({int(d) for d in dims})
    if not 1 <= len(wanted) <= MOST_DIMS or len(wanted) != len(dims):
        raise BadInput(f"dims must name 1 to {MOST_DIMS} different inputs, got {list(dims)[:8]}")
    if wanted[0] < 0 or wanted[-1] >= size:
        raise BadInput(f"dims must be from 0 to {size - 1}, got {wanted}")
    return np.array(wanted, dtype=np.int64)


def _fixed(problem: Problem, frame: Frame, at: Any) -> NDArray[np.float64]:
    """Where the other inputs lie: a number of the model's precision, where the box holds one."""
    from certify.search.membership import precision

    if at is not None:
        given = np.array(at, dtype=np.float64).reshape(-1)
        if given.shape != frame.lower.shape:
            raise BadInput(f"at has {given.size} elements, the inputs have {frame.lower.size}")
        if not ((given >= frame.lower) & (given <= frame.upper)).all():
            raise BadInput("at lies outside the region")
        return given
    dtype = precision(str(problem.graph.source.get("dtype", "float32")))
    middle = 0.5 * frame.lower + 0.5 * frame.upper
    near = [narrow(middle, dtype, way).astype(np.float64) for way in (-np.inf, np.inf)]
    for point in near:
        inside = (point >= frame.lower) & (point <= frame.upper)
        middle = np.where(inside, point, middle)
    return np.asarray(middle)


def _searched(
    problem: Problem, slab: Region, finds: _Witness, step: Step, options: GridOptions
) -> GridFindings:
    from dataclasses import replace

    from certify.search.grid import search_grid

    frame = _frame(slab)
    if step is None:
        every = frame.width / (_POINTS - 1)
    else:
        try:
            every = np.broadcast_to(np.asarray(step, dtype=np.float64), frame.width.shape)
        except ValueError:
            raise BadInput(f"step has {np.size(step)} numbers for {len(frame.width)} inputs with "
                           "a width") from None
    asked = replace(problem, region=slab, suspect=finds)
    return search_grid(asked, every, options.depth, options.cells)


def _counts(found: GridFindings) -> dict[str, Scalar]:
    from certify.search.grid import BY_BOUNDS, BY_LIPSCHITZ, OPEN

    least = float(found.margin.min(initial=np.inf))
    return {
        "cells": len(found.decided),
        "cells_by_lipschitz": found.count(BY_LIPSCHITZ),
        "cells_by_bounds": found.count(BY_BOUNDS),
        "cells_open": found.count(OPEN),
        "points": found.points,
        "points_proved_safe": found.safe,
        "points_run": found.tested,
        "least_margin": least if np.isfinite(least) else None,
    }


def _evidence(found: GridFindings) -> tuple[Evidence, ...]:
    if found.verdict is not Verdict.HOLDS:
        return ()
    small = sum(tree.size for tree in found.trees) <= _LARGEST_TREES
    return (Evidence("search", trees=(found.trees,) if found.trees and small else ()),)


def _reason(found: GridFindings, options: GridOptions) -> str:
    from certify.search.grid import OPEN

    if found.verdict not in (Verdict.UNKNOWN, Verdict.TIMEOUT):
        return ""
    points = f"{found.safe} of {found.points} points proved safe"
    if found.verdict is Verdict.TIMEOUT:
        return f"the time limit of {options.timeout:g} s passed: tested, not proved; {points}"
    return (f"tested, not proved: {found.count(OPEN)} of {len(found.decided)} cells stayed open "
            f"after {options.depth} halvings; {points}; a smaller step or a larger depth may help")
