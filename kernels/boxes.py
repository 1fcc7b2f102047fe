"""Bounds and planes of small fully connected networks over boxes, compiled.

A layer is a zonotope: centre, one generator per free input, one per unstable neuron, and one error
per neuron for all that rounding may have done (Singh et al., Fast and Effective Robustness
Certification, 2018, section 3). The rows of the specification are bounded by the zonotope and by
one backward pass through its relaxations (Zhang et al., CROWN, 2018).

Rounding: sums of n products are charged ``gamma`` times the sum of their sizes, which holds in any
order, with or without fused multiply-add; so sums may be reassociated. NaN refutes nothing.
Memory belongs to the caller: nothing is allocated here, which also keeps compilation short.

Arguments that recur:
    net: ``widths, inward, outward, spread, biases, slack, leak`` as in `Layers`, and ``rough``,
        one flag per layer whose ``spread`` is not zero.
    free: inputs that are not fixed; generators 1..len(free) belong to them.
    sides: ``(4, n)``: lower and upper end, middle and radius of the box.
    state: ``(5, N)``: low, high, slope, gap and error of every neuron.
    inputs: ``(N, free)``: generators of the inputs at every neuron.
    work: ``G, Z (rows, width)``, ``index (width)`` int64, ``terms (4, width)``.
"""

from __future__ import annotations

from typing import Any

from numba import njit

