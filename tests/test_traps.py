"""Networks built to deceive, and public instances with a counterexample, met without an attack.

Each trap's truth is known exactly, in real arithmetic and for float32 runs; see the README beside
the data.
"""

from __future__ import annotations

import csv
import gzip
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from certify.core.certificate import Verdict
from certify.core.errors import CertifyError
from certify.importers.onnx_graph import load_onnx
from certify.importers.vnnlib import read_vnnlib
from certify.verify import verify_query

SMALL = 600_000  # bytes of a model of the quick sweep


@pytest.fixture
def traps(data: Path) -> list[dict[str, Any]]:
    return json.loads((data / "traps" / "manifest.json").read_text())["traps"]


def verdict(folder: Path, row: dict[str, Any], timeout: float = 5.0, **options: Any) -> Verdict:
    graph, query = load_onnx(folder / row["onnx"]), read_vnnlib(folder / row["vnnlib"])
    return verify_query(graph, query, timeout, **options).verdict


@pytest.mark.parametrize("attack", [False, True], ids=["bounds", "attack"])
@pytest.mark.parametrize("method", ["auto", "ibp", "crown-ibp", "crown", "alpha"])
@pytest.mark.parametrize("semantics", ["real", "float32"])
def test_no_trap_is_sprung(
    data: Path, traps: list[dict[str, Any]], semantics: str, method: str, attack: bool
) -> None:
    assert traps
    for trap in traps:
        options = {"semantics": semantics, "method": method, "attack": attack}
        found = verdict(data / "traps", trap, timeout=1.5, **options)
        truth = trap["expected"][f"semantics={semantics}"]
        if truth.startswith("certified is correct"):
            assert found is not Verdict.VIOLATED, trap["id"]
        else:
            assert found is not Verdict.HOLDS, trap["id"]
        if not attack:
            assert found is not Verdict.VIOLATED, trap["id"]


@pytest.mark.parametrize("semantics", ["real", "float32"])
def test_a_margin_below_every_tolerance_is_proved(data: Path, semantics: str) -> None:
    name = "t11_margin_below_tolerance_holds"
    row = {"onnx": f"{name}.onnx", "vnnlib": f"{name}.vnnlib"}
    assert verdict(data / "traps", row, semantics=semantics) is Verdict.HOLDS


def test_the_mirrored_absorption_is_proved_for_real_arithmetic_only(data: Path) -> None:
    name = "t04_absorbed_input_f32_violated"
    row = {"onnx": f"{name}.onnx", "vnnlib": f"{name}.vnnlib"}
    assert verdict(data / "traps", row, semantics="real", attack=False) is Verdict.HOLDS
    found = verdict(data / "traps", row, semantics="float32", attack=False, timeout=3)
    assert found in (Verdict.UNKNOWN, Verdict.TIMEOUT)


def violated(data: Path, largest: int, listing: str) -> list[dict[str, str]]:
    """Known-sat rows of a listing whose model has at most ``largest`` bytes, uncompressed."""
    folder = data / "vnncomp_public"
    with (folder / listing).open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["expected"] == "sat"]
    return [r for r in rows if _size(folder / r["onnx"]) <= largest]


@lru_cache(maxsize=512)
def _size(path: Path) -> int:
    return len(gzip.decompress(path.read_bytes())) if path.suffix == ".gz" else path.stat().st_size


def sweep(data: Path, rows: list[dict[str, str]], timeout: float, **options: Any) -> int:
    """How many of the instances could be read; none may come out as holding."""
    read = 0
    for row in rows:
        try:
            found = verdict(data / "vnncomp_public", row, timeout, attack=False, **options)
        except CertifyError:
            continue  # operators or property files beyond what can be read
        read += 1
        assert found is not Verdict.HOLDS, f"{row['onnx']} {row['vnnlib']}"
    return read


def test_no_violated_instance_holds_without_an_attack(data: Path) -> None:
    """One instance per family, the smallest models."""
    first = {r["family"]: r for r in reversed(violated(data, SMALL, "quick.csv"))}
    assert sweep(data, list(first.values()), 2.0, method="crown-ibp") >= 3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["crown", "alpha"])
def test_no_violated_instance_of_the_whole_list_holds_without_an_attack(
    data: Path, method: str
) -> None:
    rows = violated(data, 20_000_000, "quick.csv")
    assert sweep(data, rows, 20.0, method=method) >= 20
