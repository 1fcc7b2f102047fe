"""Linear and mixed-integer programs about an encoding, solved by HiGHS through scipy.

Answers are advice: points that may be unsafe, multipliers that may prove something, units that may
be worth splitting. Nothing here proves anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from certify.search.milp_encoding import Encoding
from certify.search.safe_lp import Floats, Ranges

_INFEASIBLE = 2


@dataclass(frozen=True, eq=False)
class Advice:
    """What a linear program over a relaxation came to.

    Attributes:
        weights: ``(K,)`` of the specification's rows, >= 0 and summing to 1, or all 0 where the
            program looked for a contradiction.
        mu: ``(m,)`` multipliers of the units' equations.
        x: the optimum's inputs; z, a: operands and results of the units there. None for none.
    """

    weights: Floats
    mu: Floats
    x: Floats | None = None
    z: Floats | None = None
    a: Floats | None = None


@dataclass(frozen=True, eq=False)
class Programs:
    """Linear and mixed-integer programs over one encoding.

    Columns are x, z, a, and at last t, which is minimised and above every row of a clause.
    """

    code: Encoding
    _cached: dict[int, Any] = field(default_factory=dict)

    @property
    def _count(self) -> int:
        return len(self.code.group)

    @cached_property
    def _equations(self) -> tuple[Any, Floats]:
        """``z - M v = offset``, sparse, over all columns."""
        from scipy import sparse

        code, K, n, m = self.code, self._count, self.code.inputs, self.code.units
        M = code.rows.M[K:]
        eye, last = sparse.identity(m, format="csr"), sparse.csr_matrix((m, 1))
        parts = [-sparse.csr_matrix(M[:, :n]), eye, -sparse.csr_matrix(M[:, n:]), last]
        return sparse.hstack(parts, format="csr"), code.rows.offset[K:]

    def _goal(self, clause: int) -> tuple[Any, Floats]:
        """``rows - t <= -offset`` of a clause."""
        from scipy import sparse

        if clause not in self._cached:
            code, n, m = self.code, self.code.inputs, self.code.units
            picked = code.clauses[clause]
            M = code.rows.M[picked]
            parts = [M[:, :n], np.zeros((len(picked), m)), M[:, n:], -np.ones((len(picked), 1))]
            self._cached[clause] = (
                sparse.csr_matrix(np.concatenate(parts, 1)),
                -code.rows.offset[picked],
            )
        found: tuple[Any, Floats] = self._cached[clause]
        return found

    def _hull(self, ranges: Ranges) -> tuple[Any, Floats]:
        """The convex hull of every unit's curve over its range: two lines below, a chord above."""
        from scipy import sparse

        n, m, curves = self.code.inputs, self.code.units, self.code.curves
        z_low, z_high = ranges.z_low, ranges.z_high
        ends = [np.where(z < 0, curves.left, curves.right) * z for z in (z_low, z_high)]
        width = z_high - z_low
        chord = np.where(width > 0, (ends[1] - ends[0]) / np.where(width > 0, width, 1.0), 0.0)
        eye, x, t = sparse.identity(m), sparse.csr_matrix((m, n)), sparse.csr_matrix((m, 1))
        blocks = [
            [x, sparse.diags(curves.left), -eye, t],
            [x, sparse.diags(curves.right), -eye, t],
            [x, -sparse.diags(chord), eye, t],
        ]
        limit = np.concatenate([np.zeros(2 * m), ends[0] - chord * z_low])
        bent = curves.left != 0  # a line of slope 0 is a bound of the result already
        used = np.concatenate([bent & (z_low < 0), z_high > 0, bent | (z_high > 0)])
        return sparse.bmat(blocks, format="csr")[used], limit[used]

    def _bounds(self, ranges: Ranges) -> tuple[Floats, Floats]:
        curves, z_low, z_high = self.code.curves, ranges.z_low, ranges.z_high
        ends = [np.where(z < 0, curves.left, curves.right) * z for z in (z_low, z_high)]
        below = np.where((z_low < 0) & (z_high > 0), 0.0, np.inf)
        low = np.concatenate([ranges.x_low, z_low, np.minimum(below, np.minimum(*ends)), [-np.inf]])
        high = np.concatenate([ranges.x_high, z_high, np.maximum(*ends), [np.inf]])
        return low, high

    def relaxed(self, clause: int, ranges: Ranges, seconds: float) -> Advice | None:
        """The least t over the convex hulls, or why there is none; None where HiGHS gave up."""
        from scipy import sparse
        from scipy.optimize import linprog

        hull, limit = self._hull(ranges)
        goal, threshold = self._goal(clause)
        equations, offset = self._equations
        low, high = self._bounds(ranges)
        cost = np.zeros(len(low))
        cost[-1] = 1.0
        found = linprog(
            cost,
            sparse.vstack([goal, hull], format="csr"),
            np.concatenate([threshold, limit]),
            equations,
            offset,
            np.stack([low, high], 1),
            method="highs",
            options={"time_limit": max(0.01, seconds), "presolve": False},
        )
        if found.status == _INFEASIBLE:
            return self._contradiction(ranges, seconds)
        if found.status != 0:
            return None
        weights = np.zeros(self._count)
        raw = np.clip(-found.ineqlin.marginals[: len(threshold)], 0.0, None)
        if not raw.sum() > 0:
            return None
        weights[self.code.clauses[clause]] = raw / raw.sum()
        n, m = self.code.inputs, self.code.units
        x, z, a = np.split(found.x[:-1], [n, n + m])
        return Advice(weights, found.eqlin.marginals / raw.sum(), x, z, a)

    def _contradiction(self, ranges: Ranges, seconds: float) -> Advice | None:
        """Multipliers of the program that makes the equations' residuals small instead."""
        from scipy import sparse
        from scipy.optimize import linprog

        hull, limit = self._hull(ranges)
        equations, offset = self._equations
        low, high = self._bounds(ranges)
        m = self.code.units
        eye, none = sparse.identity(m), sparse.csr_matrix((hull.shape[0], 2 * m))
        found = linprog(
            np.concatenate([np.zeros(len(low)), np.ones(2 * m)]),
            sparse.hstack([hull, none], format="csr"),
            limit,
            sparse.hstack([equations, eye, -eye], format="csr"),
            offset,
            np.stack([np.r_[low, np.zeros(2 * m)], np.r_[high, np.full(2 * m, np.inf)]], 1),
            method="highs",
            options={"time_limit": max(0.01, seconds)},
        )
        if found.status != 0:
            return None
        return Advice(np.zeros(self._count), found.eqlin.marginals)

    def point(self, clause: int, seconds: float) -> tuple[str, Floats | None]:
        """An input where all rows of a clause are <= 0, by a mixed-integer program with big M.

        Returns:
            ``"found"`` with the point, ``"none"`` when HiGHS claims that there is none, or
            ``"gave up"``.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp

        low, high = self._bounds(self.code.ranges)
        low[-1], high[-1] = -np.inf, 0.0
        m, width = self.code.units, len(low)
        matrices = [self._padded(A, m) for A in (self._goal(clause)[0], self._equations[0])]
        bounds = [self._goal(clause)[1], self._equations[1]]
        pieces, limit = self._pieces()
        found = milp(
            np.zeros(width + m),
            integrality=np.r_[np.zeros(width), np.ones(m)],
            bounds=Bounds(np.r_[low, np.zeros(m)], np.r_[high, np.ones(m)]),
            constraints=[
                LinearConstraint(matrices[0], -np.inf, bounds[0]),
                LinearConstraint(matrices[1], bounds[1], bounds[1]),
                LinearConstraint(pieces, -np.inf, limit),
            ],
            options={"time_limit": max(0.01, seconds)},
        )
        if found.x is not None:
            return "found", np.asarray(found.x[: self.code.inputs])
        return ("none" if found.status == _INFEASIBLE else "gave up"), None

    @staticmethod
    def _padded(A: Any, more: int) -> Any:
        from scipy import sparse

        return sparse.hstack([A, sparse.csr_matrix((A.shape[0], more))], format="csr")

    def _pieces(self) -> tuple[Any, Floats]:
        """Either half of each curve, picked by a binary d (Tjeng et al. 2019, section 4.1).

        ``a >= left z``, ``a >= right z``, ``a <= left z + (right - left) high d`` and
        ``a <= right z - (right - left) low (1 - d)``.
        """
        from scipy import sparse

        ranges, curves = self.code.ranges, self.code.curves
        n, m = self.code.inputs, self.code.units
        step = curves.right - curves.left
        eye, x, t = sparse.identity(m), sparse.csr_matrix((m, n)), sparse.csr_matrix((m, 1))
        left, right, none = sparse.diags(curves.left), sparse.diags(curves.right), None
        blocks = [
            [x, left, -eye, t, none],
            [x, right, -eye, t, none],
            [x, -left, eye, t, -sparse.diags(step * ranges.z_high)],
            [x, -right, eye, t, -sparse.diags(step * ranges.z_low)],
        ]
        limit = np.concatenate([np.zeros(3 * m), -step * ranges.z_low])
        return sparse.bmat(blocks, format="csr"), limit
