"""Denoised and noise-aware classifiers, schedules, transfer to a changed model, subspaces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from smoothed_models import HalfSpace, image
from torch import Tensor, nn

import certify
from certify.core.errors import BadInput
from certify.smoothing.confidence import clopper_pearson
from certify.smoothing.denoise import DenoisedClassifier, DiffusionSchedule, NoiseAware
from certify.smoothing.noise import Gaussian
from certify.smoothing.subspace import channel, frequencies, named, patch
from certify.smoothing.transfer import disagreement, transferred, transferred_radius

W = torch.zeros(16).index_fill(0, torch.arange(4), 0.5)
ALPHAS = np.linspace(0.999, 0.01, 200)


def test_an_identity_denoiser_changes_nothing() -> None:
    net = HalfSpace(W).eval()
    denoised = DenoisedClassifier(nn.Identity(), net, 0.5, clip=False).eval()
    found = [certify.smooth(m, sigma=0.5, n=500).certify(image(0.5))[0] for m in (net, denoised)]
    assert found[0].radius == found[1].radius
    assert np.array_equal(found[0].votes.counts["estimation"], found[1].votes.counts["estimation"])


def test_schedules_map_noise_to_time_upwards_and_keep_the_factor_two() -> None:
    schedule = DiffusionSchedule(ALPHAS)
    steps = [schedule.step(s) for s in np.linspace(0.05, 5.0, 50)]
    assert steps == sorted(steps)
    for sigma in (0.1, 0.5, 1.0):
        at = schedule.step(2 * sigma)
        assert schedule.sigmas[at] >= 2 * sigma > (schedule.sigmas[at - 1] if at else 0.0)
        reachable = schedule.reachable(sigma)
        assert reachable >= sigma and reachable == pytest.approx(schedule.sigmas[at] / 2)
    with pytest.raises(BadInput, match="ends at sigma"):
        schedule.step(1e4)
    with pytest.raises(BadInput, match="fall"):
        DiffusionSchedule([0.1, 0.5])


def test_the_denoiser_gets_what_a_diffusion_model_expects() -> None:
    schedule, seen = DiffusionSchedule(ALPHAS), {}

    def denoiser(x: Tensor, time: int) -> Tensor:
        seen["time"], seen["x"] = time, x
        return x / float(np.sqrt(ALPHAS[time]))

    sigma = schedule.reachable(0.5)
    model = DenoisedClassifier(denoiser, HalfSpace(W), sigma, schedule=schedule, clip=False)
    x = torch.rand(3, 1, 4, 4)
    noisy = x + sigma * torch.randn(20_000, 1, 4, 4)[:3]
    assert torch.allclose(model.denoised(noisy), noisy, atol=1e-5)
    assert torch.allclose(seen["x"], (2 * noisy - 1) * float(np.sqrt(ALPHAS[seen["time"]])))
    # the deviation of the model's own input is the one of its step
    a = ALPHAS[seen["time"]]
    assert 2 * sigma * np.sqrt(a) == pytest.approx(np.sqrt(1 - a), abs=1e-3)


def test_denoised_images_come_back_into_their_range() -> None:
    model = DenoisedClassifier(lambda x: 3 * x - 1, HalfSpace(W), 0.5)
    found = model.denoised(torch.rand(2, 1, 4, 4))
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    with pytest.raises(BadInput, match="sigma must"):
        DenoisedClassifier(nn.Identity(), HalfSpace(W), 0.0)


def test_one_pass_models_are_told_sigma() -> None:
    seen = []

    class Aware(nn.Module):
        def forward(self, x: Tensor, sigma: float) -> Tensor:
            seen.append(sigma)
            return HalfSpace(W)(x)

    [made] = certify.smooth(NoiseAware(Aware(), 0.5).eval(), sigma=0.5, n=500).certify(image(0.5))
    assert made.radius and set(seen) == {0.5}


def test_transfer_of_certificates() -> None:
    """Check U: no disagreement changes nothing, more of it leaves less."""
    bound = clopper_pearson(990, 1000, 0.001)
    noise = Gaussian(0.5)
    plain = noise.radius(bound, "2", 16)
    assert transferred_radius(bound, 0.0, noise, "2", 16) == plain
    radii = [transferred_radius(bound, zeta, noise, "2", 16) for zeta in (0.0, 0.01, 0.1, 0.5)]
    assert radii == sorted(radii, reverse=True) and radii[-1] == 0
    zeta = disagreement(0, 1000, 0.001)
    assert zeta == pytest.approx(1 - 0.001 ** (1 / 1000), rel=1e-6)
    assert float(transferred(bound, zeta).q) == pytest.approx(float(bound.q) + zeta)
    with pytest.raises(BadInput):
        transferred(bound, 1.5)


def test_subspaces_are_parts_of_the_image() -> None:
    red = channel((3, 4, 4), 0)
    v = np.arange(48.0)
    assert np.array_equal(red.project(v), np.where(np.arange(48) < 16, v, 0))
    part = patch((3, 4, 4), 1, 2, 2, 2)
    assert part.mask.sum() == 12 and part.mask[:, 1:3, 2:].all()
    for bad in (lambda: channel((3, 4, 4), 3), lambda: patch((3, 4, 4), 3, 3, 2, 1),
                lambda: patch((3, 4, 4), 0, 0, 0, 1), lambda: frequencies((3, 4, 4), 2, 2),
                lambda: frequencies((3, 4, 4), 0, 5), lambda: named("patch", (3, 4, 4))):
        with pytest.raises(BadInput):
            bad()


def test_bands_of_frequencies_split_an_image() -> None:
    from scipy.fft import dctn

    shape = (2, 4, 6)
    v = np.random.default_rng(0).normal(size=48)
    bands = [frequencies(shape, i, i + 1) for i in range(6)]
    parts = [band.project(v) for band in bands]
    np.testing.assert_allclose(sum(parts), v, atol=1e-13)
    assert sum(band.basis.shape[1] for band in bands) == 48
    for i, (band, part) in enumerate(zip(bands, parts, strict=True)):
        np.testing.assert_allclose(band.project(part), part, atol=1e-13)
        waves = dctn(part.reshape(shape), axes=(1, 2), norm="ortho")
        there = np.maximum(*np.indices(shape[1:])) == i
        assert np.abs(waves[:, ~there]).max(initial=0.0) < 1e-13
        again = named(band.name, shape)
        assert np.array_equal(again.basis, band.basis)
    np.testing.assert_allclose(frequencies(shape, 1, 3).project(v), parts[1] + parts[2], atol=1e-13)
