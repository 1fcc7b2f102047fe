"""Bounds for batches of boxes: which method and precision pays, and planes for cutting.

Every margin and plane here comes from rigorous semantics, in float32 or in float64. The methods
are tried side by side now and then, on the same boxes, and the one that removes most volume per
second is used in between.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from certify.bounds.alpha import Alpha, optimise
from certify.bounds.budget import Limits
from certify.bounds.crown import Plan, interval_row_bounds, tighten
from certify.bounds.planes import planes
from certify.bounds.program import Program, prepare
from certify.core.outward import UNDERFLOW, add_down, dot_error, narrow
from certify.core.spec import Rows
from certify.ops.record import Interval
from certify.search.boxes import Floats, Frame
from certify.search.clip import Cuts
from certify.search.problem import Problem


class Way(NamedTuple):
    """A method to bound boxes by.

    Attributes:
        refine: backward passes for intermediate bounds.
        steps: gradient steps on the slopes of the rows.
        double: in float64.
    """

    refine: bool
    steps: int
    double: bool

    def __str__(self) -> str:
        name = "alpha" if self.steps else "crown" if self.refine else "crown-ibp"
        return f"{name} in {'float64' if self.double else 'float32'}"


class Bounded(NamedTuple):
    """What a batch of boxes came to.

    Attributes:
        margins: lower bounds of the rows minus their thresholds, ``(N, R)``; -inf for rows that
            were not looked at.
        cuts: the planes they rest on.
        seconds: of the clock, per box.
    effort: seconds of processor time, per box.
    """

    margins: Floats
    cuts: Cuts
    seconds: float
    effort: float


@dataclass(eq=False)
class Bounder:
    """Bounds boxes of one problem.

    Attributes:
        limits: of every call; its deadline leaves a little to report.
        exact32: whether float32 can be rigorous: weights and rows are stored exactly in it.
        known: sound bounds over the whole region, by precision.
    """

    problem: Problem
    frame: Frame
    limits: Limits
    exact32: bool = False
    known: dict[torch.dtype, list[Interval | None] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        program = prepare(self.problem.graph, torch.float32, self.problem.device)
        rows = self.problem.rows
        parts = [rows.y] if rows.x is None else [rows.y, rows.x]
        with np.errstate(over="ignore"):
            stored = all(bool((p.astype(np.float32) == p).all()) for p in parts)
        self.exact32 = program.exact and stored
        for dtype in (torch.float32, torch.float64):
            self.known[dtype] = _outward(self.problem.known, dtype)

    def program(self, double: bool) -> Program:
        """The runnable graph in a precision."""
        dtype = torch.float64 if double else torch.float32
        return prepare(self.problem.graph, dtype, self.problem.device)

    def bound(
        self,
        lower: Floats,
        upper: Floats,
        wanted: NDArray[np.bool_],
        way: Way,
        until: float = np.inf,
    ) -> Bounded:
        """Bounds of rows ``wanted (R,)`` over boxes ``(N, f)``, by a deadline of their own.

        Raises:
            OutOfTime: the deadline passed.
        """
        before, effort = time.perf_counter(), time.process_time()
        problem, program = self.problem, self.program(way.double)
        region = self.frame.region(lower, upper)
        with torch.no_grad():
            limits = replace(self.limits, deadline=min(until, self.limits.deadline))
            plan = Plan(refine=way.refine, known=self.known[program.dtype])
            state = tighten(program, region, plan, problem.semantics, limits)
            rows = row_tensors(program, problem.rows, wanted, len(lower))
            slopes = None
            if way.steps:
                slopes = optimise(state, rows, Alpha(iterations=way.steps, unit_iterations=0))[1]
            found = planes(state, rows, slopes)
            least = torch.fmax(found.minimum, interval_row_bounds(state, rows))
        margins = np.full((len(lower), len(wanted)), -np.inf)
        # The sign of a difference of two floats is exact: no rounding to account for here.
        threshold = problem.rows.bound.reshape(-1)[wanted]
        margins[:, wanted] = _plain(least) - threshold
        cuts = self._cuts(_plain(found.A), _plain(found.b), threshold)
        cuts = self._spread(cuts, wanted)
        N = len(lower)
        seconds, effort = time.perf_counter() - before, time.process_time() - effort
        return Bounded(margins, cuts, seconds / N, max(effort, 1e-6) / N)

    def _cuts(self, A: Floats, b: Floats, threshold: Floats) -> Cuts:
        """Planes in the free inputs alone, thresholds subtracted; rounded down."""
        frame = self.frame
        with np.errstate(all="ignore"):
            c = add_down(b, np.broadcast_to(-threshold, b.shape))
            if len(frame.fixed):
                rest = A[..., frame.fixed]
                low, high = frame.lower[frame.fixed], frame.upper[frame.fixed]
                size = np.abs(rest) @ np.maximum(np.abs(low), np.abs(high))
                lost = dot_error(2 * len(low)) * size + UNDERFLOW * (1 + len(low))
                least = np.maximum(rest, 0.0) @ low + np.minimum(rest, 0.0) @ high
                c = add_down(c, add_down(least, -lost))
        return Cuts(np.ascontiguousarray(A[..., frame.free]), np.where(np.isfinite(c), c, -np.inf))

    @staticmethod
    def _spread(cuts: Cuts, wanted: NDArray[np.bool_]) -> Cuts:
        """The planes among those of rows nobody asked for, which say nothing."""
        if wanted.all():
            return cuts
        N, _, f = cuts.A.shape
        A, c = np.zeros((N, len(wanted), f)), np.full((N, len(wanted)), -np.inf)
        A[:, wanted], c[:, wanted] = cuts
        return Cuts(A, c)


def row_tensors(
    program: Program, rows: Rows, wanted: NDArray[np.bool_], batch: int
) -> dict[int, Tensor]:
    """Coefficients ``(B, R, *shape)`` of the wanted rows by step index."""

    def tensor(part: Floats) -> Tensor:
        return torch.from_numpy(part[0, wanted]).to(dtype=program.dtype, device=program.device)

    def shaped(flat: Tensor, index: int) -> Tensor:
        shape = program.shape(index)
        return flat.reshape(1, -1, *shape).expand(batch, -1, *(-1,) * len(shape))

    found = {program.output: shaped(tensor(rows.y), program.output)}
    if rows.x is not None:
        start = 0
        for index in program.inputs:
            size = int(np.prod(program.shape(index)))
            part = shaped(tensor(rows.x[..., start : start + size]), index)
            found[index] = found[index] + part if index in found else part
            start += size
    return found


def _plain(t: Tensor) -> Floats:
    return t.detach().cpu().numpy().astype(np.float64)


def _outward(
    known: list[Interval | None] | None, dtype: torch.dtype
) -> list[Interval | None] | None:
    """Bounds in another precision, rounded outward."""
    if known is None:
        return None
    return [
        None
        if box is None
        else Interval(_narrowed(box.lower, dtype, -np.inf), _narrowed(box.upper, dtype, np.inf))
        for box in known
    ]


def _narrowed(value: Tensor, dtype: torch.dtype, direction: float) -> Tensor:
    if value.dtype.itemsize <= dtype.itemsize:
        return value.to(dtype)
    found: Tensor = narrow(value, dtype, direction)
    return found
