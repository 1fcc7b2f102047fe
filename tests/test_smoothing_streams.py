"""Noise streams: known answers, kernels against torch, distributions, batches and exactness."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ndtr, ndtri

from certify.core.errors import BadInput
from certify.smoothing import discrete_noise, grid, levels, noise, streams
from certify.smoothing.confidence import Estimate

NOISES = [
    noise.Gaussian(0.5), noise.Uniform(0.3), noise.Laplace(0.2), grid.GridGaussian(0.25),
    discrete_noise.Replace(0.4, 4), discrete_noise.Flip(0.1, 0.3), levels.SplitLevels(0.6, 15),
]


def grid_input(size: int, steps: int) -> torch.Tensor:
    return torch.randint(0, steps + 1, (size,), generator=torch.Generator().manual_seed(3)) / steps


def steps(model: noise.Noise) -> int:
    """The inputs of a noise model are whole numbers of one part in so many."""
    return {"replace": 3, "flip": 1, "split-levels": 15}.get(model.name, 255)


def test_every_noise_is_tested() -> None:
    assert {n.name for n in NOISES} == set(noise.NOISES)


@pytest.mark.parametrize(
    ("key", "sample", "expected"),
    [(0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8))],
)
def test_philox_known_answer(key: int, sample: int, expected: tuple[int, ...]) -> None:
    """The test vector that its authors publish."""
    assert tuple(streams.words(key, sample, 1, 4)[0].tolist()) == expected


@pytest.mark.parametrize("first", [0, 7, 2**32 - 1, 2**40 + 3])
@pytest.mark.parametrize("key", [0, -1, 2**62 + 12345])
def test_kernel_and_torch_draw_the_same_words(key: int, first: int) -> None:
    size = 21
    reference = streams.reference_words(key, first, 3, (size + 3) // 4, "cpu")
    assert torch.equal(streams.words(key, first, 3, size), reference)


@pytest.mark.parametrize("model", NOISES, ids=lambda m: m.name)
def test_batches_and_kernels_change_nothing(
    model: noise.Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = grid_input(50, steps(model))
    whole = torch.empty(23, 50)
    model.fill(x, 99, 5, whole)
    parts = torch.empty(23, 50)
    model.fill(x, 99, 5, parts[:4])
    model.fill(x, 99, 9, parts[4:])
    assert torch.equal(whole, parts)
    monkeypatch.setenv("CERTIFY_KERNELS", "off")
    reference = torch.empty(23, 50)
    model.fill(x, 99, 5, reference)
    exact = model.name != "gaussian"
    assert (torch.equal(whole, reference) if exact
            else torch.allclose(whole, reference, atol=3e-6, rtol=0))


def test_streams_of_stages_inputs_and_seeds_differ() -> None:
    keys = {streams.stream_key(s, i, t) for s in (0, 1) for i in ("a", "b") for t in ("x", "y")}
    assert len(keys) == 8
    assert streams.item_name(np.zeros((2, 2))) != streams.item_name(np.zeros(4))


@pytest.mark.parametrize(("model", "law"), [
    (noise.Gaussian(0.5), stats.norm(scale=0.5)),
    (noise.Uniform(0.3), stats.uniform(-0.3, 0.6)),
    (noise.Laplace(0.2), stats.laplace(scale=0.2)),
    (grid.GridGaussian(0.25), stats.norm(scale=0.25)),
], ids=lambda p: getattr(p, "name", ""))
def test_continuous_noise_has_its_distribution(model: noise.Noise, law: object) -> None:
    out = torch.empty(400, 500)
    model.fill(torch.zeros(500), 1, 0, out)
    spread = 0.5 / (255 * 16) if model.name == "gaussian-grid" else 0.0
    test = stats.kstest(out.numpy().ravel().astype(float), law.cdf)  # type: ignore[attr-defined]
    assert test.statistic < 1.95 / np.sqrt(out.numel()) + spread * 2
    assert abs(np.corrcoef(out[:, :40].T.numpy()) - np.eye(40)).max() < 0.25


def test_normal_noise_is_the_quantile_of_its_word() -> None:
    out = torch.empty(64, 100)
    noise.Gaussian(1.0).fill(torch.zeros(100), 4, 0, out)
    words = streams.words(4, 0, 64, 100)[:, :100].numpy()
    exact = ndtri(((words >> 8) + 0.5) / 2**24)
    assert np.abs(out.numpy() - exact).max() < 2e-6


def test_grid_noise_is_the_same_for_every_input() -> None:
    """Check R: what is added does not depend on what it is added to, exactly."""
    model = grid.GridGaussian(0.5)
    x = grid_input(60, 255)
    at_x, at_0 = torch.empty(2, 200, 60, dtype=torch.float64)
    model.fill(x, 8, 0, at_x)
    model.fill(torch.zeros(60), 8, 0, at_0)
    unit = 255 * 16
    shift = torch.round(x.double() * 255) * 16
    assert torch.equal(torch.round(at_x * unit) - shift, torch.round(at_0 * unit))
    assert 0 < model.slack(784) < 1e-6


def test_grid_thresholds_are_the_normal_distribution() -> None:
    scale = 0.25 * 255 * 16
    table = grid.thresholds(scale)
    k = np.array([0, 10, 1000, 4000])
    assert np.allclose(table[k] / 2**63, 1 - 2 * ndtr(-(k + 0.5) / scale), rtol=1e-12, atol=1e-15)
    assert (np.diff(table) >= 0).all()


def test_replace_noise_keeps_and_replaces_as_often_as_it_says() -> None:
    model = discrete_noise.Replace(0.4, 4)
    out = torch.empty(500, 400)
    model.fill(torch.full((400,), 1 / 3), 2, 0, out)
    share = [float((torch.round(out * 3) == v).double().mean()) for v in range(4)]
    for value, expected in zip(share, (0.1, 0.7, 0.1, 0.1), strict=True):
        assert abs(value - expected) < 5 * np.sqrt(expected / out.numel())


def test_flip_noise_flips_as_often_as_it_says() -> None:
    model = discrete_noise.Flip(0.1, 0.3)
    out = torch.empty(500, 400)
    model.fill(torch.tensor([0.0, 1.0]).repeat(200), 2, 0, out)
    assert abs(float(out[:, ::2].mean()) - 0.1) < 0.005
    assert abs(float(out[:, 1::2].mean()) - 0.7) < 0.007


def test_flip_radius_covers_every_mixture_of_its_pairs() -> None:
    model = discrete_noise.Flip(0.2, 0.2)
    found = Estimate(np.array(0.999), np.array(0.001))
    radius = model.radius(found, "0", 20)
    assert radius >= 1
    for added in range(int(radius) + 1):
        deleted = int(radius) - added
        assert any(added <= a and deleted <= d for a, d in model.pairs(found, 20))
    assert Fraction(0.25) == discrete_noise._odds(0.25)


@pytest.mark.parametrize("model", [n for n in NOISES if n.name != "split-levels"],
                         ids=lambda m: m.name)
def test_needed_is_enough_and_hardly_more(model: noise.Noise) -> None:
    norm = model.norms[0]
    radius = 1.0 if norm == "0" else 0.05
    enough = model.needed(radius, norm, 16)
    assert model.radius(enough, norm, 16) >= radius
    worse = float(enough.q) * 1.01 + 1e-12
    if worse < 0.5:
        less = Estimate(np.array(1 - worse), np.array(worse))
        assert model.radius(less, norm, 16) < radius


@pytest.mark.parametrize("make", [
    lambda: noise.Gaussian(0.0), lambda: noise.Gaussian(float("nan")), lambda: noise.Uniform(-1),
    lambda: noise.Laplace(float("inf")), lambda: discrete_noise.Replace(1.0), lambda:
    discrete_noise.Flip(0.5, 0.0), lambda: levels.SplitLevels(0.51, 255), lambda:
    grid.GridGaussian(0.5, 0.5), lambda: noise.noise_from("gaussian", {"sgima": 1.0}),
    lambda: noise.noise_from("pink", {}),
])
def test_noise_that_is_none_is_refused(make: object) -> None:
    with pytest.raises(BadInput):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("model", NOISES, ids=lambda m: m.name)
def test_parameters_name_the_noise(model: noise.Noise) -> None:
    again = noise.noise_from(model.name, model.parameters)
    assert dataclasses.astuple(again) == dataclasses.astuple(model)
