"""Smooth scalar functions: convex and concave pieces, and the inverse of the derivative on each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from certify.ops.oracle import (
    EPS,
    HUGE,
    TANGENT_STEPS,
    TINY,
    Candidate,
    Profile,
    between,
    chord,
    supporting,
)

if TYPE_CHECKING:
    from torch import Tensor

Size = Callable[["Tensor", "Tensor"], "Tensor"]


class Piece(NamedTuple):
    """A stretch of a function that bends one way.

    Attributes:
        end: right end; a piece starts where the one before it ends.
        bend: +1 convex, -1 concave, 0 straight.
        inverse: where the derivative equals k, for any real k without NaN (a value outside the
            piece where there is no such place); it may be inexact, which costs tightness only.
        guess: a cheaper inverse, for searches.
        slope: the derivative from the function's value, as accurate as ``df``; for convex pieces.
    """

    end: float
    bend: int
    inverse: Callable[[Tensor], Tensor] | None = None
    guess: Callable[[Tensor], Tensor] | None = None
    slope: Callable[[Tensor], Tensor] | None = None

    def solve(self, rough: bool) -> Callable[[Tensor], Tensor]:
        """The inverse to use; every bent piece has one."""
        found = self.guess if rough and self.guess is not None else self.inverse
        if found is None:
            raise TypeError(f"the piece up to {self.end} bends but has no inverse derivative")
        return found


def relative(z: Tensor, value: Tensor) -> Tensor:
    """Errors of ``f`` are relative to its value."""
    return value.abs()


@dataclass(frozen=True)
class Curve(Profile):
    """A continuous function made of convex and concave pieces.

    On a convex piece the value at any point z0 minus the tangent's slope error bounds the minimum
    from below, ``h(z) - k z >= h(z0) - k z0 + (h'(z0) - k)(z - z0)``, so z0 need not be the exact
    stationary point. Elsewhere the minimum is at an end.

    Attributes:
        pieces: from left to right; the last ends at infinity.
        bend: +1 convex, -1 concave as a whole (on every valid interval), 0 mixed.
        ulps: accuracy of ``f``, in units in the last place of ``size(z, value)``.
        steep, turns: accuracy of ``df``: ``turns EPS max(|df|, steep)``; steep may depend on z.
    """

    pieces: tuple[Piece, ...] = field(default=())
    bend: int = 0
    ulps: int = 8
    size: Size = relative
    steep: float | Callable[[Tensor], Tensor] = 0.0
    turns: float = 16.0

    def slack(self, z: Tensor, value: Tensor) -> Tensor:
        """See `Profile.slack`."""
        return EPS * self.ulps * self.size(z, value) + TINY

    def candidates(
        self, sign: int, low: Tensor, high: Tensor, k: Tensor, *, rough: bool = False
    ) -> Iterator[Candidate]:
        """See `Profile.candidates`."""
        start, covered = low, False  # covered: a convex piece already has the left end
        for i, piece in enumerate(self.pieces):
            last = i == len(self.pieces) - 1
            end = high if last else high.clamp(max=piece.end).maximum(low)
            if piece.bend * sign > 0:
                yield self._stationary(sign, start, end, k, piece, rough)
            else:
                if not covered:
                    yield self._end(sign, start, k, rough)
                if last or self.pieces[i + 1].bend * sign <= 0:
                    yield self._end(sign, end, k, rough)
            start, covered = end, True

    def slope(self, sign: int, low: Tensor, high: Tensor) -> Tensor:
        """See `Profile.slope`."""
        import torch

        bend = sign * self.bend
        middle = 0.5 * low + 0.5 * high
        if bend > 0:
            return sign * self.df(middle)
        if bend < 0:
            k = chord(low, sign * self.f(low), high, sign * self.f(high), sign * self.df(middle))
        elif len(self.pieces) == 2 and self.pieces[0].bend == -self.pieces[1].bend:
            k = self._two_pieces(sign, low, high, middle)
        else:
            k = supporting(self, sign, low, high)
        if self.steepest is not None:
            return k.clamp(-self.steepest, self.steepest)
        most = self.df(low).abs().maximum(self.df(high).abs()).nan_to_num()
        return torch.clamp(k, -most, most)

    def slope_range(self, sign: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """See `Profile.slope_range`."""
        least, most = super().slope_range(sign, low, high)
        for piece in self.pieces[:-1]:
            # A piece end outside the interval becomes an end of it.
            there = self.df(low.clamp(min=piece.end).minimum(high)) * sign
            least, most = least.minimum(there), most.maximum(there)
        return least, most

    def _end(self, sign: int, z: Tensor, k: Tensor, rough: bool) -> Candidate:
        import torch

        value = self.f(z) if sign > 0 else -self.f(z)
        if (self.high if sign > 0 else -self.low) == inf:
            value = value.clamp(max=HUGE)  # an overflow is at least that
        if rough:
            return Candidate(z, value, 0.0)
        with torch.no_grad():
            size = self.slack(z, value).add_(value.abs(), alpha=EPS)
            error = (k * z).abs_().mul_(4 * EPS)
            return Candidate(z, value, error.add_(size) if error.shape == k.shape else error + size)

    def _stationary(
        self, sign: int, start: Tensor, end: Tensor, k: Tensor, piece: Piece, rough: bool
    ) -> Candidate:
        import torch

        with torch.no_grad():
            inside = piece.solve(rough)(k if sign > 0 else -k)
        z = between(inside, start, end)
        found = self._end(sign, z, k, rough)
        if rough:
            return found
        with torch.no_grad():
            width = end - start
            quick = piece.slope if sign > 0 else None
            tangent = self.df(z) if quick is None else quick(found.value)
            excess = (tangent if sign > 0 else -tangent) - k
            below = (start - z).mul_(excess).minimum((end - z).mul_(excess)).clamp_(max=0.0)
            steepness = tangent.abs()
            if callable(self.steep):
                steepness = steepness.maximum(self.steep(z))
            elif self.steep:
                steepness = steepness.clamp_(min=self.steep)
            doubt = steepness.mul_(width * (self.turns * EPS)).sub_(below, alpha=1 + 4 * EPS)
            if self.steepest is None:  # the derivative may be infinite, which a point cannot feel
                doubt = torch.where(width == 0, 0.0, doubt)
        return Candidate(z, found.value, found.error + doubt)

    def _two_pieces(self, sign: int, low: Tensor, high: Tensor, middle: Tensor) -> Tensor:
        """The supporting slope where h is convex on one side of a point, concave on the other.

        The envelope is h itself on the convex side up to a tangent point d, then the line from d
        to the far end of the concave side. The slope of that line is the extreme of
        ``(h(d) - h(e))/(d - e)``, found by Dinkelbach's iteration (1967), quadratic.
        """
        import torch

        split = self.pieces[0].end
        side = 0 if self.pieces[0].bend * sign > 0 else 1
        inverse = self.pieces[side].solve(False)
        d, far = (low, high) if side == 0 else (high, low)
        border = low.clamp(min=split).minimum(high)
        start, end = (low, border) if side == 0 else (border, high)
        value_far = sign * self.f(far)
        with torch.no_grad():
            level = value_far if sign > 0 else -value_far
            for _ in range(TANGENT_STEPS):
                k = (level - self.f(d)).div_(far - d).nan_to_num_(0.0)  # NaN: a single point
                inside = inverse(k)
                d = inside.maximum(start).minimum(end)
        d = between(inside, start, end)  # differentiable where it is an end
        on_curve = (middle <= d) | (high <= split) if side == 0 else (middle >= d) | (low >= split)
        tangent = sign * self.df(middle)
        return torch.where(on_curve, tangent, chord(d, sign * self.f(d), far, value_far, tangent))


class Table:
    """Numeric inverse of a derivative that is monotone on ``[start, end]`` and has no closed form.

    A table gives the cell, secant steps the place inside it: about 1e-9 off, which `Curve`
    accounts for.
    """

    def __init__(
        self, df: Callable[[Tensor], Tensor], start: float, end: float, cells: int = 2048
    ) -> None:
        self.df, self.start, self.end, self.cells = df, start, end, cells
        self._made: dict[object, tuple[bool, Tensor, Tensor]] = {}

    def piece(self, end: float, bend: int) -> Piece:
        """The piece this is the inverse on."""
        return Piece(end, bend, self, self.guess)

    def guess(self, k: Tensor) -> Tensor:
        """By linear interpolation alone."""
        return self._solve(k, 1)

    def __call__(self, k: Tensor) -> Tensor:
        """Where the derivative is ``k``; infinite where it is beyond the table."""
        return self._solve(k, 3)

    def _solve(self, k: Tensor, steps: int) -> Tensor:
        import torch

        rising, places, slopes = self._table(k)
        sought = k if rising else -k
        i = torch.searchsorted(slopes, sought.contiguous()).clamp(1, self.cells)
        left, right = places[i - 1], places[i]
        a, fa, b, fb = left, slopes[i - 1] - sought, right, slopes[i] - sought
        for turn in range(steps):
            step = fb - fa
            z = b - fb * (b - a) / torch.where(step == 0, 1.0, step)
            z = torch.clamp(z, left, right)
            if turn == steps - 1:
                b = z
                break
            fz = (self.df(z) if rising else -self.df(z)) - sought
            a, fa, b, fb = b, fb, z, fz
        # Beyond the table the derivative hardly changes: off to the end of the piece.
        z = torch.where(sought < slopes[0], -inf, b)
        return torch.where(sought > slopes[-1], inf, z)

    def _table(self, like: Tensor) -> tuple[bool, Tensor, Tensor]:
        import torch

        found = self._made.get(like.device)
        if found is None:
            z = torch.linspace(self.start, self.end, self.cells + 1, dtype=torch.float64)
            d = self.df(z.to(like.device))
            rising = bool(d[-1] > d[0])
            found = rising, z.to(like.device), (d if rising else -d).cummax(0).values
            self._made[like.device] = found
        return found
