"""What the kernels compute, in plain numpy: the reference of the tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Bounded:
    """Ends of every neuron ``(N,)``; planes ``(R, 1 + free)`` and margins ``(R,)`` of the rows.

    R counts the rows with their padding.
    """

    low: np.ndarray
    high: np.ndarray
    planes: np.ndarray
    margins: np.ndarray


@dataclass(frozen=True, eq=False)
class _Layer:
    W: np.ndarray
    b: np.ndarray
    leak: np.ndarray
    low: np.ndarray
    high: np.ndarray
    slope: np.ndarray
    gap: np.ndarray


def bound_box(
    net: tuple[np.ndarray, ...], free: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> Bounded:
    """As `certify.kernels.boxes`, `forward` and `row_planes`, without any rounding charged."""
    middle, radius = 0.5 * lower + 0.5 * upper, 0.5 * upper - 0.5 * lower
    center, gens = middle, np.diag(radius)[free]
    layers = []
    for W, b, leak in _weights(net):
        center, gens = W @ center + b, gens @ W.T
        reach = abs(gens).sum(axis=0)
        low, high = center - reach, center + reach
        slope, gap = _relaxed(low, high, leak)
        layers.append(_Layer(W, b, leak, low, high, slope, gap))
        last = center, gens
        fresh = np.diag(0.5 * gap)[gap > 0]
        center, gens = slope * center + 0.5 * gap, np.concatenate([slope * gens, fresh])
    low = np.concatenate([layer.low for layer in layers])
    high = np.concatenate([layer.high for layer in layers])
    pairs = [_row(layers, r, middle, radius, free, last) for r in range(len(last[0]))]
    pairs = pairs[: _true_rows(net)]
    return Bounded(low, high, np.array([p for p, _ in pairs]), np.array([m for _, m in pairs]))


def _true_rows(net: tuple[np.ndarray, ...]) -> int:
    """Rows without those that only fill the last vector."""
    widths, outward, biases = net[0], net[2], net[4]
    n, m = int(widths[-2]), int(widths[-1])
    used = outward[-n * m :].reshape(m, n).any(axis=1) | (biases[-m:] != 0)
    return int(np.flatnonzero(used)[-1]) + 1 if used.any() else m


def _weights(net: tuple[np.ndarray, ...]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    widths, outward, biases, leak = net[0], net[2], net[4], net[6]
    at, to, found = 0, 0, []
    for n, m in zip(widths[:-1], widths[1:], strict=True):
        found.append(
            (outward[at : at + n * m].reshape(m, n), biases[to : to + m], leak[to : to + m])
        )
        at, to = at + n * m, to + m
    return found


def _relaxed(low: np.ndarray, high: np.ndarray, leak: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    straight = (low >= 0) | (leak == 1.0)
    crossing = ~straight & (high > 0)
    width = np.where(crossing, high - low, 1.0)
    chord = np.where(crossing, (high - leak * low) / width, np.where(straight, 1.0, leak))
    gap = np.where(crossing, np.maximum((leak - chord) * low, (1 - chord) * high), 0.0)
    return chord, gap


def _row(
    layers: list[_Layer],
    r: int,
    middle: np.ndarray,
    radius: np.ndarray,
    free: np.ndarray,
    last: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, float]:
    """The better of the backward and the zonotope plane of one row, and its least value."""
    A, const = layers[-1].W[r], layers[-1].b[r]
    for layer in reversed(layers[:-1]):
        const += (np.minimum(A, 0) * layer.gap).sum()
        steep = np.where(layer.high > -layer.low, 1.0, layer.leak)
        lower = np.where(layer.gap > 0, steep, layer.slope)
        A = A * np.where(A >= 0, lower, layer.slope)
        const += A @ layer.b
        A = A @ layer.W
    plane = np.concatenate([[const + A @ middle], (A * radius)[free]])
    margin = plane[0] - abs(plane[1:]).sum()
    center, gens = last
    flat = center[r] - abs(gens[:, r]).sum()
    if flat > margin:
        count = len(free)
        loose = abs(gens[count:, r]).sum()
        return np.concatenate([[center[r] - loose], gens[:count, r]]), float(flat)
    return plane, float(margin)