FAST = {"reassoc", "contract", "nsz"}
UNIT = 2.0**-53
TINY = 2.0**-480  # far above the smallest normal number, times all terms
LOW, HIGH, SLOPE, GAP, ERROR = 0, 1, 2, 3, 4
LOWER, UPPER, MID, RAD = 0, 1, 2, 3
OWN, SIZE = 0, 1


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def multiply(
    Z: Any, rows: int, index: Any, active: int, weights: Any, at: int, m: int, G: Any
) -> None:
    """``G[g] = Z[g, :active] @ W[index[:active]]``; W is ``weights[at:]`` with rows of ``m``."""
    blocks = active - active % 4
    for g in range(rows):
        out, z = G[g], Z[g]
        for j in range(m):
            out[j] = 0.0
        for a in range(0, blocks, 4):
            p = weights[at + index[a] * m :]
            q = weights[at + index[a + 1] * m :]
            r = weights[at + index[a + 2] * m :]
            s = weights[at + index[a + 3] * m :]
            v0, v1, v2, v3 = z[a], z[a + 1], z[a + 2], z[a + 3]
            for j in range(m):
                out[j] += v0 * p[j] + v1 * q[j] + v2 * r[j] + v3 * s[j]
        for a in range(blocks, active):
            p, v0 = weights[at + index[a] * m :], z[a]
            for j in range(m):
                out[j] += v0 * p[j]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def charge(net: Any, layer: int, at: int, to: int, active: int, state: Any, work: Any) -> None:
    """Errors of a layer: its own rounding and inexact weights, and what came before."""
    widths, inward, _, spread, biases, slack, _, rough = net
    _, _, index, terms = work
    m = widths[layer]
    gamma = gamma_of(widths)
    error = state[ERROR][to:]
    for j in range(m):
        error[j] = slack[to + j] + gamma * abs(biases[to + j]) + TINY
    for a in range(active):
        w, v = inward[at + index[a] * m :], terms[OWN, a]
        for j in range(m):
            error[j] += v * abs(w[j])
        if rough[layer - 1]:
            w, v = spread[at + index[a] * m :], terms[SIZE, a]
            for j in range(m):
                error[j] += v * w[j]
    for j in range(m):
        error[j] *= 1 + gamma


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def gamma_of(widths: Any) -> float:
    """Twice the relative error of the longest sum, and of a handful of roundings."""
    longest = 0
    for k in range(widths.shape[0]):
        longest = max(longest, widths[k])
    return 4 * (longest + 16) * UNIT


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def range_of(G: Any, rows: int, to: int, m: int, state: Any, size: Any) -> None:
    """Ends of each neuron, outward, and in ``size`` the sum of the sizes of all its terms."""
    for j in range(m):
        size[j] = 0.0
    for g in range(1, rows):
        line = G[g]
        for j in range(m):
            size[j] += abs(line[j])
    extra = (rows + 8) * 2 * UNIT
    for j in range(m):
        reach = size[j] + state[ERROR, to + j]
        total = abs(G[0, j]) + reach
        spare = extra * total + TINY
        state[LOW, to + j] = G[0, j] - reach - spare
        state[HIGH, to + j] = G[0, j] + reach + spare
        size[j] = total + spare


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def relax(leak: Any, to: int, m: int, state: Any) -> None:
    """``slope z <= f(z) <= slope z + gap`` between the ends of every neuron of a layer."""
    for i in range(to, to + m):
        low, high, least = state[LOW, i], state[HIGH, i], leak[i]
        if low >= 0 or least == 1.0:
            state[SLOPE, i], state[GAP, i] = 1.0, 0.0
        elif high <= 0:
            state[SLOPE, i], state[GAP, i] = least, 0.0
        else:
            chord = (high - least * low) / (high - low)
            if chord < least:
                chord = least
            if chord > 1.0:
                chord = 1.0
            gap = max((least - chord) * low, (1.0 - chord) * high)
            state[SLOPE, i] = chord
            state[GAP, i] = gap * (1 + 16 * UNIT) + TINY


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def activate(to: int, m: int, rows: int, gamma: float, state: Any, work: Any) -> int:
    """From ``G`` before a layer's activation to ``Z`` after it; returns the neurons not zero."""
    G, Z, index, terms = work
    active = 0
    for j in range(m):
        slope = state[SLOPE, to + j]
        if slope == 0.0:
            continue
        total = (slope * terms[SIZE, j] + state[GAP, to + j]) * (1 + 8 * UNIT)
        index[active] = j
        terms[OWN, active] = (
            slope * state[ERROR, to + j] * (1 + 8 * UNIT) + (gamma + 8 * UNIT) * total + TINY
        )
        terms[SIZE, active] = total  # what is still to be read lies ahead: active <= j
        Z[0, active] = slope * G[0, j] + 0.5 * state[GAP, to + j]
        active += 1
    slopes = state[SLOPE][to:]
    for g in range(1, rows):
        line, z = G[g], Z[g]
        for a in range(active):
            j = index[a]
            z[a] = slopes[j] * line[j]
    return active


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def widen(
    net: Any, at: int, m: int, before: int, rows: int, active: int, state: Any, work: Any
) -> int:
    """New generators of the unstable neurons at ``before``, or errors where there is no room."""
    inward = net[1]
    G, _, index, terms = work
    for a in range(active):
        half = 0.5 * state[GAP, before + index[a]]
        if half == 0.0:
            continue
        if rows == G.shape[0]:
            terms[OWN, a] += half * (1 + 8 * UNIT)
            continue
        w, line = inward[at + index[a] * m :], G[rows]
        for j in range(m):
            line[j] = half * w[j]
        rows += 1
    return rows


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def first_layer(net: Any, free: Any, sides: Any, state: Any, work: Any) -> None:
    """The zonotope of the first layer before its activation, in ``G``."""
    widths, inward = net[0], net[1]
    G, Z, index, terms = work
    n, m = widths[0], widths[1]
    gamma = gamma_of(widths)
    for i in range(n):
        index[i] = i
        Z[0, i] = sides[MID, i]
        terms[SIZE, i] = abs(sides[MID, i]) + sides[RAD, i]
        terms[OWN, i] = gamma * terms[SIZE, i]
    multiply(Z, 1, index, n, inward, 0, m, G)
    for f in range(free.shape[0]):
        w, line, radius = inward[free[f] * m :], G[f + 1], sides[RAD, free[f]]
        for j in range(m):
            line[j] = radius * w[j]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def forward(net: Any, free: Any, sides: Any, state: Any, inputs: Any, work: Any) -> int:
    """Zonotopes of all layers; the last one stays in ``G``; returns its number of rows."""
    widths, inward, biases, leak = net[0], net[1], net[4], net[6]
    G, Z, index, terms = work
    gamma = gamma_of(widths)
    rows, active, at, to = free.shape[0] + 1, widths[0], 0, 0
    last = widths.shape[0] - 1
    for k in range(1, last + 1):
        m = widths[k]
        if k == 1:
            first_layer(net, free, sides, state, work)
        else:
            multiply(Z, rows, index, active, inward, at, m, G)
            rows = widen(net, at, m, to - widths[k - 1], rows, active, state, work)
        for j in range(m):
            G[0, j] += biases[to + j]
        charge(net, k, at, to, active, state, work)
        range_of(G, rows, to, m, state, terms[SIZE])
        for f in range(free.shape[0]):
            for j in range(m):
                inputs[to + j, f] = G[f + 1, j]
        if k < last:
            relax(leak, to, m, state)
            active = activate(to, m, rows, gamma, state, work)
        at += widths[k - 1] * m
        to += m
    return rows


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def start_row(net: Any, mix: Any, state: Any, A: Any) -> Any:
    """Coefficients of ``mix . rows`` over the last hidden layer: constant, sizes, errors."""
    widths, outward, biases = net[0], net[2], net[4]
    last = widths.shape[0] - 1
    n = widths[last - 1]
    at, to = outward.shape[0] - n * widths[last], biases.shape[0] - widths[last]
    const, total, lost = 0.0, 0.0, 0.0
    for j in range(n):
        A[j] = 0.0
    for r in range(mix.shape[0]):
        v = mix[r]
        if v == 0.0:
            continue
        const += v * biases[to + r]
        total += abs(v * biases[to + r])
        lost += 2 * abs(v) * state[ERROR, to + r]
        w = outward[at + r * n :]
        for j in range(n):
            A[j] += v * w[j]
    return const, total, lost


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def backward(
    net: Any, free: Any, sides: Any, state: Any, mix: Any, terms: Any, plane: Any
) -> float:
    """A plane below ``mix . rows``; returns its least value over the box, rounded down.

    Args:
        mix: ``(R,)``, not negative.
        plane: ``(1 + free,)``, filled: over shares in [-1, 1] of the inputs' radii.
    """
    widths, outward, biases, leak = net[0], net[2], net[4], net[6]
    one, two = 2, 3
    const, total, lost = start_row(net, mix, state, terms[one])
    last = widths.shape[0] - 1
    at, to = outward.shape[0] - widths[last - 1] * widths[last], biases.shape[0] - widths[last]
    for k in range(last - 1, 0, -1):
        n, m = widths[k - 1], widths[k]
        at -= n * m
        to -= m
        below = terms[two]
        for j in range(n):
            below[j] = 0.0
        for i in range(m):
            v = terms[one, i]
            if v == 0.0:
                continue
            slope, gap = state[SLOPE, to + i], state[GAP, to + i]
            if gap != 0.0:
                lost += 4 * UNIT * abs(v) * max(-state[LOW, to + i], state[HIGH, to + i])
                if v < 0.0:
                    const += v * gap
                    total += abs(v) * gap
                else:
                    slope = 1.0 if state[HIGH, to + i] > -state[LOW, to + i] else leak[to + i]
            v *= slope
            const += v * biases[to + i]
            total += abs(v * biases[to + i])
            lost += abs(v) * state[ERROR, to + i]
            w = outward[at + i * n :]
            for j in range(n):
                below[j] += v * w[j]
        one, two = two, one
    return finish(net, free, sides, terms[one], const, total, lost, plane)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def finish(
    net: Any, free: Any, sides: Any, A: Any, const: float, total: float, lost: float, plane: Any
) -> float:
    """The plane of coefficients over the inputs, everything that was lost subtracted."""
    for i in range(sides.shape[1]):
        const += A[i] * sides[MID, i]
        total += abs(A[i]) * (abs(sides[MID, i]) + sides[RAD, i])
    terms = 8 * (net[4].shape[0] + sides.shape[1] + 16) * UNIT
    const -= lost * (1 + terms) + terms * (total + abs(const)) + TINY
    least = const
    for f in range(free.shape[0]):
        plane[1 + f] = A[free[f]] * sides[RAD, free[f]]
        least -= abs(plane[1 + f])
    plane[0] = const
    return least - terms * (abs(const) + abs(least)) - TINY


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def row_planes(
    net: Any,
    free: Any,
    sides: Any,
    state: Any,
    work: Any,
    rows: int,
    mix: Any,
    planes: Any,
    margins: Any,
) -> None:
    """Lower planes and least values of every row, by the better of zonotope and backward pass.

    Args:
        rows: of the last zonotope, in ``work[0]``.
        mix: ``(R,)``, scratch.
        planes: ``(>= R, 1 + free)``, filled: over shares in [-1, 1] of the box's radii.
        margins: ``(>= R,)``, filled.
    """
    G, terms = work[0], work[3]
    to = net[4].shape[0] - net[0][-1]
    for r in range(mix.shape[0]):
        for s in range(mix.shape[0]):
            mix[s] = 0.0
        mix[r] = 1.0
        margins[r] = backward(net, free, sides, state, mix, terms, planes[r])
        flat = state[LOW, to + r]
        if flat <= margins[r]:
            continue
        lost, size = state[ERROR, to + r], abs(G[0, r])
        for g in range(free.shape[0] + 1, rows):
            lost += abs(G[g, r])
        for g in range(1, free.shape[0] + 1):
            planes[r, g] = G[g, r]
            size += abs(G[g, r])
        planes[r, 0] = G[0, r] - lost - (rows + 8) * 4 * UNIT * (size + lost) - TINY
        margins[r] = flat


