"""The triangle relaxation of a ReLU network as a linear program, and its exact optimum as a MILP.

Independent of the engine: only the meaning (``forward``) of affine operators is probed, and HiGHS
does the rest. One `Polyhedron` grows node by node, so that bounds of one layer can be compared with
the best that the layers before it allow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds as Limits
from scipy.optimize import LinearConstraint, linprog, milp
from scipy.sparse import csr_matrix

from certify import ops
from certify.core.graph import INPUT, Graph, Node
from certify.ops.record import Site

REGISTRY = ops.load()
TOLERANCE = 1e-6  # HiGHS: feasibility and integrality


@dataclass
class Polyhedron:
    """Linear constraints ``A z <= b`` over all elements so far; binaries pick a branch."""

    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    integer: list[int] = field(default_factory=list)
    rows: list[tuple[dict[int, float], float, float]] = field(default_factory=list)
    place: dict[str, np.ndarray] = field(default_factory=dict)

    def fresh(self, low: Any, high: Any, integer: bool = False) -> np.ndarray:
        """New variables with bounds; their numbers, of the same shape."""
        low, high = np.broadcast_arrays(np.asarray(low, float), np.asarray(high, float))
        first = len(self.lower)
        self.lower += low.ravel().tolist()
        self.upper += high.ravel().tolist()
        self.integer += [int(integer)] * low.size
        return np.arange(first, first + low.size).reshape(low.shape)

    def input(self, node: Node, low: np.ndarray, high: np.ndarray) -> None:
        self.place[node.name] = self.fresh(low.reshape(node.shape), high.reshape(node.shape))

    def affine(self, graph: Graph, node: Node) -> None:
        """``z = sum L_i x_i + b``, probed."""
        parts, offset = probed(graph, node)
        out = self.fresh(np.full(node.shape, -np.inf), np.inf)
        for k, z in enumerate(out.ravel()):
            row = {int(z): 1.0}
            for name, matrix in parts:
                for j in np.flatnonzero(matrix[k]):
                    at = int(self.place[name].ravel()[j])
                    row[at] = row.get(at, 0.0) - matrix[k, j]
            self.rows.append((row, offset[k], offset[k]))
        self.place[node.name] = out

    def relu(self, node: Node, low: np.ndarray, high: np.ndarray, exact: bool) -> None:
        """The triangle over ``[low, high]``; with ``exact``, a binary per unstable neuron."""
        given = self.place[node.inputs[0]]
        out = self.fresh(np.maximum(low, 0.0), np.maximum(high, 0.0))
        for x, y, lo, u in zip(given.ravel(), out.ravel(), low.ravel(), high.ravel(), strict=True):
            x, y = int(x), int(y)
            if lo >= 0:
                self.rows.append(({y: 1.0, x: -1.0}, 0.0, 0.0))
            elif u > 0:
                self.rows.append(({y: 1.0, x: -1.0}, 0.0, np.inf))
                self.rows.append(
                    ({y: 1.0 - lo / u, x: -1.0}, -np.inf, -lo)
                )  # y (u - lo) / u <= x - lo
                if exact:
                    on = int(self.fresh(0.0, 1.0, integer=True))
                    self.rows.append(({y: 1.0, x: -1.0, on: -lo}, -np.inf, -lo))
                    self.rows.append(({y: 1.0, on: -u}, -np.inf, 0.0))
        self.place[node.name] = out

    def _system(self) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
        data = [(i, j, v) for i, (row, _, _) in enumerate(self.rows) for j, v in row.items()]
        i, j, v = (np.array(part) for part in zip(*data, strict=True))
        matrix = csr_matrix((v, (i, j)), shape=(len(self.rows), len(self.lower)))
        return matrix, *(np.array([row[k] for row in self.rows]) for k in (1, 2))

    def minima(self, name: str, rows: np.ndarray) -> np.ndarray:
        """The linear program's optimum of each of ``rows (R, n)`` of a node."""
        matrix, least, most = self._system()
        equal = least == most
        A = csr_matrix(
            np.vstack(
                [
                    matrix[~equal & np.isfinite(most)].toarray(),
                    -matrix[~equal & np.isfinite(least)].toarray(),
                ]
            )
        )
        b = np.concatenate([most[~equal & np.isfinite(most)], -least[~equal & np.isfinite(least)]])
        found = []
        for row in rows:
            cost = np.zeros(len(self.lower))
            cost[self.place[name].ravel()] = row
            solved = linprog(
                cost,
                A if len(b) else None,
                b if len(b) else None,
                matrix[equal],
                least[equal],
                list(zip(self.lower, self.upper, strict=True)),
                method="highs",
            )
            assert solved.status == 0, solved.message
            found.append(solved.fun)
        return np.array(found)

    def exact_minimum(self, name: str, row: np.ndarray) -> tuple[float, np.ndarray]:
        """The mixed-integer optimum of one row, and the whole solution vector."""
        matrix, least, most = self._system()
        cost = np.zeros(len(self.lower))
        cost[self.place[name].ravel()] = row
        solved = milp(
            cost,
            constraints=LinearConstraint(matrix, least, most),
            integrality=self.integer,
            bounds=Limits(self.lower, self.upper),
            options={"mip_rel_gap": 0.0},
        )
        assert solved.status == 0, solved.message
        return float(solved.fun), solved.x


def probed(graph: Graph, node: Node) -> tuple[list[tuple[str, np.ndarray]], np.ndarray]:
    """Matrices ``(outputs, inputs)`` of an affine node, by operand name, and its offset."""
    op = REGISTRY.ops[node.op]
    varies = tuple(name in graph.by_name for name in node.inputs)
    fixed = [
        None if v or not n else torch.as_tensor(np.asarray(graph.constants[n]))
        for n, v in zip(node.inputs, varies, strict=True)
    ]
    shapes = tuple(
        graph.by_name[n].shape if v else () if c is None else tuple(c.shape)
        for n, v, c in zip(node.inputs, varies, fixed, strict=True)
    )
    site = Site(node.name, node.attrs, shapes, varies, node.shape)

    def run(probe: int, size: int, units: torch.Tensor) -> np.ndarray:
        operands = [
            c
            if not v
            else units.reshape(size, *s)
            if i == probe
            else torch.zeros(size, *s).double()
            for i, (c, v, s) in enumerate(zip(fixed, varies, shapes, strict=True))
        ]
        operands = [o.double() if o is not None and o.is_floating_point() else o for o in operands]
        return op.forward(site, *operands).reshape(size, -1).numpy()

    offset = run(-1, 1, torch.zeros(1, 0))[0]
    parts = []
    for i, (name, v, shape) in enumerate(zip(node.inputs, varies, shapes, strict=True)):
        if v:
            size = math.prod(shape)
            parts.append((name, (run(i, size, torch.eye(size).double()) - offset).T))
    return parts, offset


def grown(
    graph: Graph,
    box: tuple[np.ndarray, np.ndarray],
    bounds: Mapping[str, Any],
    exact: bool = False,
    until: str | None = None,
) -> Polyhedron:
    """The relaxation of a ReLU graph over a box, up to a node, on given bounds of ReLU inputs."""
    found = Polyhedron()
    for node in graph.nodes:
        if node.op == INPUT:
            found.input(node, *box)
        elif node.op == "relu":
            low, high = (np.asarray(side)[0] for side in bounds[node.inputs[0]])
            found.relu(node, low, high, exact)
        else:
            found.affine(graph, node)
        if node.name == until:
            break
    return found
