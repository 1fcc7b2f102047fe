"""Losses for smoothed classifiers: gradients, limits, published forms, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from certify.core.errors import BadInput
from certify.training import smoothed
from certify.training.smoothed import SmoothedLoss

SIGMA = 0.3


def model(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(4, 1, 2, 3, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0, 1, 2, 1])


MAKERS = {
    "augmentation": lambda m, g: smoothed.GaussianAugmentation(m, SIGMA, 2, g),
    "stability": lambda m, g: smoothed.Stability(m, SIGMA, generator=g),
    "consistency": lambda m, g: smoothed.Consistency(m, SIGMA, generator=g),
    "macer": lambda m, g: smoothed.Macer(m, SIGMA, copies=4, generator=g),
    "smoothadv": lambda m, g: smoothed.SmoothAdv(m, SIGMA, 0.5, generator=g),
    "smoothmix": lambda m, g: smoothed.SmoothMix(m, SIGMA, generator=g),
}


def value(make: object, net: nn.Module) -> torch.Tensor:
    """The loss with the same noise every time."""
    loss: SmoothedLoss = make(net, torch.Generator().manual_seed(5))  # type: ignore[operator]
    found: torch.Tensor = loss(*batch())
    return found


def test_every_loss_is_tested() -> None:
    made = {type(make(model(), None)) for make in MAKERS.values()}
    assert made == set(SmoothedLoss.__subclasses__())


@pytest.mark.parametrize("name", sorted(set(MAKERS) - {"smoothadv", "smoothmix"}))
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    net = model()
    weight = net[1].weight
    [slope] = torch.autograd.grad(value(MAKERS[name], net), weight)
    for place in ((0, 0), (3, 4)):
        with torch.no_grad():
            ends = []
            for step in (1e-6, -1e-6):
                weight[place] += step
                ends.append(float(value(MAKERS[name], net).detach()))
                weight[place] -= step
        assert float(slope[place]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_few_steps_lower_the_loss_and_parts_add_up(name: str) -> None:
    net = model()
    optimiser = torch.optim.SGD(net.parameters(), 0.05)
    loss = MAKERS[name](net, torch.Generator().manual_seed(5))
    before = float(value(MAKERS[name], net).detach())
    for _ in range(30):
        optimiser.zero_grad()
        found = loss(*batch())
        found.backward()
        optimiser.step()
        assert sum(loss.parts.values()) == pytest.approx(float(found.detach()))
    assert float(value(MAKERS[name], net).detach()) < before
    assert set(net.state_dict()) == set(model().state_dict())


@pytest.mark.parametrize("make", [
    lambda m, g: smoothed.Consistency(m, SIGMA, 0.0, 0.0, 2, generator=g),
    lambda m, g: smoothed.SmoothAdv(m, SIGMA, 0.0, generator=g),
    lambda m, g: smoothed.SmoothMix(m, SIGMA, 0.0, generator=g),
])
def test_without_its_own_part_a_loss_is_augmentation(make: object) -> None:
    net = model()
    plain = float(value(MAKERS["augmentation"], net).detach())
    assert float(value(make, net).detach()) == pytest.approx(plain)


def test_stability_is_its_published_form() -> None:
    net, (x, y) = model(), batch()
    loss = smoothed.Stability(net, SIGMA, 2.0, generator=torch.Generator().manual_seed(3))
    noise = SIGMA * torch.randn(1, *x.shape, generator=torch.Generator().manual_seed(3),
                                dtype=torch.float64)
    soft = F.cross_entropy(net(x + noise[0]), net(x).softmax(-1))
    whole = F.cross_entropy(net(x), y) + 2 * soft
    assert float(loss(x, y).detach()) == pytest.approx(float(whole.detach()))


def test_macer_rewards_nothing_where_the_class_is_wrong() -> None:
    net, (x, _) = model(), batch()
    loss = smoothed.Macer(net, SIGMA, copies=64, generator=torch.Generator().manual_seed(0))
    wrong = net(x).argmin(-1)
    loss(x, wrong)
    assert loss.parts["radius"] == 0 and loss.parts["smoothed"] > 0


def test_the_attack_stays_in_its_ball_and_raises_the_loss() -> None:
    net, (x, y) = model(), batch()
    loss = smoothed.SmoothAdv(net, SIGMA, 0.4, steps=5, copies=8,
                              generator=torch.Generator().manual_seed(0))
    noise = loss.noise(x)
    found = loss.attack(x, y, noise)
    assert ((found - x).flatten(1).norm(dim=1) <= 0.4 + 1e-9).all()

    def smoothed_loss(at: torch.Tensor) -> float:
        mean = loss.logits(at, noise).softmax(-1).mean(0)
        return float(-mean.gather(1, y[:, None]).log().sum().detach())

    assert smoothed_loss(found) > smoothed_loss(x)


def test_attacks_leave_batch_statistics_alone() -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 3)).double().train()
    loss = smoothed.SmoothAdv(net, SIGMA, 0.4, steps=5)
    loss(*batch())
    assert int(net[1].num_batches_tracked) == 1 and net[1].training


def test_what_is_refused() -> None:
    x, y = batch()
    for make in (lambda: smoothed.GaussianAugmentation(model(), 0.0),
                 lambda: smoothed.GaussianAugmentation(model(), 1.0, 0),
                 lambda: smoothed.SmoothAdv(model(), 1.0, -1.0),
                 lambda: smoothed.GaussianAugmentation(model(), 1.0)(x, y.float()),
                 lambda: smoothed.GaussianAugmentation(model(), 1.0)(x, y[:2])):
        with pytest.raises(BadInput):
            make()
