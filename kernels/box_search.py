"""Clipping, halving and searching boxes depth first, compiled; bounds are from `boxes`.

Clipping (Zhou et al., Clip-and-Verify, 2025): where a plane below a row is positive, no unsafe
point lies; the box is cut to the rest. All rows of a clause cut together, as an unsafe point
satisfies them all; different clauses cut apart, and their hull is kept.

Boxes are written in shares: ``x = middle + share * radius``, shares in [-1, 1].
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from certify.kernels import boxes
from certify.kernels.boxes import (
    FAST,
    GAP,
    HIGH,
    LOW,
    LOWER,
    MID,
    RAD,
    TINY,
    UNIT,
    UPPER,
    backward,
    evaluate,
    forward,
    halve_sides,
    row_planes,
)
from numba import njit

SPENT, EMPTY, POINT, FULL, SOLID = 0, 1, 2, 3, 4
BITS = 62  # clauses whose refutation is remembered for smaller boxes
_LEFT, _RIGHT, _ONE, _TWO, _HULL_LEFT, _HULL_RIGHT, _SCORE = 0, 1, 2, 3, 4, 5, 6
TOP, BOXES, LEAVES, PROVED, MARGIN = 0, 1, 2, 3, 4


@njit(nogil=True, error_model="numpy")
def clip_row(plane: Any, strict: bool, left: Any, right: Any) -> bool:
    """Cut away where one plane is positive; True when nothing is left."""
    nf = left.shape[0]
    least, size = plane[0], abs(plane[0])
    for f in range(nf):
        g = plane[1 + f]
        least += g * left[f] if g > 0 else g * right[f]
        size += abs(g) * (2.0 + abs(left[f]) + abs(right[f]))
    least -= (nf + 8) * 4 * UNIT * size + TINY
    if least > 0 or (least == 0 and strict):
        return True
    if not least <= 0:
        return False  # NaN
    for f in range(nf):
        g = plane[1 + f]
        if not abs(g) * (right[f] - left[f]) > -least:
            continue
        room = (-least / abs(g)) * (1 + 8 * UNIT)
        if g > 0:
            right[f] = min(right[f], left[f] + room + (abs(left[f]) + room) * 8 * UNIT)
        else:
            left[f] = max(left[f], right[f] - room - (abs(right[f]) + room) * 8 * UNIT)
        if left[f] > right[f]:
            return True
    return False


@njit(nogil=True, error_model="numpy")
def clip_clause(
    planes: Any, starts: Any, strict: Any, c: int, mixed: bool, left: Any, right: Any
) -> bool:
    """Cut away where any row of a clause is positive, twice over; True when nothing is left."""
    for _ in range(2):
        own = mixed and starts[c + 1] > starts[c] + 1
        if own and clip_row(planes[strict.shape[0] + c], False, left, right):
            return True
        for r in range(starts[c], starts[c + 1]):
            if clip_row(planes[r], strict[r], left, right):
                return True
    return False


@njit(nogil=True, error_model="numpy")
def clip(
    planes: Any, starts: Any, strict: Any, closed: int, mixed: bool, shares: Any, a: int
) -> int:
    """Cut rows ``a, a + 1`` of ``shares`` to the hull of all clauses still open.

    Args:
        planes: ``(R + clauses, 1 + free)``; the last ones, when ``mixed``, of each clause's mix.
        starts: ``(clauses + 1,)`` where each clause's rows begin.
        strict: ``(R,)``.
        closed: bit set of clauses known to be refuted on the whole box.

    Returns:
        ``closed`` with the clauses refuted here; -1 when every clause is refuted.
    """
    clauses, nf = starts.shape[0] - 1, shares.shape[1]
    left, right = shares[_HULL_LEFT], shares[_HULL_RIGHT]
    hull = shares[_SCORE:]
    for f in range(nf):
        hull[1, f], hull[2, f] = 2.0, -2.0
    opened = False
    for c in range(clauses):
        if c < BITS and (closed >> c) & 1:
            continue
        for f in range(nf):
            left[f], right[f] = shares[a, f], shares[a + 1, f]
        if clip_clause(planes, starts, strict, c, mixed, left, right):
            closed |= (1 << c) if c < BITS else 0
            continue
        opened = True
        for f in range(nf):
            hull[1, f], hull[2, f] = min(hull[1, f], left[f]), max(hull[2, f], right[f])
    if not opened:
        return -1
    for f in range(nf):
        shares[a, f], shares[a + 1, f] = hull[1, f], hull[2, f]
    return closed


@njit(nogil=True, error_model="numpy", fastmath=FAST)
def mixed_least(line: Any, G: Any, r: int, t: float, rows: int) -> float:
    """The least value of ``(1 - t) line + t G[:, r]`` as a zonotope, in plain floats."""
    least = (1 - t) * line[0] + t * G[0, r]
    for g in range(1, rows):
        least -= abs((1 - t) * line[g] + t * G[g, r])
    return least


@njit(nogil=True, error_model="numpy", fastmath=FAST)
def combine(G: Any, rows: int, first: int, last: int, best: int, mix: Any, line: Any) -> None:
    """A convex mix of a clause's rows whose zonotope bound is high, by line searches.

    An unsafe point satisfies all rows of a clause, so any such mix as well; what the rows have in
    common cancels. ``mix (R,)`` and the mixed generators ``line (rows,)`` are filled.
    """
    for r in range(mix.shape[0]):
        mix[r] = 1.0 if r == best else 0.0
    for g in range(rows):
        line[g] = G[g, best]
    for r in range(first, last):
        if r == best:
            continue
        low, high = 0.0, 1.0
        for _ in range(8):
            p, q = low + (high - low) * 0.382, low + (high - low) * 0.618
            if mixed_least(line, G, r, p, rows) >= mixed_least(line, G, r, q, rows):
                high = q
            else:
                low = p
        if low == 0.0:
            continue
        t = 0.5 * (low + high)
        for g in range(rows):
            line[g] = (1 - t) * line[g] + t * G[g, r]
        for k in range(first, last):
            mix[k] *= 1 - t
        mix[r] += t


@njit(nogil=True, error_model="numpy")
def best_row(margins: Any, first: int, last: int) -> int:
    """The row with the largest margin."""
    best = first
    for r in range(first, last):
        if margins[r] > margins[best]:
            best = r
    return best


@njit(nogil=True, error_model="numpy")
def unsafe(values: Any, starts: Any, strict: Any) -> bool:
    """Whether all rows of any clause are satisfied."""
    for c in range(starts.shape[0] - 1):
        every = True
        for r in range(starts[c], starts[c + 1]):
            every = every and (values[r] < 0 or (values[r] == 0 and not strict[r]))
        if every:
            return True
    return False


@njit(nogil=True, error_model="numpy", fastmath=FAST)
def score(net: Any, state: Any, inputs: Any, line: Any, rows: int, shares: Any) -> None:
    """How much halving each free input should raise the bound ``line``, in ``shares[_SCORE]``.

    What a neuron's relaxation costs shrinks with the neuron's range, in proportion to the input's
    part in it; this decides far better than the plane's own slope, which breaks ties.
    """
    widths, nf = net[0], shares.shape[1]
    for f in range(nf):
        shares[_SCORE, f] = 0.05 * abs(line[1 + f])
    t, to = nf + 1, 0
    for k in range(1, widths.shape[0] - 1):
        for i in range(to, to + widths[k]):
            if state[GAP, i] != 0.0 and t < rows:
                v = abs(line[t]) / (0.5 * (state[HIGH, i] - state[LOW, i]))
                for f in range(nf):
                    shares[_SCORE, f] += v * abs(inputs[i, f])
                t += 1
        to += widths[k]
    for f in range(nf):
        shares[_SCORE, f] *= shares[_RIGHT, f] - shares[_LEFT, f]


@njit(nogil=True, error_model="numpy")
def cut_of(free: Any, sides: Any, shares: Any) -> Any:
    """The free input to halve, and where; -1 when no float lies between any ends."""
    chosen, best, at = -1, -1.0, 0.0
    for f in range(free.shape[0]):
        i = free[f]
        cut = sides[MID, i] + sides[RAD, i] * (0.5 * shares[_LEFT, f] + 0.5 * shares[_RIGHT, f])
        if not sides[LOWER, i] < cut < sides[UPPER, i]:
            continue
        value = shares[_SCORE, f]
        if not value >= 0.0 or value == np.inf:
            value = shares[_RIGHT, f] - shares[_LEFT, f]
        if value > best:
            chosen, best, at = f, value, cut
    return chosen, at


@njit(nogil=True, error_model="numpy")
def push(
    free: Any, sides: Any, shares: Any, chosen: int, at: float, low: bool, lows: Any, ups: Any
) -> None:
    """Write the box of shares ``_ONE, _TWO``, on one side of ``at``, to ``lows, ups``, outward."""
    for i in range(lows.shape[0]):
        lows[i], ups[i] = sides[LOWER, i], sides[UPPER, i]
    for f in range(free.shape[0]):
        i = free[f]
        middle, radius = sides[MID, i], sides[RAD, i]
        spare = 8 * UNIT * (abs(middle) + radius)
        if shares[_ONE, f] > -1.0:
            lows[i] = max(lows[i], middle + radius * shares[_ONE, f] - spare)
        if shares[_TWO, f] < 1.0:
            ups[i] = min(ups[i], middle + radius * shares[_TWO, f] + spare)
    i = free[chosen]
    if low:
        ups[i] = min(ups[i], at)
    else:
        lows[i] = max(lows[i], at)
    if lows[i] > ups[i]:
        lows[i] = ups[i] = at


@njit(nogil=True, error_model="numpy")
def halve(
    free: Any,
    starts: Any,
    strict: Any,
    frame: Any,
    stack: Any,
    closed: int,
    mixed: bool,
    chosen: int,
    at: float,
    row: int,
    counts: Any,
    share: float,
) -> None:
    """Push both halves of a box, cut by its own planes; the more dangerous one ends on top."""
    sides, shares, planes = frame[0], frame[1], frame[2]
    i = free[chosen]
    middle = 0.5 * shares[_LEFT, chosen] + 0.5 * shares[_RIGHT, chosen]
    off = 8 * UNIT * (abs(sides[MID, i]) + sides[RAD, i]) / sides[RAD, i]
    low_last = planes[row, 1 + chosen] > 0
    for half in range(2):
        low = (half == 1) == low_last
        for f in range(free.shape[0]):
            shares[_ONE, f], shares[_TWO, f] = shares[_LEFT, f], shares[_RIGHT, f]
        if low:
            shares[_TWO, chosen] = min(shares[_TWO, chosen], middle + off)
        else:
            shares[_ONE, chosen] = max(shares[_ONE, chosen], middle - off)
        left = clip(planes, starts, strict, closed, mixed, shares, _ONE)
        if left < 0:
            counts[LEAVES] += 1
            counts[PROVED] += 0.5 * share
            counts[MARGIN] = min(counts[MARGIN], 0.0)
            continue
        top = int(counts[TOP])
        push(free, sides, shares, chosen, at, low, stack[0][top], stack[1][top])
        stack[2][top], stack[3][top] = left, 0.5 * share
        counts[TOP] = top + 1


@njit(nogil=True, error_model="numpy")
def sharpen(
    net: Any, free: Any, starts: Any, frame: Any, state: Any, work: Any, closed: int, rows: int
) -> Any:
    """Mixed planes of the open clauses; the row nearest to unsafe, its generators in ``best``.

    Returns:
        ``(plane, mixed)``: which plane is the decisive one, and whether any mix was made.
    """
    sides, _, planes, margins, mix, line, best = frame
    worst, row, mixed = np.inf, -1, False
    for c in range(starts.shape[0] - 1):
        if c < BITS and (closed >> c) & 1:
            continue
        plane = best_row(margins, starts[c], starts[c + 1])
        combine(work[0], rows, starts[c], starts[c + 1], plane, mix, line)
        if starts[c + 1] > starts[c] + 1:
            mixed = True
            plane = mix.shape[0] + c
            margins[plane] = backward(net, free, sides, state, mix, work[3], planes[plane])
        if row < 0 or margins[plane] < worst:
            worst, row = margins[plane], plane
            for g in range(rows):
                best[g] = line[g]
    return row, mixed


@njit(nogil=True, error_model="numpy")
def suspicious(
    net: Any, free: Any, starts: Any, strict: Any, frame: Any, work: Any, row: int, found: Any
) -> bool:
    """Whether the point where a plane is lowest is unsafe in plain floats; it is in ``found``."""
    sides, shares, planes, _, mix, _, _ = frame
    for i in range(found.shape[0]):
        found[i] = min(max(sides[MID, i], sides[LOWER, i]), sides[UPPER, i])
    for f in range(free.shape[0]):
        i = free[f]
        share = shares[_LEFT, f] if planes[row, 1 + f] > 0 else shares[_RIGHT, f]
        x = sides[MID, i] + sides[RAD, i] * share
        found[i] = min(max(x, sides[LOWER, i]), sides[UPPER, i])
    evaluate(net, found, work, mix)
    return unsafe(mix, starts, strict)


@njit(nogil=True, error_model="numpy")
def look(
    net: Any,
    free: Any,
    starts: Any,
    strict: Any,
    frame: Any,
    state: Any,
    inputs: Any,
    work: Any,
    stack: Any,
    counts: Any,
    found: Any,
) -> int:
    """Bound the box on top of the stack; drop it, or put its halves in its place."""
    sides, shares, planes, margins, mix, _, best = frame
    top = int(counts[TOP]) - 1
    closed, share = stack[2][top], stack[3][top]
    for i in range(sides.shape[1]):
        sides[LOWER, i], sides[UPPER, i] = stack[0][top, i], stack[1][top, i]
    halve_sides(sides)
    rows = forward(net, free, sides, state, inputs, work)
    row_planes(net, free, sides, state, work, rows, mix, planes, margins)
    counts[BOXES] += 1
    counts[TOP] = top
    for f in range(free.shape[0]):
        shares[_LEFT, f], shares[_RIGHT, f] = -1.0, 1.0
    row, mixed = -1, False
    for second in range(2):
        if second == 1:
            row, mixed = sharpen(net, free, starts, frame, state, work, closed, rows)
        if second == 0 or mixed:
            closed = clip(planes, starts, strict, closed, mixed, shares, _LEFT)
        if closed < 0:
            counts[LEAVES] += 1
            counts[PROVED] += share
            counts[MARGIN] = min(counts[MARGIN], 0.0 if second else leaf_margin(margins, starts))
            return SPENT
    score(net, state, inputs, best, rows, shares)
    hit = suspicious(net, free, starts, strict, frame, work, row, found)
    chosen, at = cut_of(free, sides, shares)
    if chosen < 0:
        counts[TOP] = top + 1
        return SOLID
    halve(free, starts, strict, frame, stack, closed, mixed, chosen, at, row, counts, share)
    return POINT if hit else SPENT


@njit(nogil=True, error_model="numpy")
def leaf_margin(margins: Any, starts: Any) -> float:
    """The least of the clauses' best margins; 0 where they are not what refuted the clauses."""
    worst = np.inf
    for c in range(starts.shape[0] - 1):
        worst = min(worst, margins[best_row(margins, starts[c], starts[c + 1])])
    return max(worst, 0.0)


