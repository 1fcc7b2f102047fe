"""A failure probability as an object, so that nobody spends it twice."""

from __future__ import annotations

import math

from certify.core.errors import BadInput, UsageError


class Budget:
    """The probability alpha that a statement may fail. Spending it uses it up.

    A union of statements holds together with probability at least 1 - alpha when each spends its
    own part; using one part for two statements is how published radii became invalid.
    """

    def __init__(self, alpha: float) -> None:
        """Alpha in (0, 1).

        Raises:
            BadInput: alpha outside (0, 1).
        """
        if not (isinstance(alpha, (int, float)) and 0 < alpha < 1):
            raise BadInput(f"alpha must lie strictly between 0 and 1, got {alpha!r}; use 0.001")
        self._alpha = float(alpha)
        self._left = True

    @property
    def alpha(self) -> float:
        """The whole of it, whether or not it is spent."""
        return self._alpha

    def spend(self) -> float:
        """All of it, once.

        Raises:
            UsageError: it is spent.
        """
        if not self._left:
            raise UsageError(
                f"alpha = {self._alpha:g} is already spent on another statement; "
                "split the budget before the first use"
            )
        self._left = False
        return self._alpha

    def split(self, *shares: float) -> tuple[Budget, ...]:
        """Parts of it in these proportions, in place of the whole; their sum is not above it.

        Raises:
            BadInput: a share that is not positive.
            UsageError: it is spent.
        """
        if not shares or not all(s > 0 and math.isfinite(s) for s in shares):
            raise BadInput(f"shares of alpha must be positive, got {shares}")
        whole, total = self.spend(), math.fsum(shares) * (1 + 2.0**-50)
        return tuple(Budget(whole * (s / total)) for s in shares)

    def __repr__(self) -> str:
        """How much, and whether it is left."""
        return f"Budget({self._alpha:g}{'' if self._left else ', spent'})"
