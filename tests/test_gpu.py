"""The same bounds on a CUDA device as on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import certify
from certify.bounds.methods import METHODS
from certify.bounds.selftest import check_arithmetic

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(),
        nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3),
    ).eval()


@pytest.mark.parametrize("method", METHODS)
def test_bounds_agree_with_the_cpu(method: str) -> None:
    graph = certify.from_torch(network(), torch.zeros(1, 1, 8, 8))
    region = certify.Linf(torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)), 0.05)
    here = certify.bound(graph, region, method)
    there = certify.bound(graph, region, method, device="cuda")
    # Slopes are optimised on each device by itself, so only nearly the same ones are found.
    slack = 1e-3 if method == "alpha" else 1e-9
    torch.testing.assert_close(there.lower.cpu(), here.lower, rtol=slack, atol=slack)
    torch.testing.assert_close(there.upper.cpu(), here.upper, rtol=slack, atol=slack)


def test_the_device_passes_the_self_test() -> None:
    check_arithmetic("cuda")


def test_verify_on_the_device() -> None:
    graph = certify.from_torch(network(), torch.zeros(1, 1, 8, 8))
    x = torch.rand(1, 1, 8, 8)
    label = int(network()(x).argmax())
    spec = certify.Spec.classify(label, 3)
    found = certify.verify(graph, certify.Linf(x.numpy(), 1e-4), spec, device="cuda")
    assert found.verdict in (certify.Verdict.HOLDS, certify.Verdict.UNKNOWN)
    assert found.provenance.device == "cuda"


def test_noise_is_the_same_on_the_device() -> None:
    from certify.smoothing import grid, noise, streams

    words = [streams.words(77, 2**33, 5, 30, device) for device in ("cpu", "cuda")]
    assert torch.equal(words[0], words[1].cpu())
    for model, slack in ((noise.Gaussian(0.5), 3e-6), (grid.GridGaussian(0.5), 0.0)):
        x = torch.arange(30) / 255
        here, there = torch.empty(5, 30), torch.empty(5, 30, device="cuda")
        model.fill(x, 77, 3, here)
        model.fill(x.cuda(), 77, 3, there)
        torch.testing.assert_close(there.cpu(), here, rtol=0, atol=slack)


def test_votes_on_the_device_are_those_of_the_cpu() -> None:
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    found = [certify.smooth(network(), sigma=0.3, n=5000, device=device).certify(x)
             for device in ("cpu", "cuda")]
    for here, there in zip(*found, strict=True):
        apart = here.votes.counts["estimation"] - there.votes.counts["estimation"]
        assert abs(apart).sum() <= 4  # an input on the border may fall either way


def test_certified_training_on_the_device() -> None:
    from certify.training import CertifiedLoss

    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    values = []
    for device in ("cpu", "cuda"):
        net = network().to(device)
        loss = CertifiedLoss(net, "crown-ibp", 0.05)
        loss(x.to(device), y.to(device)).backward()
        values.append((loss.parts["loss"], net[0].weight.grad.cpu()))
    assert values[0][0] == pytest.approx(values[1][0], rel=1e-4)
    torch.testing.assert_close(values[0][1], values[1][1], rtol=1e-3, atol=1e-5)
