"""Exhaustive search over a grid in a few input dimensions (Huang et al. 2017, "Safety verification
of deep neural networks").

The box is cut into cells, one around each grid point. A cell is decided when the margin at its
point exceeds what a Lipschitz constant of the margin, proved over the whole box, allows it to lose
on the way to the cell's border; or when rigorous bounds over the cell prove it. What stays open is
halved and looked at again. Points alone prove nothing: a search that leaves a cell open has tested,
not proved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from certify.bounds.budget import OutOfTime
from certify.bounds.crown import Plan, interval_row_bounds, tighten
from certify.bounds.evaluate import run
from certify.bounds.program import prepare
from certify.bounds.selftest import check_arithmetic
from certify.core.certificate import Verdict
from certify.core.errors import BadInput, LimitExceeded
from certify.core.outward import UNDERFLOW, add_down, dot_error
from certify.core.semantics import Semantics
from certify.core.split_tree import SplitTree
from certify.search.box_tree import BoxTree
from certify.search.boxes import Boxes, Floats, Frame
from certify.search.gradients import row_rates
from certify.search.leaf_bounds import Bounder, Way, row_tensors
from certify.search.problem import Problem
from certify.search.settle import Judge

OPEN, BY_LIPSCHITZ, BY_BOUNDS = 0, 1, 2
_WAY = Way(refine=True, steps=0, double=True)
_OPERATIONS = 2e8  # about this many for a batch of cells
_LARGEST = 1024  # cells in a batch
_RUNS = 1024  # points that were not proved safe and on which the model itself is run


@dataclass(frozen=True, eq=False)
class GridFindings:
    """What a search over a grid came to; N cells.

    Attributes:
        verdict: HOLDS only when every cell is decided; VIOLATED only when `Problem.suspect`
            confirmed a point; TIMEOUT; or UNKNOWN.
        lower, upper: ``(N, f)`` cells in the manipulated inputs; they cover the box when the
            verdict is HOLDS or UNKNOWN.
        decided: ``(N,)`` how each was decided: `OPEN`, `BY_LIPSCHITZ` or `BY_BOUNDS`.
        margin: ``(N,)`` the smallest proved lower bound of a deciding row over the cell.
        points: grid points and midpoints looked at; ``safe`` of them are proved safe, and of the
            others the model was run on ``tested``.
        rates: ``(R, f)`` proved Lipschitz constants of the rows; None where there are none.
        trees: the cells as one tree per clause, for a proof; () where it is none.
    """

    verdict: Verdict
    lower: Floats
    upper: Floats
    decided: NDArray[np.uint8]
    margin: Floats
    points: int
    safe: int
    tested: int
    rates: Floats | None
    trees: tuple[SplitTree, ...] = ()

    def count(self, how: int) -> int:
        """Cells decided in a way."""
        return int((self.decided == how).sum())


class _Cells(NamedTuple):
    """Boxes with a point in each, and what is known of them."""

    boxes: Boxes
    point: Floats

    def take(self, index: NDArray[np.bool_] | slice) -> _Cells:
        return _Cells(self.boxes.take(index), self.point[index])


class _Looked(NamedTuple):
    """What came of a batch of cells: ``(N,)`` each."""

    decided: NDArray[np.uint8]
    margin: Floats


def search_grid(problem: Problem, step: Floats, depth: int, most: int) -> GridFindings:
    """Decide a problem cell by cell.

    Args:
        problem: its region is a box, fixed in every input that is not manipulated; real semantics.
        step: ``(f,)`` distance of grid points in each input with a width.
        depth: how often a cell may be halved.
        most: cells there may be at any one time.

    Raises:
        BadInput: the region is no box.
        LimitExceeded: the grid has more cells than ``most``.
        BrokenArithmetic: this machine's arithmetic cannot carry a proof.
    """
    frame = Frame.of(problem.region)
    if frame is None:
        raise BadInput("a grid is laid over a box: give a Box or Linf region")
    check_arithmetic(problem.device)
    found = _Search(problem, frame, depth, most)
    return found.run(_axes(frame, step, most))


def strongest(problem: Problem, count: int) -> NDArray[np.int64]:
    """The ``count`` inputs in which the worst margin changes most across the box, ascending.

    By ``|gradient| * width`` at the centre; the first of equals.
    """
    frame = Frame.of(problem.region)
    if frame is None:
        raise BadInput("a grid is laid over a box: give a Box or Linf region")
    program = prepare(problem.graph, torch.float64, problem.device)
    centre = torch.from_numpy(0.5 * frame.lower + 0.5 * frame.upper).to(program.device)
    flat = centre.requires_grad_()
    sizes = [int(np.prod(s, dtype=np.int64)) for s in frame.shapes]
    pieces = torch.split(flat, sizes)
    parts = [x.reshape(1, *s) for x, s in zip(pieces, frame.shapes, strict=True)]
    with torch.enable_grad():
        y = run(program, tuple(parts))[program.output].reshape(-1)
        rows = problem.rows
        values = torch.from_numpy(rows.y[0]).to(y) @ y
        if rows.x is not None:
            values = values + torch.from_numpy(rows.x[0]).to(y) @ flat
        values = values - torch.from_numpy(rows.bound.reshape(-1)).to(y)
        plain = values.detach().cpu().numpy()[None]
        clause = int(rows.clause_margins(plain)[0].argmin())
        inside = np.flatnonzero(rows.group == clause)
        row = int(inside[plain[0, inside].argmax()])
        (gradient,) = torch.autograd.grad(values[row], flat)
    reach = np.abs(gradient.cpu().numpy()) * (frame.upper - frame.lower)
    order = np.argsort(-reach[frame.free], kind="stable")[:count]
    return np.sort(frame.free[order])


class _Axes(NamedTuple):
    """Grid points and borders of cells: lists of ``(n_i,)`` points and ``(n_i + 1,)`` borders."""

    points: list[Floats]
    borders: list[Floats]


def _axes(frame: Frame, step: Floats, most: int) -> _Axes:
    """Points at both ends and every ``step`` in between; borders half way between points."""
    low, high = frame.lower[frame.free], frame.upper[frame.free]
    if step.shape != low.shape or not (np.isfinite(step) & (step > 0)).all():
        raise BadInput(f"a grid needs a positive step for each of {len(low)} inputs")
    with np.errstate(over="ignore"):
        counts = np.ceil((high - low) / step) + 1
    total = float(np.prod(counts))
    if not total <= most:
        raise LimitExceeded(f"the grid has {total:.3g} points, more than {most}: take a larger "
                            "step or fewer inputs")
    points = [np.append(np.minimum(a + s * np.arange(int(n) - 1), b), b)
              for a, b, s, n in zip(low, high, step, counts, strict=True)]
    borders = [np.concatenate([p[:1], 0.5 * p[1:] + 0.5 * p[:-1], p[-1:]]) for p in points]
    return _Axes(points, borders)


class _Search:
    """One search in progress."""

    def __init__(self, problem: Problem, frame: Frame, depth: int, most: int) -> None:
        self.problem, self.frame, self.depth, self.most = problem, frame, depth, most
        self.clauses = int(problem.rows.group[-1]) + 1
        self.tree = BoxTree(self.clauses)
        self.judge = Judge(problem.rows)
        self.bounder = Bounder(problem, frame, problem.limits)
        self.program = self.bounder.program(double=True)
        self.size = int(np.clip(_OPERATIONS / self.program.operations, 16, _LARGEST))
        self.rates: Floats | None = None
        self.done: list[tuple[Boxes, _Looked]] = []
        self.points, self.safe, self.tested = 0, 0, 0
        self.violated = False

    def run(self, axes: _Axes) -> GridFindings:
        verdict = Verdict.TIMEOUT
        try:
            self.rates = self._rates()
            cells, level = self._first(axes), 0
            while len(cells.boxes):
                left = self._level(cells, final=level == self.depth)
                if self.violated or level == self.depth:
                    break
                cells, level = self._halved(left), level + 1
            verdict = self._verdict()
        except OutOfTime:
            pass
        return self._findings(verdict)

    def _rates(self) -> Floats | None:
        """Lipschitz constants over the whole box, from CROWN's bounds of the neurons."""
        rows = self.problem.rows
        if not len(self.frame.free):
            return np.zeros((len(rows.strict), 0))
        with torch.no_grad():
            state = tighten(self.program, self.problem.region, Plan(), Semantics.REAL,
                            self.problem.limits)
            every = row_tensors(self.program, rows, np.ones(len(rows.strict), dtype=bool), 1)
            return row_rates(state, every, self.frame.free)

    def _first(self, axes: _Axes) -> _Cells:
        """Every cell of the grid, by halving blocks of them along their longest side."""
        counts = np.array([len(p) for p in axes.points], dtype=np.int64)
        start, stop = np.zeros((1, len(counts)), dtype=np.int64), counts[None]
        node = np.zeros(1, dtype=np.int64)
        border, point = _table(axes.borders), _table(axes.points)
        dims = np.arange(len(counts))
        while len(counts) and (stop - start > 1).any():
            wide = (stop - start > 1).any(axis=1)
            low, high = start[wide], stop[wide]
            picked, here = (high - low).argmax(axis=1), np.arange(len(low))
            middle = (low[here, picked] + high[here, picked]) // 2
            boxes = self._boxes(border[dims, low], border[dims, high], node[wide])
            first, second = self.tree.split(boxes, picked, border[picked, middle])
            ends, starts = high.copy(), low.copy()
            ends[here, picked], starts[here, picked] = middle, middle
            start = np.concatenate([start[~wide], low, starts])
            stop = np.concatenate([stop[~wide], ends, high])
            node = np.concatenate([node[~wide], first, second])
            self.problem.limits.check()
        boxes = self._boxes(border[dims, start], border[dims, stop], node)
        return _Cells(boxes, point[dims, start])

    def _boxes(self, lower: Floats, upper: Floats, node: NDArray[np.int64]) -> Boxes:
        count = len(node)
        return Boxes(lower, upper, np.ones((count, self.clauses), dtype=bool),
                     np.full(count, -np.inf), np.zeros(count, dtype=np.int64), node)

    def _level(self, cells: _Cells, final: bool) -> _Cells:
        """Look at all cells; those still open, or none of them when nothing comes after."""
        left = [cells.take(slice(0, 0))]
        for at in range(0, len(cells.boxes), self.size):
            self.problem.limits.check()
            batch = cells.take(slice(at, at + self.size))
            looked = self._look(batch)
            keep = (looked.decided != OPEN) | final | self.violated
            self.done.append((batch.boxes.take(keep),
                              _Looked(looked.decided[keep], looked.margin[keep])))
            left.append(batch.take(~keep))
            if self.violated:
                break
        nodes = [c.boxes for c in left]
        joined = Boxes(*(np.concatenate([getattr(b, name) for b in nodes]) for name in
                         ("lower", "upper", "open", "margin", "rule", "node")))
        return _Cells(joined, np.concatenate([c.point for c in left]))

    def _look(self, cells: _Cells) -> _Looked:
        boxes = cells.boxes
        least = self._at(cells.point)
        safe = self._refuted(least)
        self.points, self.safe = self.points + len(safe), self.safe + int(safe.sum())
        worst = self.problem.rows.clause_margins(np.nan_to_num(least, nan=-np.inf)).min(axis=1)
        decided = np.full(len(safe), OPEN, dtype=np.uint8)
        if self._suspects(cells.point[~safe], worst[~safe]):
            return _Looked(decided, worst)
        rows = self._lipschitz(cells, least)
        decided[self._refuted(rows)] = BY_LIPSCHITZ
        hard = (decided == OPEN) & safe  # a cell whose own point is unsafe cannot be proved
        if hard.any():
            wanted = np.ones(rows.shape[1], dtype=bool)
            found = self.bounder.bound(boxes.lower[hard], boxes.upper[hard], wanted, _WAY)
            rows[hard] = np.fmax(rows[hard], found.margins)
            proved = np.zeros(len(safe), dtype=bool)
            proved[hard] = self._refuted(rows[hard])
            decided[proved] = BY_BOUNDS
        rows = np.nan_to_num(rows, nan=-np.inf)
        return _Looked(decided, self.problem.rows.clause_margins(rows).min(axis=1))

    def _refuted(self, margins: Floats) -> NDArray[np.bool_]:
        """``(N,)`` where margins ``(N, R)`` refute every clause."""
        return np.asarray(self.judge.refuted(margins).all(axis=1))

    def _at(self, points: Floats) -> Floats:
        """Proved lower bounds ``(N, R)`` of the rows minus their thresholds at points."""
        rows = self.problem.rows
        wanted = np.ones(len(rows.strict), dtype=bool)
        with torch.no_grad():
            state = tighten(self.program, self.frame.region(points, points), Plan(refine=False),
                            Semantics.REAL, self.problem.limits)
            tensors = row_tensors(self.program, rows, wanted, len(points))
            least = interval_row_bounds(state, tensors).cpu().numpy()
        # The sign of a difference of two floats is exact; `_lipschitz` goes on from it rounded.
        return np.asarray(add_down(least, np.broadcast_to(-rows.bound.reshape(-1), least.shape)))

    def _lipschitz(self, cells: _Cells, least: Floats) -> Floats:
        """What the margins at the points leave over the cells; -inf for nothing."""
        if self.rates is None:
            return np.full_like(least, -np.inf)
        boxes = cells.boxes
        radius = np.maximum(boxes.upper - cells.point, cells.point - boxes.lower) * (1 + 2.0**-50)
        with np.errstate(all="ignore"):
            lost = radius @ self.rates.T
            lost = lost * (1 + dot_error(radius.shape[1])) + UNDERFLOW * (1 + radius.shape[1])
            found = add_down(least, -lost)
        return np.where(np.isfinite(found), found, -np.inf)

    def _suspects(self, points: Floats, margin: Floats) -> bool:
        """Run the model on points that are not proved safe, the worst first."""
        if self.problem.suspect is None:
            return False
        every = self.frame.points(points[np.argsort(margin, kind="stable")])
        for x in every[: max(0, _RUNS - self.tested)]:
            self.tested += 1
            if self.problem.suspect(x):
                self.violated = True
                return True
        return False

    def _halved(self, cells: _Cells) -> _Cells:
        """Halve cells where the margin may change most; those that cannot be stay open."""
        nothing, boxes = cells.take(slice(0, 0)), cells.boxes
        if not len(boxes):
            return nothing
        if 2 * len(boxes) > self.most or not len(self.frame.free):
            self._give_up(boxes)
            return nothing
        rates = np.ones(len(self.frame.free)) if self.rates is None else self.rates.max(axis=0)
        rates = rates if np.isfinite(rates).all() else np.ones_like(rates)
        picked = ((boxes.upper - boxes.lower) * rates).argmax(axis=1)
        every = np.arange(len(boxes))
        low, high = boxes.lower[every, picked], boxes.upper[every, picked]
        point = 0.5 * low + 0.5 * high
        can = (low < point) & (point < high)
        self._give_up(boxes.take(~can))
        boxes, picked, point, here = boxes.take(can), picked[can], point[can], every[: can.sum()]
        first, second = self.tree.split(boxes, picked, point)
        upper, lower = boxes.upper.copy(), boxes.lower.copy()
        upper[here, picked], lower[here, picked] = point, point
        halves = self._boxes(np.concatenate([boxes.lower, lower]),
                             np.concatenate([upper, boxes.upper]), np.concatenate([first, second]))
        return _Cells(halves, 0.5 * halves.lower + 0.5 * halves.upper)

    def _give_up(self, boxes: Boxes) -> None:
        """Keep cells as open for good."""
        count = len(boxes)
        self.done.append((boxes, _Looked(np.full(count, OPEN, np.uint8), np.full(count, -np.inf))))

    def _verdict(self) -> Verdict:
        if self.violated:
            return Verdict.VIOLATED
        still = any((looked.decided == OPEN).any() for _, looked in self.done)
        return Verdict.UNKNOWN if still else Verdict.HOLDS

    def _findings(self, verdict: Verdict) -> GridFindings:
        width = len(self.frame.free)
        lower = np.concatenate([np.zeros((0, width)), *(b.lower for b, _ in self.done)])
        upper = np.concatenate([np.zeros((0, width)), *(b.upper for b, _ in self.done)])
        decided = np.concatenate([np.zeros(0, np.uint8), *(k.decided for _, k in self.done)])
        margin = np.concatenate([np.zeros(0), *(k.margin for _, k in self.done)])
        trees: tuple[SplitTree, ...] = ()
        if verdict is Verdict.HOLDS and not self.tree.full:
            least = float(margin.min())
            trees = self.tree.finished(self.frame, list(self.program.inputs), least)
        return GridFindings(verdict, lower, upper, decided, margin, self.points, self.safe,
                            self.tested, self.rates, trees)


def _table(axes: list[Floats]) -> Floats:
    """Lists of different lengths as one table, the last number repeated."""
    longest = max((len(a) for a in axes), default=0)
    found = np.zeros((len(axes), longest))
    for row, axis in zip(found, axes, strict=True):
        row[:] = axis[-1]
        row[: len(axis)] = axis
    return found


