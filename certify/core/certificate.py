"""The one result of every method: a verdict, what it is about, and why to believe it."""

from __future__ import annotations

import hashlib
import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from certify.core.atomic import write_whole
from certify.core.claim import CODEC, Case, Claim
from certify.core.codec import canonical, expect, parse
from certify.core.errors import BadInput, LimitExceeded, one_line
from certify.core.provenance import Provenance
from certify.core.split_tree import SplitTree
from certify.core.votes import Smoothing, Votes
from certify.core.wording import region_words, spec_words

SCHEMA = "certify/1"
LARGEST_FILE = 2**28  # bytes
_ARITHMETIC = ("real", "float32")


class Verdict(Enum):
    """What is known."""

    HOLDS = "holds"
    VIOLATED = "violated"
    UNKNOWN = "unknown"
    TIMEOUT = "timeout"

    @property
    def word(self) -> str:
        """As VNN-COMP writes it: ``unsat``, ``sat``, ``unknown``, ``timeout``."""
        return {"holds": "unsat", "violated": "sat"}.get(self.value, self.value)


@dataclass(frozen=True, eq=False)
class Guarantee:
    """What a verdict may be relied on for.

    Attributes:
        confidence: 1.0, or ``1 - alpha`` for a statement about random samples.
        arithmetic: ``"real"``: the exact function of the stored weights; ``"float32"``: any float32
            evaluation of it as well.
        assumptions: sentences; what has been taken for granted.
    """

    confidence: float = 1.0
    arithmetic: str = "real"
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.confidence <= 1:
            raise BadInput(f"confidence must be above 0 and at most 1, got {self.confidence}")
        if self.arithmetic not in _ARITHMETIC:
            raise BadInput(
                f"arithmetic must be real or float32, got {one_line(self.arithmetic, 40)!r}"
            )


