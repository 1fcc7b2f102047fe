"""Exact certificates for discrete noise, in rational arithmetic.

The worst classifier for a given probability fills up the regions of equal likelihood ratio greedily
(Neyman-Pearson); there are few of them, and their masses are rational.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial

from certify.core.errors import BadInput

Regions = list[tuple[Fraction | None, Fraction, Fraction]]  # ratio, mass clean, mass perturbed


def l0_value(p: Fraction, keep: Fraction, values: int, changed: int) -> Fraction:
    """Least probability after ``changed`` features were altered (Lee et al. 2019).

    Noise keeps each feature with probability ``keep`` and draws one of ``values`` others otherwise.

    Raises:
        BadInput: probabilities outside [0, 1], or no other value to draw.
    """
    _probability("p", p)
    _probability("keep", keep)
    if values < 1 or changed < 0:
        raise BadInput(f"{values} other values and {changed} changed features make no noise model")
    a, b = keep, (1 - keep) / values
    regions: dict[int, list[Fraction]] = {}
    for i in range(changed + 1):
        for j in range(changed + 1 - i):
            rest = changed - i - j
            points = math.comb(changed, i) * math.comb(changed - i, j) * (values - 1) ** rest
            mass = regions.setdefault(i - j, [Fraction(0), Fraction(0)])
            mass[0] += points * a**i * b ** (changed - i)
            mass[1] += points * a**j * b ** (changed - j)
    return _greedy([(_ratio(m), m[0], m[1]) for m in regions.values()], p)


def sparse_value(
    p: Fraction, appear: Fraction, vanish: Fraction, added: int, deleted: int
) -> Fraction:
    """Least probability after ``added`` zeros became one and ``deleted`` ones became zero, for
    binary features (Bojchevski et al. 2020).

    Noise turns a zero into a one with probability ``appear``, a one into a zero with ``vanish``.
    """
    for name, value in (("p", p), ("appear", appear), ("vanish", vanish)):
        _probability(name, value)
    if added < 0 or deleted < 0:
        raise BadInput(f"{added} added and {deleted} deleted features make no perturbation")
    regions: Regions = []
    for i in range(added + 1):  # of the added features, how many show a one
        for j in range(deleted + 1):  # of the deleted features, how many show a one
            clean = _binomial(added, i, appear) * _binomial(deleted, j, 1 - vanish)
            moved = _binomial(added, i, 1 - vanish) * _binomial(deleted, j, appear)
            regions.append((_ratio([clean, moved]), clean, moved))
    return _greedy(regions, p)


def l0_radius(p: Fraction, keep: Fraction, values: int, most: int) -> int:
    """Features that may change while the class keeps more than half, at most ``most``."""
    return _last(lambda r: l0_value(p, keep, values, r) > Fraction(1, 2), most)


def sparse_radii(
    p: Fraction, appear: Fraction, vanish: Fraction, most: int
) -> tuple[tuple[int, int], ...]:
    """The largest certified (added, deleted): no pair of them contains another."""
    found: list[tuple[int, int]] = []
    for added in range(most + 1):
        deleted = _last(partial(_majority, p, appear, vanish, added), most)
        if deleted < 0:
            break
        found = [pair for pair in found if pair[1] > deleted] + [(added, deleted)]
    return tuple(found)


def _majority(p: Fraction, appear: Fraction, vanish: Fraction, added: int, deleted: int) -> bool:
    return sparse_value(p, appear, vanish, added, deleted) > Fraction(1, 2)


def _last(holds: Callable[[int], bool], most: int) -> int:
    """The largest number up to ``most`` before the first that fails; -1 when 0 fails."""
    return next((r - 1 for r in range(most + 1) if not holds(r)), most)


def _greedy(regions: Regions, p: Fraction) -> Fraction:
    """Fill mass ``p`` of the clean distribution where the perturbed one has least of it."""
    left, value = p, Fraction(0)
    infinite = [r for r in regions if r[0] is None]  # no perturbed mass at all: filled first
    for _, clean, moved in infinite + sorted(
        (r for r in regions if r[0] is not None), key=lambda r: -(r[0] or Fraction(0))
    ):
        if left <= 0:
            break
        if clean <= 0:
            continue
        share = min(Fraction(1), left / clean)
        value += share * moved
        left -= share * clean
    return value


def _ratio(mass: list[Fraction]) -> Fraction | None:
    """Clean over perturbed mass; None for infinite."""
    return None if mass[1] == 0 else mass[0] / mass[1]


def _binomial(n: int, k: int, p: Fraction) -> Fraction:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def _probability(name: str, value: Fraction) -> None:
    if not isinstance(value, Fraction) or not 0 <= value <= 1:
        raise BadInput(f"{name} must be a Fraction in [0, 1], got {value!r}")
