"""The smallest value of ``max_r (C_r y - base_r)`` over a box: exactly, or by hard looking."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import optimize, sparse

from benchmarks.battery.networks import Affine, Layers, Pointwise, Pool, Residual, run

_STARTS = 4000
_REFINED = 24


@dataclass(frozen=True)
class Least:
    """Attributes:
    low, high: the minimum lies between these; ``low`` is -inf where only points were tried.
    point: attains ``high`` in float64.
    """

    low: float
    high: float
    point: np.ndarray


@dataclass
class _Program:
    """A mixed-integer program as it grows: variables are columns, constraints are rows."""

    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)
    rows: list[tuple[dict[int, float], float, float]] = field(default_factory=list)

    def variable(self, low: float, high: float, whole: int = 0) -> int:
        self.low.append(low)
        self.high.append(high)
        self.whole.append(whole)
        return len(self.low) - 1

    def variables(self, low: np.ndarray, high: np.ndarray) -> list[int]:
        return [self.variable(a, b) for a, b in zip(low, high, strict=True)]

    def row(self, terms: dict[int, float], low: float = -np.inf, high: float = np.inf) -> None:
        self.rows.append((terms, low, high))

    def minimise(self, column: int) -> tuple[float, np.ndarray]:
        entries = [(i, j, v) for i, (terms, _, _) in enumerate(self.rows)
                   for j, v in terms.items()]
        i, j, v = zip(*entries, strict=True)
        matrix = sparse.csr_matrix((v, (i, j)), (len(self.rows), len(self.low)))
        cost = np.zeros(len(self.low))
        cost[column] = 1
        found = optimize.milp(
            cost, integrality=self.whole, bounds=optimize.Bounds(self.low, self.high),
            constraints=optimize.LinearConstraint(matrix, [r[1] for r in self.rows],
                                                  [r[2] for r in self.rows]),
            options={"mip_rel_gap": 1e-9, "time_limit": 60})
        if found.x is None or found.status != 0:
            raise ArithmeticError(f"the solver gave up: {found.message}")
        bound = found.fun if found.mip_dual_bound is None else found.mip_dual_bound
        return float(bound), found.x


def exact_minimum(layers: Layers, box: tuple[np.ndarray, np.ndarray], C: np.ndarray,
                  base: np.ndarray) -> Least:
    """By a mixed-integer program (Tjeng et al. 2019); ReLU and max-pool networks only.

    Raises:
        ArithmeticError: the solver found no optimum.
    """
    program = _Program()
    start = program.variables(*box)
    out, low, high = _encode(program, layers, start, *box)
    top = program.variable(-1e6, 1e6)
    for c, b in zip(C, base, strict=True):
        program.row({top: 1.0, **{j: -float(v) for j, v in zip(out, c, strict=True)}}, -float(b))
    dual, x = program.minimise(top)
    point = np.clip(x[start], *box)
    return Least(dual, float((run(layers, point[None])[0] @ C.T - base).max()), point)


def _encode(program: _Program, layers: Layers, x: list[int], low: np.ndarray,
            high: np.ndarray) -> tuple[list[int], np.ndarray, np.ndarray]:
    for layer in layers:
        if isinstance(layer, Affine):
            W = layer.weight.astype(np.float64)
            new_low = np.maximum(W, 0) @ low + np.minimum(W, 0) @ high + layer.bias
            high = np.maximum(W, 0) @ high + np.minimum(W, 0) @ low + layer.bias
            low = new_low
            x = _affine(program, x, W, layer.bias, low - 1e-6, high + 1e-6)
        elif isinstance(layer, Pointwise):
            x = [_relu(program, j, a, b) for j, a, b in zip(x, low, high, strict=True)]
            low, high = np.maximum(low, 0), np.maximum(high, 0)
        elif isinstance(layer, Pool):
            x = [_maximum(program, [x[k] for k in group], low[group], high[group])
                 for group in layer.members]
            low, high = low[layer.members].max(1), high[layer.members].max(1)
        elif isinstance(layer, Residual):
            body, body_low, body_high = _encode(program, layer.body, x, low, high)
            low, high = low + body_low, high + body_high
            total = program.variables(low - 1e-6, high + 1e-6)
            for t, a, b in zip(total, x, body, strict=True):
                program.row({t: 1.0, a: -1.0, b: -1.0}, 0, 0)
            x = total
    return x, low, high


def _affine(program: _Program, x: list[int], W: np.ndarray, bias: np.ndarray, low: np.ndarray,
            high: np.ndarray) -> list[int]:
    out = program.variables(low, high)
    for z, w, b in zip(out, W, bias, strict=True):
        program.row({z: 1.0, **{j: -float(v) for j, v in zip(x, w, strict=True) if v}},
                    float(b), float(b))
    return out


def _relu(program: _Program, z: int, low: float, high: float) -> int:
    if low >= 0:
        return z
    y = program.variable(0.0, max(high, 0.0))
    if high <= 0:
        return y
    on = program.variable(0, 1, whole=1)
    program.row({y: 1.0, z: -1.0}, 0)
    program.row({y: 1.0, z: -1.0, on: -low}, high=-low)
    program.row({y: 1.0, on: -high}, high=0)
    return y


def _maximum(program: _Program, xs: list[int], low: np.ndarray, high: np.ndarray) -> int:
    y = program.variable(float(low.max()), float(high.max()))
    chosen = [program.variable(0, 1, whole=1) for _ in xs]
    program.row(dict.fromkeys(chosen, 1.0), 1, 1)
    for x, pick, floor in zip(xs, chosen, low, strict=True):
        reach = float(high.max() - floor)
        program.row({y: 1.0, x: -1.0}, 0)
        program.row({y: 1.0, x: -1.0, pick: reach}, high=reach)
    return y


def searched_minimum(layers: Layers, box: tuple[np.ndarray, np.ndarray], C: np.ndarray,
                     base: np.ndarray, rng: np.random.Generator) -> Least:
    """By many points and local descent: an upper end only."""
    low, high = box

    def worst(x: np.ndarray) -> np.ndarray:
        return np.asarray((run(layers, x) @ C.T - base).max(1))

    points = low + (high - low) * rng.random((_STARTS, len(low)))
    points[: _STARTS // 4] = np.where(points[: _STARTS // 4] > (low + high) / 2, high, low)
    best = points[np.argsort(worst(points))[:_REFINED]]
    radius = (high - low) / 4
    for _ in range(60):
        moved = np.clip(best[:, None] + radius * rng.normal(size=(_REFINED, 16, len(low))),
                        low, high)
        every = np.concatenate((best[:, None], moved), 1)
        values = worst(every.reshape(-1, len(low))).reshape(_REFINED, -1)
        best = every[np.arange(_REFINED), values.argmin(1)]
        radius = radius * 0.85
    values = worst(best)
    return Least(-np.inf, float(values.min()), best[values.argmin()])
