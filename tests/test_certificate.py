"""Certificates: exact round trips, and nothing but `BadInput` from files that were changed."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certify.core.atomic import write_whole
from certify.core.certificate import (
    Case,
    Certificate,
    Claim,
    Counterexample,
    Evidence,
    Guarantee,
    Provenance,
    Verdict,
    load_certificate,
    read_certificate,
)
from certify.core.claim import region_from_dict, region_to_dict, spec_from_dict, spec_to_dict
from certify.core.codec import canonical, parse
from certify.core.errors import BadInput, CannotWrite, LimitExceeded
from certify.core.provenance import now, versions
from certify.core.region import REGIONS, Box, Linf, Product, Region
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
)
CASES = [(name, i) for name, cls in REGIONS.items() for i in range(len(cls.examples()))]


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


@pytest.mark.parametrize(("name", "index"), CASES)
def test_every_region_is_rebuilt_exactly(name: str, index: int) -> None:
    region = REGIONS[name].examples()[index]
    back = region_from_dict(json.loads(canonical(region_to_dict(region))))
    assert type(back) is type(region)
    assert same(back.ends(), region.ends())
    assert region_to_dict(back) == region_to_dict(region)


def test_a_torch_region_keeps_its_numbers_and_loses_its_gradient() -> None:
    import torch

    centre = torch.rand(2, 3, dtype=torch.bfloat16).requires_grad_(True)
    back = region_from_dict(region_to_dict(Linf(centre, torch.tensor(8 / 255)).batched((3,))))
    assert np.array_equal(back.center, centre.detach().double().numpy())
    assert back.eps.item() == float(torch.tensor(8 / 255))


@pytest.mark.parametrize("spec", SPECS)
def test_every_specification_is_rebuilt_exactly(spec: Spec) -> None:
    back = spec_from_dict(json.loads(canonical(spec_to_dict(spec))))
    assert same(back, spec)
    assert all(same(a, b) for a, b in zip(back.rows(), spec.rows(), strict=True))


@pytest.mark.parametrize("verdict", list(Verdict))
def test_round_trip_through_a_file(verdict: Verdict, tmp_path: Path) -> None:
    made = certificate(verdict)
    made.save(tmp_path / "c.json")
    back = load_certificate(tmp_path / "c.json")
    assert back.text() == made.text()
    assert same(back.evidence[0], made.evidence[0])
    assert same(back.counterexample, made.counterexample)
    assert same(back.provenance, made.provenance)
    assert str(back) == made.sentence()
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


def test_sentences() -> None:
    assert certificate().sentence() == (
        "HOLDS: for every x with |x - c|_inf <= 0.03 the label stays 2 "
        "(alpha, real arithmetic, margin 0.41, 0.8 s)"
    )
    assert (
        certificate(Verdict.VIOLATED)
        .sentence()
        .startswith("VIOLATED: there is an x with |x - c|_inf <= 0.03 for which the label is not 2")
    )
    assert certificate(Verdict.UNKNOWN).sentence().endswith(": too loose")
    unlike_a_class = certificate(
        claim=Claim("m", "onnx", "", (Case(REGION, SPECS[3]),) * 2), evidence=()
    )
    assert "avoids the unsafe set of 2 clauses, and likewise for 1 more case" in str(unlike_a_class)
    assert [v.word for v in Verdict] == ["unsat", "sat", "unknown", "timeout"]


def test_html_escapes_what_files_say() -> None:
    page = certificate(claim=Claim("<script>", "onnx", "", (Case(REGION, SPECS[0]),)))._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page and "HOLDS" in page


@pytest.mark.parametrize(
    "changes",
    [
        {"counterexample": certificate(Verdict.VIOLATED).counterexample},
        {"margin": -1e-9},
        {"margin": float("nan")},
        {"margin": float("inf")},
        {"radius": -1.0},
        {"evidence": (Evidence("ibp"),) * 2},
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        certificate(**changes)


@pytest.mark.parametrize(
    "bad",
    [
        {"inputs": (np.array([0.1, np.nan, 0, 0], np.float32),)},
        {"output": np.array([np.inf, 0, 0])},
        {"inputs": (np.zeros(3, np.float32),)},
        {"inputs": ()},
        {"case": 1},
        {"case": -1},
        {"example": 1},
        {"output": np.zeros(2)},
    ],
)
def test_a_counterexample_that_does_not_fit_is_refused(bad: dict[str, Any]) -> None:
    good = {"inputs": (np.zeros(4, np.float32),), "output": np.zeros(3)}
    with pytest.raises(BadInput):
        certificate(Verdict.VIOLATED, counterexample=Counterexample(**{**good, **bad}))


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


def test_numbers_survive_exactly() -> None:
    for value in (0.1, 5e-324, 1.7976931348623157e308, 2.0**-1000, 1 / 3):
        assert parse(canonical([value])) == [value]
        assert read_certificate(certificate(margin=value).text()).margin == value


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.json", tmp_path / "nul\0.json"):
        with pytest.raises(BadInput):
            load_certificate(path)
    with pytest.raises(CannotWrite):
        certificate().save(tmp_path / "no" / "folder.json")
    with pytest.raises(CannotWrite):
        certificate().save(tmp_path)
    (tmp_path / "latin").write_bytes(b"\xff\n")
    with pytest.raises(BadInput, match="ASCII"):
        load_certificate(tmp_path / "latin")
    assert [p.name for p in tmp_path.iterdir()] == ["latin"]


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with open(path, "wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(LimitExceeded):
        load_certificate(path)


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.json"
    certificate().save(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWrite, match="No space"):
        certificate(Verdict.UNKNOWN).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_product_region_names_each_input() -> None:
    parts: list[Region] = [Box(np.zeros(2), np.ones(2)), Linf(np.zeros(3), 0.1)]
    region = Product(parts).batched([(2,), (3,)])
    made = certificate(claim=Claim("m", "onnx", "", (Case(region, SPECS[0]),)))
    assert "low <= x_0 <= high (2 inputs) and |x_1 - c|_inf <= 0.1" in str(made)
    assert read_certificate(made.text()).text() == made.text()


def test_certificates_need_no_torch(root: Path) -> None:
    text = certificate(Verdict.VIOLATED).text()
    code = (
        "import sys; from certify.core.certificate import read_certificate as r;"
        "c = r(sys.stdin.read()); assert c.text(); str(c); c._repr_html_();"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=text, text=True, cwd=root, timeout=60)
    assert done.returncode == 0


def test_reading_does_not_change_what_was_given() -> None:
    plain = region_to_dict(REGION)
    before = copy.deepcopy(plain)
    region_from_dict(plain)
    assert plain == before


@pytest.mark.parametrize("kind", ["device", "pipe", "link", "dangling", "folder"])
def test_devices_and_links_are_never_replaced(tmp_path: Path, kind: str) -> None:
    """Moving a finished file there would succeed, for root, and destroy what is there."""
    target = tmp_path / "target"
    if kind == "device":
        target = Path("/dev/full")
    elif kind == "pipe":
        os.mkfifo(target)
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to("/dev/null" if kind == "link" else tmp_path / "nowhere")
    before = target.lstat()
    with pytest.raises(CannotWrite, match=target.name):
        write_whole(target, b"content")
    after = target.lstat()
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert set(tmp_path.iterdir()) <= {target}


def test_a_forged_margin_is_rejected() -> None:
    import certify
    from certify.ops.builder import Builder

    b = Builder()
    y = b.add("linear", b.input("x", (1, 2)), b.constant(np.array([[1.0, 0.0], [0.0, 1.0]])), None)
    network = b.finish(y)
    region = certify.Box(np.array([[2.0, 0.0]]), np.array([[3.0, 1.0]]))
    certificate = certify.verify(network, region, certify.Spec.classify(0, 2))
    assert certify.check(certificate, network).accepted
    forged = dataclasses.replace(certificate, margin=99.0)
    report = certify.check(forged, network)
    assert not report.accepted and "margin" in report.reason
