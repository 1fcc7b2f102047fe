"""Points that may be counterexamples: where planes of open sub-problems are lowest."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from certify.search.neuron_split.anatomy import Anatomy
from certify.search.neuron_split.domains import Domains
from certify.search.neuron_split.root import Root

_NEAR = 1e-6  # relative to the thresholds: the model itself may round the other way
_AT_ONCE = 3  # points handed over per batch
_SHARE, _START = 0.1, 0.5  # of the time so far, and seconds in any case, for the model itself


@dataclass(eq=False)
class Hunt:
    """Tries points on the model.

    Attributes:
        spent: seconds the model itself has taken, since ``started``.
    """

    root: Root
    spent: float = 0.0
    started: float = 0.0

    def __post_init__(self) -> None:
        self.started = time.perf_counter()

    def found(self, anatomy: Anatomy, domains: Domains) -> bool:
        """Whether a point where a plane is lowest is a confirmed counterexample."""
        if self.root.problem.suspect is None:
            return False
        output = anatomy.values[self.root.fast.output]
        x = torch.cat([p.reshape(len(domains), -1) for p in anatomy.points], 1)
        return self.tried(x, self.distances(x, output))

    def distances(self, x: Tensor, output: Tensor) -> Tensor:
        """The largest row of the nearest clause, ``(N,)``: at most 0 inside the unsafe set."""
        clauses = self.root.clauses
        g = torch.einsum("kro,no->nkr", clauses.y, output.reshape(len(x), -1).double())
        if clauses.x is not None:
            g = g + torch.einsum("kri,ni->nkr", clauses.x, x.double())
        g = torch.where(clauses.used, g - clauses.bound, -torch.inf)
        return g.amax(2).amin(1).nan_to_num(nan=torch.inf)

    def tried(self, x: Tensor, distance: Tensor) -> bool:
        """Whether one of the nearest points is confirmed."""
        suspect = self.root.problem.suspect
        if suspect is None:
            return False
        near = _NEAR * (1 + float(self.root.clauses.bound.abs().max()))
        for i in torch.argsort(distance)[:_AT_ONCE].tolist():
            if not float(distance[i]) <= near or not self._affordable():
                return False
            before = time.perf_counter()
            confirmed = suspect(np.asarray(x[i].double().cpu().numpy()))
            self.spent += time.perf_counter() - before
            if confirmed:
                return True
        return False

    def _affordable(self) -> bool:
        return self.spent <= _START + _SHARE * (time.perf_counter() - self.started)