@dataclass(frozen=True, eq=False)
class Counterexample:
    """A point of the region whose output, computed by the model itself, is unsafe.

    Attributes:
        inputs: one array per model input, of its shape and in the model's precision.
        output: what the model answered, flat.
        case: index into the claim's cases.
        example: index into the batch of that case.
        proved: whether the point is unsafe in real arithmetic too, by a bound that accounts for
            rounding; False where that bound could not tell.
    """

    inputs: tuple[np.ndarray, ...]
    output: np.ndarray
    case: int = 0
    example: int = 0
    proved: bool = False

    def __post_init__(self) -> None:
        if not self.inputs or not all(np.isfinite(a).all() for a in (*self.inputs, self.output)):
            raise BadInput("a counterexample needs finite inputs and outputs")
        if min(self.case, self.example) < 0:
            raise BadInput("a counterexample has a negative index")

    @property
    def input(self) -> Any:
        """The input array, or a tuple of them where the model has several inputs."""
        return self.inputs[0] if len(self.inputs) == 1 else self.inputs

    @property
    def flat(self) -> np.ndarray:
        """All inputs, flattened and joined in order."""
        return np.concatenate([a.reshape(-1) for a in self.inputs])


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a checker needs to see again that one case holds. Untrusted: it is recomputed.

    Attributes:
        method: that proved the case.
        slopes: optimised slopes by node name, each ``(B, R or 1, *shape)``.
        margins: proved lower bounds of the rows, ``(B, R)``; None where they are not known.
        trees: proofs by cases: per example one tree per clause, () where bounds alone sufficed or
            the trees were not kept; or none at all.
    """

    method: str
    slopes: Mapping[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
    margins: np.ndarray | None = None
    trees: tuple[tuple[SplitTree, ...], ...] = ()

    def __post_init__(self) -> None:
        arrays = [a for group in self.slopes.values() for a in group]
        if not all(np.isfinite(a).all() for a in arrays):
            raise BadInput("a slope is not finite")
        if self.margins is not None and (self.margins.ndim != 2 or np.isnan(self.margins).any()):
            raise BadInput("margins must be (batch, rows) without NaN")


@dataclass(frozen=True, eq=False)
class Certificate:
    """A claim, a verdict on it, and the evidence.

    Attributes:
        verdict, claim, guarantee, provenance: see their classes.
        radius: of the region proved, where the method finds one.
        margin: the largest proved lower bound of the smallest deciding margin, over all cases.
        counterexample: exactly when the verdict is VIOLATED.
        evidence: one entry per case, or none.
        votes: in place of evidence, for a claim about a smoothed model.
        reason: why it is undecided, and what might help; "" otherwise.
    """

    verdict: Verdict
    claim: Claim
    guarantee: Guarantee
    provenance: Provenance
    radius: float | None = None
    margin: float | None = None
    counterexample: Counterexample | None = None
    evidence: tuple[Evidence, ...] = ()
    votes: Votes | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        _check_numbers(self)
        found = self.counterexample
        if (found is not None) != (self.verdict is Verdict.VIOLATED):
            raise BadInput("a counterexample belongs to the verdict 'violated', and only to it")
        if found is not None:
            _check_counterexample(found, self.claim)
        if len(self.evidence) not in (0, len(self.claim.cases)):
            raise BadInput(
                f"{len(self.evidence)} pieces of evidence for {len(self.claim.cases)} cases"
            )
        if self.claim.smoothing is not None:
            _check_smoothed(self)

    def sentence(self) -> str:
        """The result in one human sentence."""
        case = self.claim.cases[self.counterexample.case if self.counterexample else 0]
        where, (good, bad) = region_words(case.region), spec_words(case.spec)
        if self.claim.smoothing is not None:
            under = f"the most frequent label under {self.claim.smoothing.words()},"
            good = good.replace("the label", under)
        if self.claim.edits:
            where += f", for the model after {'; '.join(e.words() for e in self.claim.edits)},"
        details = self._details()
        if self.verdict is Verdict.HOLDS:
            return f"HOLDS: for every x with {where} {good}{self._others()} ({details})"
        if self.verdict is Verdict.VIOLATED:
            return f"VIOLATED: there is an x with {where} for which {bad} ({details})"
        why = f": {self.reason}" if self.reason else ""
        return (
            f"{self.verdict.name}: undecided whether for every x with {where} "
            f"{good}{self._others()} ({details}){why}"
        )

    __str__ = sentence

    def _others(self) -> str:
        more = len(self.claim.cases) - 1
        return f", and likewise for {more} more case{'s' if more > 1 else ''}" if more else ""

    def _details(self) -> str:
        said = [self.provenance.method, f"{self.guarantee.arithmetic} arithmetic"]
        if self.guarantee.confidence < 1:
            said.append(f"confidence {self.guarantee.confidence:.6g}")
        if self.radius is not None:
            said.append(f"radius {self.radius:.4g}")
        if self.margin is not None:
            said.append(f"margin {self.margin:.3g}")
        return ", ".join([*said, f"{self.provenance.seconds:.1f} s"])

    def _repr_html_(self) -> str:
        """A small table for notebooks."""
        colour = {"holds": "#2a7d2a", "violated": "#b03030"}.get(self.verdict.value, "#806000")
        facts = [
            ("model", self.claim.model),
            ("verdict", self.verdict.name),
            ("statement", self.sentence()),
            *(("assumed", a) for a in self.guarantee.assumptions),
        ]
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(k)}</th>"
            f"<td style='text-align:left'>{html.escape(v)}</td></tr>"
            for k, v in facts
        )
        return f"<table style='border-left:4px solid {colour}'>{rows}</table>"

    def text(self) -> str:
        """The whole certificate as one line of canonical JSON, with a digest of itself."""
        plain = CODEC.encode(self)
        return canonical({"schema": SCHEMA, "certificate": plain, "sha256": _digest(plain)})

    def save(self, path: str | Path) -> None:
        """Write `text` to a file that is either complete or not there.

        Raises:
            CannotWrite: the file could not be written.
        """
        write_whole(Path(path), (self.text() + "\n").encode("ascii"))


def read_certificate(text: str) -> Certificate:
    """The certificate that `Certificate.text` wrote. Nothing in it is believed but its form.

    Raises:
        BadInput: anything else.
    """
    data = parse(text)
    expect(
        isinstance(data, dict) and data.get("schema") == SCHEMA,
        "schema",
        repr(SCHEMA),
        data.get("schema") if isinstance(data, dict) else data,
    )
    expect(
        set(data) == {"schema", "certificate", "sha256"},
        "certificate",
        "an object with schema, certificate and sha256 only",
        data,
    )
    if _text_again(data) != text or data["sha256"] != _digest(data["certificate"]):
        raise BadInput(
            "the certificate was damaged or edited: its text does not match its own digest"
        )
    found: Certificate = CODEC.decode(Certificate, data["certificate"], "certificate")
    return found


def load_certificate(path: str | Path) -> Certificate:
    """Read a file written by `Certificate.save`.

    Raises:
        BadInput: missing, damaged, edited, or not a certificate; the message starts with the path.
        LimitExceeded: larger than 256 MiB.
    """
    shown = one_line(path, 120)
    try:
        file = Path(path)
        if not file.is_file():
            raise BadInput(
                f"{shown}: no such file" if not file.exists() else f"{shown}: not a regular file"
            )
        if file.stat().st_size > LARGEST_FILE:
            raise LimitExceeded(f"{shown}: larger than {LARGEST_FILE} bytes")
        raw = file.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{shown}: cannot be read: {one_line(error, 100)}") from None
    try:
        text = raw.decode("ascii")
        if not text.endswith("\n"):
            raise BadInput("the file is cut off")
        return read_certificate(text[:-1])
    except UnicodeDecodeError:
        raise BadInput(f"{shown}: not a certificate: bytes that are not ASCII") from None
    except BadInput as error:
        raise BadInput(one_line(f"{shown}: {error}")) from None


def _digest(plain: Any) -> str:
    return hashlib.sha256(_text_again(plain).encode("ascii")).hexdigest()


def _text_again(data: Any) -> str:
    try:
        return canonical(data)
    except (ValueError, RecursionError):
        raise BadInput("not a certificate: holds a number that is not finite") from None


def _check_numbers(certificate: Certificate) -> None:
    for name, value in (("radius", certificate.radius), ("margin", certificate.margin)):
        if value is not None and not math.isfinite(value):
            raise BadInput(f"{name} must be finite, got {value}")
    if certificate.radius is not None and certificate.radius < 0:
        raise BadInput(f"radius must not be negative, got {certificate.radius}")
    if (
        certificate.verdict is Verdict.HOLDS
        and certificate.margin is not None
        and certificate.margin < 0
    ):
        raise BadInput(f"'holds' with a negative margin of {certificate.margin}")


def _check_smoothed(certificate: Certificate) -> None:
    """A smoothed claim rests on votes, and its confidence is what they leave."""
    votes = certificate.votes
    if certificate.evidence or certificate.verdict is Verdict.VIOLATED:
        raise BadInput("a claim about a smoothed model rests on votes, not on bounds or points")
    if certificate.verdict is Verdict.HOLDS:
        if votes is None or certificate.radius is None or certificate.radius <= 0:
            raise BadInput("a smoothed claim that holds needs votes and a radius above 0")
        if certificate.guarantee.confidence > 1 - votes.alpha:
            raise BadInput(f"confidence {certificate.guarantee.confidence} is more than votes at "
                           f"alpha {votes.alpha} give")


def _check_counterexample(found: Counterexample, claim: Claim) -> None:
    if found.case >= len(claim.cases):
        raise BadInput(f"the counterexample is for case {found.case} of {len(claim.cases)}")
    case: Case = claim.cases[found.case]
    if found.example >= case.region.batch:
        raise BadInput(f"the counterexample is for example {found.example} of {case.region.batch}")
    parts = getattr(case.region, "parts", (case.region,))
    shapes = tuple(p.shape for p in parts)
    if tuple(a.shape for a in found.inputs) != shapes:
        raise BadInput(
            f"the counterexample's inputs do not have the shapes {list(shapes)} of the region"
        )
    if found.output.shape != (case.spec.num_outputs,):
        raise BadInput(f"the counterexample's output must have {case.spec.num_outputs} elements")


__all__ = [
    "Case",
    "Certificate",
    "Claim",
    "Counterexample",
    "Evidence",
    "Guarantee",
    "Provenance",
    "Smoothing",
    "Verdict",
    "Votes",
    "load_certificate",
    "read_certificate",
]
