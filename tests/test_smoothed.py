"""Smoothed classifiers end to end: radii of known truth, exact repetition, guards, certificates."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from smoothed_models import Brightest, HalfSpace, Leak, Slab, image
from torch import nn

import certify
from certify.core.certificate import Guarantee, Verdict
from certify.core.errors import BadInput
from certify.core.votes import Votes
from certify.smoothing import discrete_noise, levels, noise, subspace
from certify.smoothing.base import Precision
from certify.smoothing.confidence import clopper_pearson, clopper_pearson_upper
from certify.smoothing.methods import METHODS
from certify.smoothing.quantiles import z_below
from certify.smoothing.radii import gaussian_l2
from certify.smoothing.variance_dual import VarianceDual

W = torch.zeros(16).index_fill(0, torch.arange(4), 0.5)  # norm 1; largest 0.5; sum 2
INPUTS = torch.cat([image(0.2, 0.2, 0.2, 0.2), image(0.5, 0.5, 0.5, 0.5), image(-0.1, 0, 0, 0)])
TRUTH = {"2": (0.4, 1.0, 0.05), "1": (0.8, 2.0, 0.1), "inf": (0.2, 0.5, 0.025)}
SINGLE = [name for name, m in METHODS.items() if m.heads == 1 and name != "levels"]


def counts(certificates: list[certify.Certificate]) -> list[dict[str, list[int]]]:
    return [{k: v.tolist() for k, v in c.votes.counts.items()} for c in certificates if c.votes]


@pytest.mark.parametrize("norm", ["2", "1", "inf"])
@pytest.mark.parametrize("method", [m for m in SINGLE if m != "decision"])
def test_half_space_radii_are_below_the_truth_and_near_it(method: str, norm: str) -> None:
    smoothed = certify.smooth(HalfSpace(W).eval(), sigma=0.5, n=20_000, method=method, norm=norm)
    found = smoothed.certify(INPUTS)
    assert [c.verdict for c in found[:2]] == [Verdict.HOLDS] * 2
    for certificate, truth in zip(found, TRUTH[norm], strict=True):
        assert (certificate.radius or 0.0) <= truth
        assert certify.check(certificate)
    tight = {"2": 0.4, "1": 0.4, "inf": 0.1}[norm]  # what zero order can know
    assert (found[0].radius or 0) > 0.9 * tight
    if method == "first-order" and norm == "1":
        assert (found[0].radius or 0) > 1.2 * tight
    labels = [c.claim.cases[0].spec for c in found[:2]]
    assert "stays 0" in found[0].sentence() and len(labels) == 2


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_gives_a_certificate_that_survives_its_file(
    name: str, tmp_path: Path
) -> None:
    model = HalfSpace(W).eval()
    settings = {"n": 2000, "method": name}
    if name == "levels":
        smoothed = certify.smooth(model, noise=levels.SplitLevels(1.0, 15), **settings)
    else:
        smoothed = certify.smooth(model, sigma=0.5, **settings)
    x = torch.round(INPUTS[1:2].clamp(0, 1) * 15) / 15
    [made] = smoothed.certify(x, 0.2 if name == "decision" else None)
    assert made.verdict is Verdict.HOLDS and made.radius is not None and made.radius > 0
    assert (made.guarantee.confidence == 1) == (name == "levels")
    made.save(tmp_path / "c.json")
    again = certify.load_certificate(tmp_path / "c.json")
    assert again.text() == made.text() and certify.check(again)
    assert "the most frequent label under" in again.sentence()


def test_forged_votes_and_radii_are_rejected() -> None:
    [made] = certify.smooth(HalfSpace(W).eval(), sigma=0.5, n=2000).certify(INPUTS[:1])
    assert made.votes is not None and made.radius is not None
    larger = dataclasses.replace(made, radius=made.radius * 1.01)
    assert not certify.check(larger)
    fewer = {**made.votes.counts, "estimation": np.array([1000, 1000, 0])}
    assert not certify.check(dataclasses.replace(
        made, votes=dataclasses.replace(made.votes, counts=fewer)))
    surer = Guarantee(0.99999, "real", made.guarantee.assumptions)
    with pytest.raises(BadInput, match="alpha"):
        dataclasses.replace(made, guarantee=surer)
    with pytest.raises(BadInput, match="votes"):
        dataclasses.replace(made, votes=None)
    with pytest.raises(BadInput, match="whole numbers"):
        Votes("two-stage", 0.001, "2", {}, {"selection": np.array([0.5, 1])})
    other = dataclasses.replace(made, votes=dataclasses.replace(made.votes, rule="levels"))
    assert not certify.check(other)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_batches_and_company_change_nothing(batch: int) -> None:
    """Check Q: the same counts alone, among others, in any batch."""
    settings = {"sigma": 0.5, "n": 700, "n0": 30}
    whole = certify.smooth(HalfSpace(W).eval(), batch=64, **settings).certify(INPUTS)
    parts = [certify.smooth(HalfSpace(W).eval(), batch=batch, **settings).certify(x[None])[0]
             for x in INPUTS.flip(0)]
    assert counts(whole) == counts(parts)[::-1]
    assert [c.radius for c in whole] == [c.radius for c in parts[::-1]]
    other = certify.smooth(HalfSpace(W).eval(), seed=1, **settings).certify(INPUTS)
    assert counts(whole) != counts(other)


def test_selection_and_estimation_share_no_sample() -> None:
    smoothed = certify.smooth(HalfSpace(W).eval(), sigma=0.5, n=500, n0=500)
    [made] = smoothed.certify(image(0.02))
    assert made.votes is not None
    assert made.votes.counts["selection"].tolist() != made.votes.counts["estimation"].tolist()


class _Interrupted(Exception):
    pass


class _Counting(HalfSpace):
    """Counts what it sees, and fails at a given moment."""

    seen, limit = 0, 10**9

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 4:
            self.seen += len(x)
            if self.seen > self.limit:
                raise _Interrupted
        return super().forward(x)


def test_a_ledger_resumes_without_drawing_anything_twice(tmp_path: Path) -> None:
    def run(limit: int, ledger: Path | None) -> tuple[list[certify.Certificate], int]:
        model = _Counting(W).eval()
        model.limit = limit
        smoothed = certify.smooth(model, sigma=0.5, n=30_000, ledger=ledger)
        return smoothed.certify(INPUTS[:2]), model.seen

    plain, all_seen = run(10**9, None)
    path = tmp_path / "votes.jsonl"
    with pytest.raises(_Interrupted):
        run(200, path)
    path.write_bytes(path.read_bytes() + b'{"key": "torn')
    first, _ = run(10**9, path)
    again, seen = run(10**9, path)
    assert counts(plain) == counts(first) == counts(again)
    assert seen == 0 < all_seen == 60_200
    assert all(json.loads(line)["votes"] for line in path.read_text().splitlines())


@pytest.mark.parametrize("radius", [0.3, 0.55])
def test_decision_mode_answers_soon_and_rightly(radius: float) -> None:
    """Check G. The true radius is 0.4."""
    smoothed = certify.smooth(HalfSpace(W).eval(), sigma=0.5, n=100_000)
    [made] = smoothed.certify(INPUTS[:1], radius)
    assert made.votes is not None
    assert made.votes.counts["estimation"].sum() < 10_000
    assert (made.verdict is Verdict.HOLDS) == (radius < 0.4)
    assert made.radius == (radius if radius < 0.4 else None)
    assert radius < 0.4 or "below what radius 0.55 needs" in made.reason


def test_decision_near_the_truth_ends_undecided() -> None:
    [made] = certify.smooth(HalfSpace(W).eval(), sigma=0.5, n=2000).certify(INPUTS[:1], 0.4)
    assert made.verdict is Verdict.UNKNOWN and "2000 samples do not tell" in made.reason


def test_prediction_and_abstention() -> None:
    smoothed = certify.smooth(HalfSpace(W).eval(), sigma=0.5)
    x = torch.cat([INPUTS, image(0.0)])
    assert smoothed.predict(x).tolist()[:2] == [0, 0]
    assert smoothed.predict(x[3:]).tolist() == [-1]
    [made] = certify.smooth(HalfSpace(W).eval(), sigma=0.5, n=500).certify(x[3:])
    assert made.verdict is Verdict.UNKNOWN and made.radius is None and "too few" in made.reason


def test_answers_that_are_no_number_count_against_every_class() -> None:
    smoothed = certify.smooth(Brightest(limit=0.0).eval(), sigma=0.1, n=1000)
    [made] = smoothed.certify(image(0.0, 1.0))
    assert made.verdict is Verdict.UNKNOWN and made.votes is not None
    assert 400 < made.votes.counts["estimation"][-1] < 600


def test_floating_point_leak_and_its_repair() -> None:
    """Check R: fl(1 + e) tells that it came from 1; on the grid nothing does."""
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    e = 0.5 * torch.randn(5000, 1, generator=torch.Generator().manual_seed(0))
    naive = [int((Leak()(x.view(1) + e).argmax(1) == 0).sum()) for x in (one, zero)]
    claimed = float(gaussian_l2(clopper_pearson(naive[0], 5000, 0.001).q, 0.5))
    assert claimed > 1.0 and naive[1] < 0.6 * 5000  # "certified" past an input 1.0 away
    smoothed = certify.smooth(Leak().eval(), sigma=0.5, n=5000, soundness="exact-grid")
    votes = [smoothed.certify(x)[0].votes for x in (one, zero)]
    on_grid = [int(v.counts["estimation"][0]) for v in votes if v]
    for (near, far), leaks in ((naive, True), (on_grid, False)):
        least = ndtr(z_below(clopper_pearson(near, 5000, 0.001).q) - 1.0 / 0.5)
        assert (clopper_pearson_upper(far, 5000, 0.001) < least) == leaks
    assert not any("leaks" in a for a in smoothed.certify(one)[0].guarantee.assumptions)
    with pytest.raises(BadInput, match="exact-grid needs inputs"):
        smoothed.certify(one * 0.3371)


def test_slab_first_order_beats_zero_order() -> None:
    smoothed = {m: certify.smooth(Slab(0.7).eval(), sigma=0.5, n=20_000, method=m)
                for m in ("two-stage", "first-order")}
    found = {m: s.certify(image(0.0))[0].radius for m, s in smoothed.items()}
    assert found["two-stage"] is not None and found["first-order"] is not None
    truth = 0.7 - 0.0  # beyond it, less than half of the noise lands in the slab
    assert found["two-stage"] * 1.1 < found["first-order"] < truth


def test_first_order_in_a_subspace() -> None:
    """The half-space does not look at row 3: only what is known of the gradient tells."""
    part = subspace.patch((1, 4, 4), 3, 0, 1, 4)
    smoothed = certify.smooth(HalfSpace(W).eval(), sigma=0.5, n=20_000, method="first-order",
                              subspace=part)
    [inside] = smoothed.certify(INPUTS[:1])
    [plain] = certify.smooth(HalfSpace(W).eval(), sigma=0.5, n=20_000,
                             method="first-order").certify(INPUTS[:1])
    assert inside.radius > 1.3 * plain.radius
    assert certify.check(inside)
    low, high = inside.claim.cases[0].region.bounding_box()
    assert (np.asarray(high - low)[0][~part.mask] <= 1e-12).all()
    with pytest.raises(BadInput):
        certify.smooth(HalfSpace(W).eval(), sigma=0.5, subspace=part)


def test_first_order_in_a_band_of_frequencies() -> None:
    """A half-space along one wave: nothing in other bands can change the answer."""
    wave = subspace.frequencies((1, 4, 4), 3, 4).basis[:, 0]
    model = HalfSpace(torch.tensor(wave).float()).eval()
    x = INPUTS[:1] * 0 + torch.tensor(0.4 * wave).float().reshape(1, 1, 4, 4)
    radii = {}
    for low, high in ((0, 2), (3, 4)):
        part = subspace.frequencies((1, 4, 4), low, high)
        [made] = certify.smooth(model, sigma=0.5, n=20_000, method="first-order",
                                subspace=part).certify(x)
        assert certify.check(made)
        radii[low] = made.radius
        [case] = made.claim.cases
        points = case.region.sample(50).double().numpy().reshape(-1, 16) - x.numpy().reshape(16)
        outside = points - points @ part.basis @ part.basis.T
        assert np.abs(outside).max() < 1e-7 and np.linalg.norm(points, axis=1).max() <= made.radius
        for axes in (1.01 * case.region.axes, case.region.axes[..., ::-1, :] + 0.1):
            larger_or_turned = certify.Ellipsoid(case.region.center, axes).batched((1, 4, 4))
            assert not certify.check(about(made, larger_or_turned))
    assert radii[0] > 1.3 * radii[3] and radii[3] <= 0.4 + 1e-6


def about(made: certify.Certificate, region: certify.core.region.Region) -> certify.Certificate:
    """The same certificate with its claim about another region."""
    [case] = made.claim.cases
    cases = (dataclasses.replace(case, region=region),)
    return dataclasses.replace(made, claim=dataclasses.replace(made.claim, cases=cases))


def test_another_part_than_that_of_the_votes_is_rejected() -> None:
    part, other = (subspace.patch((1, 4, 4), row, 0, 1, 4) for row in (3, 2))
    [made] = certify.smooth(HalfSpace(W).eval(), sigma=0.5, n=20_000, method="first-order",
                            subspace=part).certify(INPUTS[:1])
    [case] = made.claim.cases
    for region in (other.around(INPUTS[0].numpy(), made.radius),
                   certify.L2(case.region.center, made.radius).batched(case.region.shape)):
        assert not certify.check(about(made, region))


@pytest.mark.parametrize(("model", "norm"), [
    (noise.Uniform(0.5), "1"), (noise.Uniform(0.5), "inf"), (noise.Laplace(0.3), "1"),
])
def test_other_noises_stay_below_the_truth(model: noise.Noise, norm: str) -> None:
    [made] = certify.smooth(HalfSpace(W).eval(), noise=model, n=5000, norm=norm).certify(INPUTS[:1])
    assert made.radius is not None and 0 < made.radius <= TRUTH[norm][0]
    assert certify.check(made)


def test_discrete_noises_certify_few_changes() -> None:
    x = image(1.0)
    for model in (discrete_noise.Replace(0.3, 2), discrete_noise.Flip(0.2, 0.2)):
        smoothed = certify.smooth(HalfSpace(torch.ones(16), -8.0).eval(), noise=model, n=5000)
        [made] = smoothed.certify(x)
        assert made.radius is not None and made.radius >= 1 and certify.check(made)
        with pytest.raises(BadInput, match="whole numbers"):
            smoothed.certify(x * 0.4)


def test_split_levels_count_every_offset() -> None:
    """Check J at small scale: no input within the radius has another answer."""
    model = Brightest().eval()
    smoothed = certify.smooth(model, noise=levels.SplitLevels(1.0, 5), method="levels")
    grid = torch.cartesian_prod(*[torch.arange(6.0)] * 2) / 5
    found = smoothed.certify(grid.view(-1, 1, 1, 2))
    answers = [(made.votes.counts["offsets"][:2].argmax(), made.radius or 0.0) for made in found]
    checked = 0
    for i, (label, radius) in enumerate(answers):
        for j, (other, _) in enumerate(answers):
            if float((grid[i] - grid[j]).abs().sum()) <= radius:
                checked += i != j
                assert label == other
    assert checked > 20 and all(made.guarantee.confidence == 1 for made in found)


def test_two_branches_see_disjoint_halves() -> None:
    from certify.smoothing.halves import checkerboard, filled

    x = torch.randn(2, 3, 5, 6)
    left, right = checkerboard((3, 5, 6), 0, x), checkerboard((3, 5, 6), 1, x)
    assert (left ^ right).all()
    for parity, own in ((0, left), (1, right)):
        changed = torch.where(own, x, x + 1)
        assert torch.equal(filled(x, parity), filled(changed, parity))
        assert torch.equal(filled(x, parity)[..., own], x[..., own])


def test_swapping_the_branches_changes_no_radius() -> None:
    first, second = HalfSpace(W).eval(), HalfSpace(W, 0.1).eval()
    x = INPUTS[1:2]
    found = [certify.smooth(pair, sigma=0.5, n=2000, method="dual").certify(x)[0].radius
             for pair in ((first, first), (second, second))]
    assert found[0] < found[1]
    with pytest.raises(BadInput, match="one or two"):
        certify.smooth((first,) * 3, sigma=0.5, method="dual").certify(x)


def test_variance_dual_takes_the_smaller_radius_and_abstains_with_either() -> None:
    """Check V."""
    chooser = HalfSpace(W).eval()  # expert 0 where the sum is positive
    experts = tuple(certify.smooth(HalfSpace(W, 0.1).eval(), sigma=s, n=5000) for s in (0.25, 0.5))
    selector = certify.smooth(chooser, sigma=0.5, n=5000)
    both = VarianceDual(selector, experts)
    found = both.certify(torch.cat([INPUTS[:1], image(0.001)]))
    alone = certify.smooth(chooser, sigma=0.5, n=5000, alpha=0.0005).certify(INPUTS[:1])[0]
    assert found[0].radius is not None and alone.radius is not None
    assert 0.3 < found[0].radius <= 0.4 and certify.check(found[0])
    assert found[0].claim.smoothing.parameters == {"sigma": 0.25}
    assert found[1].verdict is Verdict.UNKNOWN and "choice of sigma" in found[1].reason
    with pytest.raises(BadInput, match="at least"):
        VarianceDual(certify.smooth(chooser, sigma=0.3), experts)


def test_networks_from_onnx_are_smoothed_too(root: Path) -> None:
    network = certify.load(root / "examples" / "digits" / "digits.onnx")
    x = np.zeros((2, 1, 8, 8), np.float32)
    x[0, 0, 2:6, 3] = 1
    found = certify.smooth(network, sigma=0.1, n=500).certify(x)
    assert found[0].claim.format == "onnx" and found[0].claim.cases[0].spec.num_outputs == 10


@pytest.mark.parametrize(("message", "settings"), [
    ("sigma must be", {"sigma": 0.0}), ("sigma must be", {"sigma": float("nan")}),
    ("one number for all", {"sigma": [0.1, 0.2]}), ("one number for all", {"sigma": np.ones(2)}),
    ("alpha must lie", {"alpha": 0.0}), ("alpha must lie", {"alpha": 1.0}),
    ("n must be", {"n": 0}), ("n must be", {"n": 1.5}), ("n0 must be", {"n0": -1}),
    ("batch must be", {"batch": 0}), ("unknown method", {"method": "magic"}),
    ("no radius in the norm", {"norm": "0"}), ("soundness is one", {"soundness": "hope"}),
    ("num_classes is 7", {"num_classes": 7}), ("certify nothing", {"n": 5}),
    ("counts the votes of 2", {"method": "levels", "noise": levels.SplitLevels(1.0), "pair": True}),
])
def test_settings_that_make_no_sense_are_refused(message: str, settings: dict) -> None:
    """Check S, before anything is drawn."""
    model = HalfSpace(W).eval()
    if settings.pop("pair", False):
        message, model = "1 branches", (model, model)
    given = {"sigma": 0.5} | settings if "noise" not in settings else settings
    with pytest.raises(BadInput, match=message):
        certify.smooth(model, **given).certify(INPUTS[:1])


def test_too_few_votes_for_a_radius_are_refused_with_the_number_needed() -> None:
    smoothed = certify.smooth(HalfSpace(W).eval(), sigma=0.5, n=1000)
    with pytest.raises(BadInput, match=r"at least n = \d+ are needed") as caught:
        smoothed.certify(INPUTS[:1], 1.5)
    needed = int(str(caught.value).split("n = ")[-1].split(" ")[0])
    assert 1000 < needed < 10_000
    certify.smooth(HalfSpace(W).eval(), sigma=0.5, n=needed).certify(INPUTS[:1], 1.5)


@pytest.mark.parametrize("model", [
    nn.Sequential(nn.Flatten(), nn.Linear(16, 2)),
    nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(16, 2)),
])
def test_training_mode_is_refused(model: nn.Module) -> None:
    with pytest.raises(BadInput, match="training mode"):
        certify.smooth(model.train(), sigma=0.5)


def test_batch_norm_without_statistics_is_refused() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(),
                          nn.Linear(16, 2)).eval()
    with pytest.raises(BadInput, match="no running statistics"):
        certify.smooth(model, sigma=0.5)


class _Mixing(HalfSpace):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x.mean(0, keepdim=True))


def test_models_that_mix_their_batch_are_refused() -> None:
    with pytest.raises(BadInput, match="rest of the batch"):
        certify.smooth(_Mixing(W).eval(), sigma=0.5).certify(INPUTS)


def test_inputs_that_are_none_are_refused() -> None:
    smoothed = certify.smooth(HalfSpace(W).eval(), sigma=0.5)
    for bad in (torch.full((1, 1, 4, 4), float("nan")), torch.zeros(16), torch.zeros(0, 1, 4, 4)):
        with pytest.raises(BadInput):
            smoothed.certify(bad)


def test_precision_is_part_of_the_certificate() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    how = Precision(autocast="bfloat16", channels_last=False)
    [made] = certify.smooth(model, sigma=0.5, n=500, precision=how).certify(INPUTS[:1])
    assert made.provenance.settings["autocast"] == "bfloat16"
    with pytest.raises(BadInput, match="autocast"):
        Precision(autocast="int8")
