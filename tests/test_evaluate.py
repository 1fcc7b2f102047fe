"""`certify.evaluate`: the bracket around robust accuracy, and what may never happen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import certify
from certify.bounds.decide import Decision
from certify.core.errors import BadInput, UsageError
from certify.evaluation import judge
from certify.evaluation.block import described, findings_of
from certify.evaluation.finding import Contradiction, Finding, tally
from certify.evaluation.tightness import tightness
from certify.importers.datasets import Images, load_images


@pytest.fixture(scope="module")
def digits(root: Path) -> tuple[Any, Images]:
    """The example network and thirty images."""
    return (certify.load(root / "examples" / "digits" / "digits.onnx"),
            load_images("digits").take(slice(0, 30)))


def test_the_bracket_is_in_order_and_methods_are_nested(digits: tuple[Any, Images]) -> None:
    network, images = digits
    found = {name: certify.evaluate(network, images.x[:16], images.y[:16], 1 / 16, verifier=name,
                                    attack="quick")
             for name in ("ibp", "crown-ibp", "crown", "union")}
    for one in found.values():
        assert one.certified <= one.attacked <= one.clean <= 100
        assert one.attacked == found["union"].attacked
    shares = [found[n].certified for n in ("ibp", "crown-ibp", "crown", "union")]
    assert shares == sorted(shares) and shares[-1] > 50
    sums = found["union"].tally
    assert sum(sums.certified_by.values()) == pytest.approx(sums.certified)
    assert sums.unknown == pytest.approx(sums.attacked - sums.certified)


def test_complete_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(),
                          nn.Linear(12, 3))
    x = 0.3 + 0.4 * torch.rand(20, 4)
    y = model(x).argmax(1).numpy()
    network = certify.from_torch(model, torch.zeros(1, 4))
    eps = 0.1
    cheap = certify.evaluate(network, x, y, eps, verifier="ibp", attack="none")
    assert cheap.certified < cheap.attacked == cheap.clean == 100
    monkeypatch.setattr(judge.Plan, "methods", ("ibp",))
    monkeypatch.setattr(judge.Plan, "late", ())
    found = certify.evaluate(network, x, y, eps, verifier="complete", attack="none", timeout=30)
    assert cheap.certified < found.certified == found.attacked
    by = {f.certified for f in found.findings} | {f.broken for f in found.findings}
    assert by <= {"", "ibp", "complete"} and "complete" in by


def test_what_runs_out_of_time_is_unknown(digits: tuple[Any, Images],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = digits
    few = images.take(slice(0, 3))
    monkeypatch.setattr(judge.Plan, "methods", ("ibp",))
    monkeypatch.setattr(judge.Plan, "late", ())
    found = certify.evaluate(network, few.x, few.y, 1.5 / 16, verifier="complete", attack="none",
                             timeout=1e-3)
    assert found.certified == 0 and found.attacked == found.clean == 100
    assert all(f.why.startswith("timeout: ") for f in found.findings)


@pytest.mark.parametrize(("norm", "eps"), [("2", 0.2), ("1", 0.3)])
def test_other_norms(digits: tuple[Any, Images], norm: str, eps: float) -> None:
    network, images = digits
    few = images.take(slice(0, 10))
    found = certify.evaluate(network, few.x, few.y, eps, norm=norm, verifier="crown",
                             attack="quick")
    assert 0 < found.certified <= found.attacked <= found.clean


def test_a_certificate_that_is_wrong_is_loud(digits: tuple[Any, Images],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = digits
    honest = judge.decide

    def lies(*arguments: Any) -> Decision:
        found = honest(*arguments)
        return replace(found, proved=np.ones_like(found.proved))

    monkeypatch.setattr(judge, "decide", lies)
    with pytest.raises(Contradiction, match="is certified within 0.25 by ibp, and pgd broke it"):
        certify.evaluate(network, images.x, images.y, 0.25, verifier="ibp")
    assert Contradiction.exit_code == 5


def test_misclassified_and_tied_images_are_not_certified() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 1.0, 0.0]))
    graph = certify.from_torch(model, torch.zeros(1, 1, 2, 2))
    found = certify.evaluate(graph, np.full((2, 1, 2, 2), 0.5), np.array([0, 2]), 0.01)
    assert found.clean == found.certified == 0 and found.findings[0].predicted == -1
    assert [f.status for f in found.findings] == ["misclassified"] * 2


def test_findings_survive_json_and_add_up() -> None:
    every = [Finding(0, 0.1, 3, 3, certified="ibp", margin=0.5), Finding(1, 0.1, 3, 2),
             Finding(2, 0.1, 3, 3, broken="pgd"), Finding(3, 0.1, 3, 3, why="timeout: late")]
    assert [Finding.read(f.record()) for f in every] == every
    found = tally(every)
    assert (found.clean, found.certified, found.attacked, found.unknown) == (75, 25, 50, 25)
    assert found.certified_by == {"ibp": 25}


def test_a_block_that_failed_is_unknown() -> None:
    record = {"status": "crashed", "error": "killed", "key": "0.1:0", "result": None,
              "item": {"eps": 0.1, "start": 5, "stop": 8, "first": True}}
    found = findings_of(record)
    assert [f.index for f in found] == [5, 6, 7] and found[0].why == "crashed: killed"
    assert {f.status for f in found} == {"unknown"}
    sums = tally(found)
    assert (sums.certified, sums.attacked, sums.unknown) == (0, 100, 100)
    assert described(record) == ("failed", "images 5 to 7, eps 0.1: killed", True)


@pytest.mark.parametrize(("change", "error", "words"), [
    ({"y": np.array([0, 10])}, BadInput, "classes are 0 to 9"),
    ({"y": np.array([0])}, BadInput, "one label per input"),
    ({"y": np.array([0.0, 1.0])}, BadInput, "labels from"),
    ({"x": np.zeros((2, 1, 9, 9))}, BadInput, "takes 64 values, an input has 81"),
    ({"x": np.full((2, 1, 8, 8), 16.0)}, BadInput, r"must lie in \[0, 1\]"),
    ({"x": np.full((2, 1, 8, 8), np.nan)}, BadInput, r"must lie in \[0, 1\]"),
    ({"eps": -0.1}, UsageError, "at least 0"),
    ({"verifier": "best"}, UsageError, "verifier 'best' is unknown"),
    ({"attack": "best"}, UsageError, "attack 'best' is unknown"),
    ({"norm": "3"}, UsageError, "norm '3' is unknown"),
    ({"timeout": 0}, UsageError, "timeout"),
])
def test_bad_input(digits: tuple[Any, Images], change: dict[str, Any], error: type[Exception],
                   words: str) -> None:
    given = {"x": np.zeros((2, 1, 8, 8)), "y": np.array([0, 1]), "eps": 0.1, **change}
    with pytest.raises(error, match=words):
        certify.evaluate(digits[0], **given)


def test_a_linear_network_is_tight() -> None:
    torch.manual_seed(3)
    graph = certify.from_torch(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)), torch.zeros(1, 6))
    found = tightness(graph, np.random.default_rng(0).random((4, 6)), np.array([0, 1, 2, 0]))
    assert found == pytest.approx(np.ones(4), rel=1e-6)  # neighbouring layers are bounded as one


def test_tightness_is_the_ratio_of_signed_and_absolute_products() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))
    x, y = np.random.default_rng(1).random((5, 6)), np.array([0, 1, 2, 0, 1])
    found = tightness(certify.from_torch(model, torch.zeros(1, 6)), x, y)
    (W1, b1), (W2, b2), (W3, _) = [[p.detach().double().numpy() for p in model[i].parameters()]
                                   for i in (0, 2, 4)]
    for image, label, value in zip(x, y, found, strict=True):
        h = W1 @ image + b1
        on1, on2 = (h > 0) * 1.0, (W2 @ np.maximum(h, 0) + b2 > 0) * 1.0
        rows = [W3[label] - W3[j] for j in range(3) if j != label]
        exact = [np.abs((r * on2) @ (W2 * on1) @ W1).sum() for r in rows]
        wide = [(np.abs(r * on2) @ np.abs(W2 * on1) @ np.abs(W1)).sum() for r in rows]
        assert value == pytest.approx(np.mean(np.array(exact) / wide), rel=1e-4)
