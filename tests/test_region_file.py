"""Regions from files: every kind comes back, and what is wrong is said."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import certify
from certify.cli.main import main
from certify.core.region import REGIONS, Product, Region

EXAMPLES = [
    pytest.param(region, id=f"{name}-{i}")
    for name, kind in REGIONS.items() if name != "Product"
    for i, region in enumerate(kind.examples())
]


def arrays(region: Region, prefix: str = "") -> dict[str, Any]:
    """A region as its file holds it."""
    kind = type(region).__name__
    fields = {f.name: getattr(region, f.name) for f in dataclasses.fields(region)}
    clip = fields.pop("clip", None)
    if clip is not None and len({np.shape(side) for side in clip}) > 1:
        fields |= {f"clip.{i}": side for i, side in enumerate(clip)}
    elif clip is not None:
        fields["clip"] = clip
    return {f"{prefix}{kind}.{name}": np.asarray(value) for name, value in fields.items()
            if name != "shape" and value is not None}


@pytest.mark.parametrize("region", EXAMPLES)
def test_every_region_comes_back_from_its_file(region: Region, tmp_path: Path) -> None:
    path = tmp_path / "region.npz"
    np.savez(path, **arrays(region))
    again = certify.load_region(path)
    assert type(again) is type(region) and arrays(again).keys() == arrays(region).keys()
    for name, value in arrays(region).items():
        np.testing.assert_array_equal(arrays(again)[name], value)


def test_several_inputs_are_numbered(tmp_path: Path) -> None:
    parts = (certify.Box(-np.ones(3), np.ones(3)), certify.L2(np.zeros(2), 0.5))
    path = tmp_path / "region.npz"
    np.savez(path, **arrays(parts[0], "0."), **arrays(parts[1], "1."))
    found = certify.load_region(path)
    assert isinstance(found, Product) and [type(p) for p in found.parts] == [type(p) for p in parts]


@pytest.mark.parametrize("names, says", [
    ({"center": 1.0}, "KIND.FIELD"),
    ({"Circle.center": np.ones(2)}, "KIND.FIELD"),
    ({"L2.center": np.ones(2), "Box.lower": np.ones(2)}, "KIND.FIELD"),
    ({"Product.parts": np.ones(2)}, "KIND.FIELD"),
    ({"L2.center": np.ones(2)}, "eps is missing"),
    ({"L2.center": np.ones(2), "L2.eps": 1.0, "L2.radius": 1.0}, "radius is unknown"),
    ({"L2.center": np.ones(2), "L2.eps": -1.0}, "eps"),
    ({"L2.center": np.ones(2), "L2.eps": 1.0, "L2.clip": np.zeros(3)}, "clip"),
    ({"Box.lower": np.ones(2), "Box.upper": np.zeros(2)}, "lower"),
    ({"0.Box.lower": np.zeros(2), "0.Box.upper": np.ones(2), "2.L2.center": np.ones(2)}, "0, 1"),
    ({"0.Box.lower": np.zeros(2), "Box.upper": np.ones(2)}, "0, 1"),
])
def test_what_is_wrong_is_said(names: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "region.npz"
    np.savez(path, **names)
    with pytest.raises(certify.core.errors.BadInput, match=says) as caught:
        certify.load_region(path)
    assert "region.npz" in str(caught.value)


@pytest.fixture
def digits() -> Path:
    return Path(__file__).resolve().parent.parent / "examples" / "digits"


def test_verify_and_bound_take_regions_and_labels(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(digits / "digits.onnx")
    network = certify.load(model)
    from sklearn.datasets import load_digits

    x = (load_digits().images[0] / 16).reshape(network.input_shapes[0]).astype(np.float32)
    label = 0
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "ball.npz", **{"L2.center": x, "L2.eps": 0.1})
    region, certificate = str(tmp_path / "ball.npz"), str(tmp_path / "c.json")
    ball = ["--input", str(tmp_path / "x.npy"), "--eps", "0.1", "--norm", "2"]

    command = ["verify", model, "--label", str(label), "--no-attack"]
    assert main([*command, "--region", region, "--certificate", certificate]) == 0
    assert capsys.readouterr().out == "unsat\n"
    saved = certify.load_certificate(certificate)
    assert type(saved.claim.cases[0].region).__name__ == "L2"
    assert main(["check", certificate, "--model", model]) == 0
    assert main([*command, *ball, "--method", "sdp-crown"]) == 0
    assert main([*command, "--region", region, "--top", "2"]) == 0
    assert main(["verify", model, "--label", "1", *ball]) == 1  # some other class
    capsys.readouterr()

    tables = []
    for options in (ball, ["--region", region]):
        assert main(["bound", model, *options, "--json"]) == 0
        tables.append(capsys.readouterr().out.split('"seconds"')[0])
    assert tables[0] == tables[1]


@pytest.mark.parametrize("options, says", [
    ((), "SPEC, or --label"),
    (("--label", "1"), "--input FILE --eps"),
    (("--label", "1", "--input", "x.npy"), "--input FILE --eps"),
    (("--label", "1", "--region", "r.npz", "--eps", "1"), "leave out --eps"),
    (("spec.vnnlib", "--label", "1"), "SPEC, or --label"),
    (("spec.vnnlib", "--region", "r.npz"), "leave out --region"),
    (("--label", "1", "--region", "absent.npz"), "absent.npz"),
])
def test_wrong_combinations_are_refused(
    options: tuple[str, ...], says: str, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(digits / "digits.onnx"), *options]) in (2, 4)
    assert says in capsys.readouterr().err
