"""Certificates that were changed: every change is noticed, and forged fields are refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificates import certificate, forged

from certify.core.certificate import (
    Verdict,
    load_certificate,
    read_certificate,
)
from certify.core.errors import BadInput


def _set(path: str, value: Any) -> Any:
    def change(plain: Any) -> None:
        *above, last = path.split("/")
        for key in above:
            plain = plain[int(key) if isinstance(plain, list) else key]
        plain[last] = value

    return change


NAN = {"dtype": "float64", "shape": [1], "base64": "AAAAAAAA+H8="}


FORGERIES = {
    "verdict": _set("verdict", "holds"),
    "verdict of no kind": _set("verdict", "proved"),
    "unknown field": _set("trusted", True),
    "missing field": lambda plain: plain.pop("margin"),
    "region of no kind": _set("claim/cases/0/region/kind", "Path"),
    "a class that is no region": _set("claim/cases/0/region", {"kind": "Spec"}),
    "a specification for a region": lambda plain: _set(
        "claim/cases/0/region", plain["claim"]["cases"][0]["spec"]
    )(plain),
    "negative radius of the region": _set("claim/cases/0/region/eps", -1.0),
    "centre is text": _set("claim/cases/0/region/center", "zero"),
    "centre is NaN": _set("claim/cases/0/region/center", NAN),
    "shape too big": _set("claim/cases/0/region/shape", [4, 10**9, 10**9]),
    "shape of text": _set("claim/cases/0/region/shape", ["4"]),
    "array length": _set("counterexample/output/shape", [4]),
    "array claims terabytes": _set("counterexample/output/shape", [10**13]),
    "array dtype": _set("counterexample/output/dtype", "object"),
    "array not base64": _set("counterexample/output/base64", "!!!!"),
    "negative shape": _set("counterexample/output/shape", [-3]),
    "no clauses": _set("claim/cases/0/spec/clauses", []),
    "clauses of numbers": _set("claim/cases/0/spec/clauses", [1, 2]),
    "other number of outputs": _set("claim/cases/0/spec/num_outputs", 4),
    "clause rows differ": _set(
        "claim/cases/0/spec/clauses/0/strict", {"dtype": "bool", "shape": [2], "base64": "AAA="}
    ),
    "exact threshold of text": _set("claim/cases/0/spec/clauses/0/exact", ["0.1"]),
    "exact threshold above": _set("claim/cases/0/spec/clauses/0/exact", [{"decimal": "1"}]),
    "no cases": _set("claim/cases", []),
    "confidence": _set("guarantee/confidence", 1.5),
    "confidence is a whole number": _set("guarantee/confidence", 1),
    "arithmetic": _set("guarantee/arithmetic", "float16"),
    "seed is a float": _set("provenance/seed", 1.0),
    "setting is a list": _set("provenance/settings", {"a": []}),
    "negative seconds": _set("provenance/seconds", -1.0),
    "slopes NaN": _set("evidence/0/slopes", {"relu": [NAN]}),
    "margins NaN": _set("evidence/0/margins", NAN),
    "evidence of nothing": _set("evidence", [None]),
    "case index": _set("counterexample/case", 5),
    "proved is a number": _set("counterexample/proved", 1),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_fields_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_certificate(forged(FORGERIES[name]))
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 400


def test_the_forger_would_succeed_without_a_change() -> None:
    assert read_certificate(forged(lambda plain: None)).verdict is Verdict.VIOLATED


def test_every_flipped_bit_is_noticed() -> None:
    raw = bytearray(certificate(Verdict.VIOLATED).text().encode())
    rng = np.random.default_rng(0)
    for place in range(0, len(raw), 3):
        broken = raw.copy()
        broken[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(BadInput):
            read_certificate(broken.decode("latin-1"))


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    raw = (certificate().text() + "\n").encode()
    path = tmp_path / "c.json"
    for stop in [*range(0, len(raw), 97), len(raw) - 2, len(raw) - 1]:
        path.write_bytes(raw[:stop])
        with pytest.raises(BadInput):
            load_certificate(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "1",
        "{}",
        '{"schema":"certify/2"}',
        "[" * 100_000,
        "9" * 5000,
        "NaN",
        '{"schema":"certify/1","certificate":{},"sha256":""}',
        '{"a":1,"a":1}',
        "\x00",
        '{"a":1e999}',
        '{"schema":"certify/1","certificate":[1e999],"sha256":""}',
        '{"schema":"certify/1","certificate":' + "[" * 900 + "]" * 900 + ',"sha256":""}',
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        read_certificate(text)


def test_duplicate_keys_spaces_and_trailing_bytes_are_refused() -> None:
    text = certificate().text()
    for broken in (
        text + " ",
        text + "{}",
        " " + text,
        text.replace('"margin":0.41', '"margin":0.41,"margin":0.41'),
        json.dumps(json.loads(text), indent=1),
    ):
        with pytest.raises(BadInput):
            read_certificate(broken)


def test_a_forged_margin_is_rejected() -> None:
    import certify
    import certify.ops
    from certify.ops.builder import Builder

    certify.ops.load()
    b = Builder()
    y = b.add("linear", b.input("x", (1, 2)), b.constant(np.array([[1.0, 0.0], [0.0, 1.0]])), None)
    network = b.finish(y)
    region = certify.Box(np.array([[2.0, 0.0]]), np.array([[3.0, 1.0]]))
    certificate = certify.verify(network, region, certify.Spec.classify(0, 2))
    assert certify.check(certificate, network).accepted
    forged = dataclasses.replace(certificate, margin=99.0)
    report = certify.check(forged, network)
    assert not report.accepted and "margin" in report.reason