@njit(cache=True, nogil=True, error_model="numpy")
def halve_sides(sides: Any) -> None:
    """Middle and radius; the radius reaches both ends."""
    for i in range(sides.shape[1]):
        lower, upper = sides[LOWER, i], sides[UPPER, i]
        if lower == upper:
            sides[MID, i], sides[RAD, i] = lower, 0.0
        else:
            middle = 0.5 * lower + 0.5 * upper
            sides[MID, i] = middle
            sides[RAD, i] = max(middle - lower, upper - middle) * (1 + 4 * UNIT)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def evaluate(net: Any, point: Any, work: Any, values: Any) -> None:
    """The rows' ``values (R,)`` at one point ``(n,)``, in plain floats."""
    widths, inward, biases, leak = net[0], net[1], net[4], net[6]
    G, Z, index, _ = work
    at, to, active = 0, 0, widths[0]
    last = widths.shape[0] - 1
    for i in range(active):
        Z[0, i] = point[i]
        index[i] = i
    for k in range(1, last + 1):
        m = widths[k]
        multiply(Z, 1, index, active, inward, at, m, G)
        active = 0
        for j in range(m):
            v = G[0, j] + biases[to + j]
            G[0, j] = v
            v = v if v > 0 else v * leak[to + j]
            if v != 0.0:
                index[active] = j
                Z[0, active] = v
                active += 1
        at += widths[k - 1] * m
        to += m
    for r in range(values.shape[0]):
        values[r] = G[0, r]
