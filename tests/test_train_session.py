"""Training runs: the held-out images, resuming to the bit, bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certify.core.errors import BadInput, CannotWrite, CertifyError, UsageError
from certify.importers.datasets import Images, load_images
from certify.training import CertifiedLoss, TrainingStopped
from certify.training.session.loop import split, train
from certify.training.session.objective import make_network
from certify.training.session.recipe import Recipe, read_recipe, recipe_from

SHORT = Recipe("digits", 0.05, "ibp", epochs=4, warmup=1, ramp=2, batch=64, rate=2e-3)


@pytest.fixture(scope="module")
def images() -> Images:
    return load_images("digits", "train").take(slice(0, 300))


def silent(line: dict[str, Any], epochs: int) -> None:
    return


@pytest.mark.parametrize("method", ["standard", "pgd", "crown-ibp", "sabr", "mtl-ibp", "taps",
                                    "learned-slopes"])
def test_every_kind_of_method_trains_and_resumes(images: Images, tmp_path: Path,
                                                 method: str) -> None:
    recipe = replace(SHORT, method=method, arch="mlp-small", epochs=2, ramp=0, validation=0.0)
    small = images.take(slice(0, 128))
    whole = train(recipe, small, tmp_path / "whole", silent)

    def stop(line: dict[str, Any], epochs: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, small, tmp_path / "parts", stop)
    parts = train(recipe, small, tmp_path / "parts", silent)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name])
    last = json.loads((tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["eps"] == (0.0 if method == "standard" else 0.05) and last["loss"] > 0


def test_batch_norm_is_settled_at_the_end_of_an_epoch(images: Images, tmp_path: Path) -> None:
    recipe = replace(SHORT, arch="own_factories:normalised", epochs=1, ramp=0, validation=0.0)
    model = train(recipe, images.take(slice(0, 200)), tmp_path / "run", silent)
    x = torch.from_numpy(images.x[:200])
    with torch.no_grad():
        mean = model.get_submodule("1")(x.flatten(1)).mean(0)
    assert torch.allclose(model.get_buffer("2.running_mean"), mean, atol=1e-5)


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
    with pytest.raises(TrainingStopped, match="the loss is not finite in step 0"):
        train(replace(SHORT, arch="own_factories:exploding"), images, tmp_path / "a", silent)
    report = CertifiedLoss._report

    def late(self: CertifiedLoss, parts: dict, eps: float, step: int) -> None:
        spoilt = {k: p if p is None or step < 7 else p * math.nan for k, p in parts.items()}
        report(self, spoilt, eps, step)

    monkeypatch.setattr(CertifiedLoss, "_report", late)
    with pytest.raises(TrainingStopped, match="the last good checkpoint is untouched"):
        train(SHORT, images, tmp_path / "b", silent)
    assert torch.load(tmp_path / "b" / "last.pt", weights_only=True)["epoch"] == 1


def test_networks_come_from_the_seed_and_the_recipe(images: Images) -> None:
    one, two = (make_network(replace(SHORT, seed=s), images).state_dict() for s in (0, 1))
    assert not torch.equal(one["1.weight"], two["1.weight"])
    assert float(one["1.weight"].std()) == pytest.approx(math.sqrt(2 * math.pi) / 64, rel=0.03)
    plain = make_network(replace(SHORT, method="standard"), images).state_dict()
    assert float(plain["1.weight"].abs().max()) <= 1 / 8  # torch's own
    with pytest.raises(BadInput, match="too small for dm-medium"):
        make_network(replace(SHORT, arch="dm-medium"), images)
    flat = replace(images, x=images.x.reshape(len(images), -1))
    with pytest.raises(BadInput, match=r"takes images \(C, H, W\)"):
        make_network(SHORT, flat)


@pytest.mark.parametrize(("text", "error", "words"), [
    ("data = 'digits'", BadInput, "no eps"),
    ("data = 'digits'\neps = 0.1\nepoch = 3", BadInput, "unknown key 'epoch'"),
    ("data = 'digits'\neps = '8:255'", BadInput, "eps must be a number"),
    ("data = 'digits'\neps = 0.1\nepochs = 3.5", BadInput, "a whole number, got '3.5'"),
    ("data = 'digits'\neps = 0.1\nfusion = 1", BadInput, "fusion must be true or false"),
    ("data = 'digits'\neps = 0.1\nepochs = true", BadInput, "a whole number, got 'True'"),
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
