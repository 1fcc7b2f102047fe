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
