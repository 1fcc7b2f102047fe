"""How to verify: one frozen value, checked when it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from certify.core.errors import UsageError

METHOD_NAMES = (
    "auto", "ibp", "crown-ibp", "crown", "lp", "decomposition", "dual", "alpha", "sdp-crown", "sdp",
)
PROOF_METHODS = (*METHOD_NAMES, "search", "pieces")  # what may stand behind a proof, tightest last
SEMANTICS = ("real", "float32")
DEFAULT_MEMORY = 4 * 2**30  # bytes
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How to verify.

    Attributes:
        timeout: seconds, from the call; the answer comes within it or is ``timeout``.
        method: ``"auto"`` climbs from cheap to tight; a name uses that method alone.
        semantics: ``"real"``: real arithmetic on the stored weights; ``"float32"``: any float32
            evaluation order as well.
        attack: look for counterexamples too.
        seed: of the attack.
        memory: bytes that coefficient tensors may take.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``: cuda where there is one.
        workers: processor cores that may be busy at once.
        progress: called with one line per stage.
        explain: called with what was chosen, and why.
    """

    timeout: float = 60.0
    method: str = "auto"
    semantics: str = "real"
    attack: bool = True
    seed: int = 0
    memory: int = DEFAULT_MEMORY
    device: str = "cpu"
    workers: int = 2
    progress: Progress | None = None
    explain: Progress | None = None

    def __post_init__(self) -> None:
        for what, value, known in (
            ("method", self.method, METHOD_NAMES),
            ("semantics", self.semantics, SEMANTICS),
        ):
            if value not in known:
                raise UsageError(f"{what} {value!r} is unknown; choose one of {', '.join(known)}")
        if self.workers < 1:
            raise UsageError(f"workers must be at least 1, got {self.workers}")
        if not self.timeout > 0:
            raise UsageError(f"timeout must be a positive number of seconds, got {self.timeout}")
        if self.device != "auto" and self.device.split(":")[0] not in ("cpu", "cuda"):
            raise UsageError(f"device {self.device!r} is unknown; choose auto, cpu or cuda")

    def say(self, line: str) -> None:
        """Report a line of progress, to whoever wants it."""
        if self.progress is not None:
            self.progress(line)

    def explained(self, line: str) -> None:
        """Report a choice and its reason, to whoever wants it."""
        if self.explain is not None:
            self.explain(line)
