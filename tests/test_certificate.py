"""Certificates: exact round trips, sentences, and contradictions that are refused."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificates import REGION, SPECS, certificate, same

from certify.core.certificate import (
    Case,
    Claim,
    Counterexample,
    Evidence,
    Verdict,
    read_certificate,
)
from certify.core.claim import region_from_dict, region_to_dict, spec_from_dict, spec_to_dict
from certify.core.codec import canonical, parse
from certify.core.errors import BadInput
from certify.core.region import REGIONS, Box, Linf, Product, Region
from certify.core.spec import Spec

CASES = [(name, i) for name, cls in REGIONS.items() for i in range(len(cls.examples()))]


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


def test_numbers_survive_exactly() -> None:
    for value in (0.1, 5e-324, 1.7976931348623157e308, 2.0**-1000, 1 / 3):
        assert parse(canonical([value])) == [value]
        assert read_certificate(certificate(margin=value).text()).margin == value


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