def _sources() -> int:
    """A number for the very text that is compiled below, never 0.

    numba keys a cached function by the file that defines it; what it calls in other files could
    change unnoticed. So only `search` is cached, and this number is part of its key.
    """
    digest = hashlib.sha256()
    for path in (boxes.__file__, __file__):
        digest.update(Path(path).read_bytes())
    return int.from_bytes(digest.digest()[:7], "big") | 1


def _made(STAMP: int) -> Any:
    @njit(cache=True, nogil=True, error_model="numpy")
    def search(
        net: Any,
        free: Any,
        starts: Any,
        strict: Any,
        frame: Any,
        state: Any,
        inputs: Any,
        work: Any,
        stack: Any,
        counts: Any,
        found: Any,
        budget: int,
    ) -> int:
        """Look at boxes, depth first, until the stack is empty or ``budget`` boxes are spent.

        Args:
            frame: ``sides (4, n)``, ``shares (9, free)``, ``planes (R + clauses, 1 + free)``,
                ``margins (R + clauses,)``, ``mix (R,)``, ``line`` and ``best (rows,)``: scratch.
            stack: ``lower, upper (cap, n)``, ``closed (cap,)`` int64, ``share (cap,)``.
            counts: ``(5,)``: boxes on the stack, boxes bounded, leaves, share proved, least margin.
            found: ``(n,)``: a point to look at.

        Returns:
            `SPENT`; `EMPTY`: all is proved; `POINT`: look at ``found``; `FULL`: the stack must
            grow; `SOLID`: the box on top cannot be halved.
        """
        for _ in range(budget if STAMP else 0):
            if counts[TOP] == 0:
                return EMPTY
            if counts[TOP] + 2 > stack[2].shape[0]:
                return FULL
            status = look(
                net, free, starts, strict, frame, state, inputs, work, stack, counts, found
            )
            if status != SPENT:
                return status
        return EMPTY if counts[TOP] == 0 else SPENT

    return search


search = _made(_sources())
