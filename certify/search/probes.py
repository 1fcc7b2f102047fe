"""Points of open boxes that may be counterexamples, run through the model a few at a time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from certify.bounds import evaluate
from certify.core.spec import Rows
from certify.search.boxes import Boxes, Floats
from certify.search.clip import Cuts
from certify.search.leaf_bounds import Bounder

_NEAR = 1e-6  # relative to the thresholds: the model itself may round the other way
_AT_ONCE = 3  # points handed over per batch
_SHARE = 0.1  # of the time so far that the model itself may take
_START = 0.5  # seconds it may take in any case
_BOXES = 128  # looked at per batch, the worst first


@dataclass(eq=False)
class Probes:
    """Looks for counterexamples at centres of boxes and where planes are lowest.

    Attributes:
        spent: seconds the model itself has taken.
        best: the most unsafe value that was found, for reports; below 0 is unsafe.
    """

    bounder: Bounder
    started: float
    spent: float = 0.0
    best: float = np.inf

    def found(self, boxes: Boxes, cuts: Cuts, best: NDArray[np.bool_]) -> bool:
        """Whether a point of one of the boxes is a confirmed counterexample.

        Args:
            cuts: planes over the boxes.
            best: ``(N, R)``, the rows whose minimisers to try.
        """
        suspect = self.bounder.problem.suspect
        if suspect is None or not len(boxes):
            return False
        order = np.argsort(boxes.margin, kind="stable")[:_BOXES]
        points = _candidates(boxes.take(order), cuts.take(order), best[order])
        flat = self.bounder.frame.points(points)
        values = self._values(flat)
        self.best = min(self.best, float(values.min()))
        near = _NEAR * (1 + float(np.abs(self.bounder.problem.rows.bound).max()))
        for i in np.argsort(values, kind="stable")[:_AT_ONCE]:
            if not values[i] <= near or not self._affordable():
                return False
            before = time.perf_counter()
            confirmed = suspect(flat[i])
            self.spent += time.perf_counter() - before
            if confirmed:
                return True
        return False

    def _affordable(self) -> bool:
        return self.spent <= _START + _SHARE * (time.perf_counter() - self.started)

    def _values(self, flat: Floats) -> Floats:
        """The largest row of the clause nearest to being satisfied, ``(N,)``, in plain floats."""
        bounder, rows = self.bounder, self.bounder.problem.rows
        program = bounder.program(not bounder.exact32)
        with torch.no_grad():
            inputs = tuple(
                torch.from_numpy(p).to(dtype=program.dtype, device=program.device)
                for p in bounder.frame.split(flat)
            )
            out = evaluate.run(program, inputs)[program.output].flatten(1)
        y = out.double().cpu().numpy().reshape(len(flat), -1)
        g = y @ rows.y[0].T - rows.bound.reshape(-1)
        if rows.x is not None:
            g = g + flat @ rows.x[0].T
        return _nearest(rows, np.nan_to_num(g, nan=np.inf))


def _nearest(rows: Rows, g: Floats) -> Floats:
    starts = np.searchsorted(rows.group, np.arange(rows.group[-1] + 1))
    found: Floats = np.maximum.reduceat(g, starts, axis=1).min(axis=1)
    return found


def _candidates(boxes: Boxes, cuts: Cuts, best: NDArray[np.bool_]) -> Floats:
    """Centres, and for one row of each box the corner where its plane is lowest."""
    centre = 0.5 * boxes.lower + 0.5 * boxes.upper
    row = best.argmax(axis=1)
    A = cuts.A[np.arange(len(row)), row]
    corner = np.where(A >= 0, boxes.lower, boxes.upper)
    return np.concatenate([centre, corner])
