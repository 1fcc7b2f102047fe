"""What is asked of a classifier: which radius, which verifiers, how hard it is attacked."""

from __future__ import annotations

from dataclasses import dataclass

from certify.core.errors import UsageError
from certify.settings import DEFAULT_MEMORY, SEMANTICS

NORMS = ("inf", "2", "1")
VERIFIERS = {
    "ibp": ("ibp",),
    "crown-ibp": ("crown-ibp",),
    "crown": ("crown",),
    "alpha": ("alpha",),
    "union": ("ibp", "crown-ibp", "crown"),
    "complete": ("ibp", "crown-ibp", "crown"),
}
ATTACKS = ("none", "quick", "full")


@dataclass(frozen=True)
class Plan:
    """How to evaluate.

    Attributes:
        eps: radius in the units of the images, whose values lie in [0, 1].
        norm: ``"inf"``, ``"2"`` or ``"1"``.
        verifier: a method, the ``"union"`` of all (each on what the cheaper ones left open), or
            ``"complete"``: the union, and then a search that only ends with an answer or in time.
        attack: ``"full"``: multi-targeted PGD and an ensemble in the manner of AutoAttack;
            ``"quick"``: the first of them, briefly; ``"none"``.
        timeout: seconds that the search may take for one example; then it counts as unknown.
        semantics: ``"real"`` or ``"float32"``, see `certify.verify`.
        seed: of the attacks.
        device, memory: see `certify.verify`.
    """

    eps: float
    norm: str = "inf"
    verifier: str = "union"
    attack: str = "full"
    timeout: float = 60.0
    semantics: str = "real"
    seed: int = 0
    device: str = "cpu"
    memory: int = DEFAULT_MEMORY

    def __post_init__(self) -> None:
        for what, value, known in (
            ("norm", self.norm, NORMS), ("verifier", self.verifier, tuple(VERIFIERS)),
            ("attack", self.attack, ATTACKS), ("semantics", self.semantics, SEMANTICS),
        ):
            if value not in known:
                raise UsageError(f"{what} {value!r} is unknown; choose one of {', '.join(known)}")
        if not 0 <= self.eps < float("inf"):
            raise UsageError(f"eps must be a number of at least 0, got {self.eps}")
        if not self.timeout > 0:
            raise UsageError(f"timeout must be a positive number of seconds, got {self.timeout}")

    @property
    def methods(self) -> tuple[str, ...]:
        """Bound methods to try on every example, cheapest first."""
        return VERIFIERS[self.verifier]

    @property
    def late(self) -> tuple[str, ...]:
        """Costly methods, for what neither the others proved nor an attack broke."""
        return ("alpha",) if self.verifier in ("union", "complete") else ()

    @property
    def complete(self) -> bool:
        """Whether what stays open is searched."""
        return self.verifier == "complete"
