"""Schedules over training steps: how far, and how much of each loss."""

from __future__ import annotations

from dataclasses import dataclass

from certify.core.errors import BadInput

_MIDDLE, _POWER = 0.25, 4.0


@dataclass(frozen=True)
class Ramp:
    """From 0 to 1 between two steps.

    Attributes:
        start: the last step at 0.
        end: the first step at exactly 1.
        smooth: start like a fourth power and go on as a line (Shi et al. 2021); else a line.
    """

    start: int = 0
    end: int = 0
    smooth: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise BadInput(f"a ramp goes from a step to a later one; got {self.start} to "
                           f"{self.end}")

    def at(self, step: int) -> float:
        """The share reached at ``step``; 0 and 1 exactly outside the ramp."""
        if step >= self.end:
            return 1.0
        if step <= self.start:
            return 0.0
        length = float(self.end - self.start)
        done = step - self.start
        if not self.smooth:
            return done / length
        bend = _MIDDLE * length
        # value and slope of c t^4 meet those of the line at the bend
        c = 1.0 / ((length - bend) * _POWER * bend ** (_POWER - 1) + bend**_POWER)
        if done < bend:
            return float(c * done**_POWER)
        at_bend = c * bend**_POWER
        return float(at_bend + (1.0 - at_bend) * (done - bend) / (length - bend))


@dataclass(frozen=True)
class Schedule:
    """How a training goes.

    Attributes:
        ramp: of the radius.
        kappa: weight of the clean loss at the end of the ramp; it begins at 1.
        beta: weight of the linear bound beside the interval bound at the end; it begins at 1.
    """

    ramp: Ramp = Ramp()
    kappa: float = 0.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        for name in ("kappa", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"{name} must lie in [0, 1], got {getattr(self, name)!r}")

    def share(self, step: int) -> float:
        """Of the radius."""
        return self.ramp.at(step)

    def kappa_at(self, step: int) -> float:
        """Weight of the clean loss."""
        return 1.0 - (1.0 - self.kappa) * self.share(step)

    def beta_at(self, step: int) -> float:
        """Weight of the linear bound."""
        return 1.0 - (1.0 - self.beta) * self.share(step)
