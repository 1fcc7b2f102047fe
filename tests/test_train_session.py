"""Training runs: schedules, losses, the held-out images, resuming to the bit, bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import certify
from certify.core.errors import BadInput, CannotWrite, CertifyError, UsageError
from certify.importers.datasets import Images, load_images
from certify.training.session.loop import split, train
from certify.training.session.networks import ARCHITECTURES, keep_widths, make_network
from certify.training.session.objective import (
    Objective,
    lower_margins,
    margin_rows,
    robust_cross_entropy,
    smoothed,
)
from certify.training.session.recipe import METHODS, Recipe, read_recipe, recipe_from

SHORT = Recipe("digits", 0.05, "ibp", epochs=4, warmup=1, ramp=2, batch=64, rate=2e-3)


@pytest.fixture(scope="module")
def images() -> Images:
    return load_images("digits", "train").take(slice(0, 300))


def silent(line: dict[str, Any], epochs: int) -> None:
    return


def test_the_radius_begins_at_zero_ends_exactly_and_has_no_kink() -> None:
    begin, end, most = 100, 500, 0.3
    values = [smoothed(step, begin, end, most) for step in range(end + 2)]
    assert values[:101] == [0.0] * 101 and values[end] == most == values[end + 1]
    rises = np.diff(values[begin:end])
    assert (rises >= 0).all() and abs(rises[99] - rises[101]) < 0.06 * rises[101]
    assert rises[:100].max() <= rises[101] * 1.001
    assert smoothed(7, 7, 7, most) == most


def test_elision_makes_margins_no_looser_and_rows_come_in_order() -> None:
    assert margin_rows(torch.tensor([1, 0]), 3).tolist() == [
        [[-1, 1, 0], [0, 1, -1]], [[1, -1, 0], [1, 0, -1]]]
    model = make_network("mlp", (1, 8, 8), 10, 0)
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    graph = certify.from_torch(model, torch.zeros(1, 1, 8, 8))
    lower, upper = (x - 0.02).clamp(0, 1), (x + 0.02).clamp(0, 1)
    with torch.no_grad():
        folded = lower_margins(graph, lower, upper, y, "ibp")
        found = certify.bound(graph, certify.Box(lower[:, None], upper[:, None]), "ibp",
                              semantics="search")
    rows = margin_rows(y, 10)
    apart = (rows.clamp(min=0) @ found.lower.reshape(6, 10, 1)
             + rows.clamp(max=0) @ found.upper.reshape(6, 10, 1))[..., 0]
    assert (folded >= apart - 1e-5).all() and (folded > apart + 1e-3).any()
    points = lower + (upper - lower) * torch.rand(50, 6, 1, 8, 8)
    with torch.no_grad():
        scores = model(points.flatten(0, 1)).reshape(50, 6, 10, 1)
    assert ((rows @ scores)[..., 0].amin(0) >= folded - 1e-5).all()


def test_losses_are_ordered_between_attack_and_bound(images: Images) -> None:
    model = make_network("mlp", (1, 8, 8), 10, 1)
    keep_widths(model)
    x, y = torch.from_numpy(images.x[:40]), torch.from_numpy(images.y[:40])
    values = {}
    for method in METHODS[1:]:
        made = Objective(replace(SHORT, method=method, alpha=0.3), model, (1, 8, 8), 1)
        loss = made(x, y, 3)
        loss.backward()
        values[method] = float(loss.detach())
        assert made.parts["eps"] == 0.05 and made.parts["robust"] == pytest.approx(values[method])
    for method in ("cc-ibp", "mtl-ibp", "exp-ibp"):
        assert values["pgd"] <= values[method] + 1e-6 <= values["ibp"] + 2e-6
    assert values["cc-ibp"] <= values["mtl-ibp"] + 1e-6
    assert values["exp-ibp"] <= values["mtl-ibp"] + 1e-6
    assert values["sabr"] <= values["ibp"] + 1e-6
    assert robust_cross_entropy(torch.zeros(3, 9)).item() == pytest.approx(math.log(10))


def test_the_gradient_is_that_of_the_loss(images: Images) -> None:
    model = make_network("mlp", (1, 8, 8), 10, 2).double()
    x, y = torch.from_numpy(images.x[:8]).double(), torch.from_numpy(images.y[:8])
    graph = certify.from_torch(model, torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    weight = model.get_parameter("5.weight")

    def loss() -> torch.Tensor:
        lower, upper = (x - 0.01).clamp(0, 1), (x + 0.01).clamp(0, 1)
        return robust_cross_entropy(lower_margins(graph, lower, upper, y, "crown-ibp"))

    (gradient,) = torch.autograd.grad(loss(), weight)
    for place in ((0, 0), (3, 7), (9, 40)):
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight[place] += step
                values.append(float(loss()))
                weight[place] -= step
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(gradient[place]), rel=1e-4,
                                                               abs=1e-8)


def test_held_out_images_are_apart_and_of_all_classes(images: Images) -> None:
    numbered = replace(images, x=np.arange(len(images), dtype=np.float32)[:, None])
    own, held = split(numbered, 0.2, 0)
    there, others = set(own.x[:, 0]), set(held.x[:, 0])
    assert not there & others and len(there) + len(others) == len(images)
    counts = np.bincount(held.y) / np.bincount(images.y)
    assert (abs(counts - 0.2) < 0.03).all()
    assert not np.array_equal(held.x, split(numbered, 0.2, 1)[1].x)
    assert len(split(numbered, 0.0, 0)[1]) == 0
    test = {image.tobytes() for image in load_images("digits").x}
    train_ = load_images("digits", "train")
    inside = [image.tobytes() in test for image in split(train_, 0.1, 0)[1].x]
    assert sum(inside) <= 1  # the data repeat one image


def test_interrupted_anywhere_the_weights_are_the_same(images: Images, tmp_path: Path) -> None:
    whole = train(SHORT, images, tmp_path / "whole", silent)

    class Stop(Exception):
        pass

    def stopping(at: int) -> Any:
        def tell(line: dict[str, Any], epochs: int) -> None:
            if line["epoch"] == at:
                raise Stop
        return tell

    for at in (0, 2):
        with pytest.raises(Stop):
            train(SHORT, images, tmp_path / "parts", stopping(at))
    parts = train(SHORT, images, tmp_path / "parts", silent)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name])
    lines = [(tmp_path / f / "metrics.jsonl").read_text() for f in ("whole", "parts")]
    assert lines[0] == lines[1] and lines[0].count("\n") == 4
    last = json.loads(lines[0].splitlines()[-1])
    assert last["eps"] == 0.05 and 0 < last["validation_robust_estimate"] <= 1


def test_the_epoch_is_chosen_on_held_out_images(images: Images, tmp_path: Path) -> None:
    best = train(SHORT, images, tmp_path / "a", silent)
    lines = [json.loads(t) for t in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    full = [(e["validation_robust_estimate"], e["validation_clean"], e["epoch"])
            for e in lines if e["epoch"] + 1 >= SHORT.warmup + SHORT.ramp]
    saved = torch.load(tmp_path / "a" / "last.pt", weights_only=True)
    assert tuple(saved["best"]) == max(full)[:2]
    held = split(images, SHORT.validation, 0)[1]
    with torch.no_grad():
        right = (best(torch.from_numpy(held.x)).argmax(1).numpy() == held.y).mean()
    assert right == pytest.approx(max(full)[1])
    train(replace(SHORT, validation=0.0), images, tmp_path / "b", silent)
    assert not (tmp_path / "b" / "best.pt").exists()


def test_a_folder_is_one_run(images: Images, tmp_path: Path) -> None:
    one = replace(SHORT, epochs=3)
    train(one, images, tmp_path / "a", silent)
    with pytest.raises(UsageError, match="eps was 0.05 and is now 0.1"):
        train(replace(one, eps=0.1), images, tmp_path / "a", silent)
    with pytest.raises(UsageError, match="data_sha256"):
        train(one, images.take(slice(0, 100)), tmp_path / "a", silent)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"holds other things, such as thesis\.tex"):
        train(one, images, tmp_path / "other", silent)
    (tmp_path / "a" / "last.pt").write_bytes(b"torn")
    with pytest.raises(BadInput, match=r"last\.pt: damaged"):
        train(one, images, tmp_path / "a", silent)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CannotWrite):
        train(one, images, tmp_path / "file", silent)


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match=r"the loss is nan at step 0 \(epoch 0\)"):
        train(replace(SHORT, arch="own_factories:exploding"), images, tmp_path / "a", silent)
    call = Objective.__call__

    def late(self: Objective, x: torch.Tensor, y: torch.Tensor, step: int) -> torch.Tensor:
        return call(self, x, y, step) * (math.nan if step >= 7 else 1.0)

    monkeypatch.setattr(Objective, "__call__", late)
    with pytest.raises(BadInput, match="the last good checkpoint is kept"):
        train(SHORT, images, tmp_path / "b", silent)
    assert torch.load(tmp_path / "b" / "last.pt", weights_only=True)["epoch"] == 1


def test_architectures_fit_and_keep_interval_widths() -> None:
    for name in ARCHITECTURES:
        model = make_network(name, (1, 28, 28), 10, 0)
        assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(BadInput, match="dm-small does not fit images"):
        make_network("dm-small", (1, 4, 4), 10, 0)
    with pytest.raises(BadInput, match="choose one of mlp"):
        make_network("cnn99", (1, 4, 4), 10, 0)
    model = make_network("mlp", (1, 8, 8), 10, 0)
    keep_widths(model)
    first = next(m for m in model.modules() if isinstance(m, nn.Linear))
    wanted = math.sqrt(2 * math.pi) / 64
    assert float(first.weight.detach().std()) == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize(("text", "error", "words"), [
    ("data = 'digits'", BadInput, "no eps"),
    ("data = 'digits'\neps = 0.1\nepoch = 3", BadInput, "unknown key 'epoch'"),
    ("data = 'digits'\neps = '8:255'", BadInput, "eps must be a number"),
    ("data = 'digits'\neps = 0.1\nepochs = 3.5", BadInput, "a whole one, got '3.5'"),
    ("data = 'digits'\neps = 0.1\nmethod = 3", BadInput, "method must be text"),
    ("data = 'digits'\neps = 0.1\nmethod = 'best'", UsageError, "choose one of standard"),
    ("data = 'digits'\neps = 8", UsageError, "write 8/255 for eight grey levels"),
    ("data = 'digits'\neps = 0.1\nepochs = 3\nramp = 9", UsageError, "must fit into 3 epochs"),
    ("data = 'digits'\neps = 0.1\nalpha = 0.0", UsageError, "alpha"),
    ("data = 'digits'\neps = 0.1\nvalidation = 2", UsageError, "a share from 0 to 1"),
    ("data = 'digits'\neps = 0.1\nbatch = 0", UsageError, "batch must be at least 1"),
    ("data 'digits'", BadInput, "not TOML"),
])
def test_bad_recipes(tmp_path: Path, text: str, error: type[CertifyError], words: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(error, match=words):
        read_recipe(tmp_path / "r.toml", {})


def test_recipes(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("data = 'digits'\neps = '8/255'\nrate = 1\n")
    found = read_recipe(tmp_path / "r.toml", {"method": "sabr"})
    assert found.eps == 8 / 255 and found.method == "sabr" and found.rate == 1.0
    assert recipe_from(found.plain(), "again") == found
