"""Certificates for tests: one of every verdict, forgeries of them, and when two are alike."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal
from typing import Any

import numpy as np

from certify.core.certificate import (
    Case,
    Certificate,
    Claim,
    Counterexample,
    Evidence,
    Guarantee,
    Provenance,
    Verdict,
)
from certify.core.codec import canonical
from certify.core.provenance import now, versions
from certify.core.region import Linf
from certify.core.spec import Clause, Row, Spec

REGION = Linf(np.linspace(0, 1, 4)[None], 0.03, (0, 1)).batched((4,))


SPECS = (
    Spec.classify(2, 3),
    Spec.classify(np.array([0, 2]), 3),
    Spec.linear([[1.0, -0.1, 0.0]], [0.3]),
    Spec.unsafe(
        [[Row({0: 1.0}, 0.5), Row({2: -1.0}, 1.0, x={1: 3.0}, strict=True)], [Row({1: 1.0})]], 3, 4
    ),
    Spec(
        (
            Clause(
                np.ones((1, 1, 3)),
                None,
                np.array([np.nextafter(0.1, 1)]),
                np.array([False]),
                (Decimal("0.1"),),
            ),
        ),
        3,
    ),
    Spec.linear([[1.0, -0.1, 0.0]], [[0.3], [0.4]]),
)


def certificate(verdict: Verdict = Verdict.HOLDS, **changes: Any) -> Certificate:
    found = Counterexample((np.full(4, 0.25, np.float32),), np.arange(3, dtype=np.float32))
    fields: dict[str, Any] = {
        "verdict": verdict,
        "claim": Claim("m.onnx", "onnx", "ab" * 32, (Case(REGION, SPECS[0]),)),
        "guarantee": Guarantee(1.0, "real", ("none",)),
        "provenance": Provenance(
            "ab" * 32,
            None,
            "alpha",
            {"steps": 20, "rate": 0.1, "memory": None},
            7,
            versions(),
            "cpu",
            0.83,
            now(),
        ),
        "margin": 0.41 if verdict is Verdict.HOLDS else None,
        "counterexample": found if verdict is Verdict.VIOLATED else None,
        "evidence": (
            Evidence(
                "alpha",
                {"relu": (np.linspace(0, 1, 6).reshape(1, 2, 3),)},
                np.array([[0.41, -np.inf]]),
            ),
        ),
        "reason": "too loose" if verdict is Verdict.UNKNOWN else "",
    }
    return Certificate(**{**fields, **changes})


def forged(change: Any) -> str:
    """A certificate's text after ``change(plain)``, with a digest that fits: a forgery."""
    import hashlib

    data = json.loads(certificate(Verdict.VIOLATED).text())
    change(data["certificate"])
    data["sha256"] = hashlib.sha256(canonical(data["certificate"]).encode()).hexdigest()
    return canonical(data)


def same(a: Any, b: Any) -> bool:
    """Deep equality of two decoded values, arrays by bytes."""
    if dataclasses.is_dataclass(a) and not isinstance(a, type):
        return type(a) is type(b) and all(
            same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)
        )
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return sorted(a) == sorted(b) and all(same(v, b[k]) for k, v in a.items())
    return bool(a == b)
