"""Rows kept as windows of feature maps give the bounds that dense rows give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import certify
from certify.bounds import kernels, patches
from certify.core.graph import Graph


class Residual(nn.Module):
    """Strides, padding, batch norm, a shortcut with its own stride, odd sizes."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.left = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=groups)
        self.right = nn.Conv2d(4, 4, 1, stride=2)
        self.last = nn.Conv2d(4, 3, 2, padding=1, dilation=1)
        self.head = nn.Linear(3 * 5 * 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.relu(self.norm(self.first(x)))
        z = torch.relu(self.left(torch.relu(z)) + self.right(z))
        return self.head(torch.relu(self.last(z)).flatten(1))


def network(groups: int) -> tuple[Graph, torch.Tensor]:
    torch.manual_seed(3)
    model = Residual(groups).eval()
    model.norm.running_mean.uniform_(-0.2, 0.2)
    model.norm.running_var.uniform_(0.5, 1.5)
    example = torch.rand(1, 2, 15, 15)
    return certify.from_torch(model, example), torch.rand(3, 2, 15, 15)


@pytest.mark.parametrize("kernel", ["on", "off"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("semantics", ["real", "search"])
def test_windows_and_dense_rows_agree(
    groups: int, semantics: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, centre = network(groups)
    region = certify.Linf(centre.double(), 0.02)
    names = [node.name for node in graph.nodes]
    for least in ("WORTH_IT", "WORTH_A_CALL"):
        monkeypatch.setattr(kernels, least, 0 if kernel == "on" else 2**60)
    with torch.no_grad():
        windows = certify.bound(graph, region, "crown", nodes=names, semantics=semantics)
        monkeypatch.setattr(patches, "_DENSE_FROM", 0.0)
        dense = certify.bound(graph, region, "crown", nodes=names, semantics=semantics)
    for name in names:
        for a, b in zip(windows.nodes[name], dense.nodes[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(windows.lower, dense.lower, rtol=1e-7, atol=1e-9)


def test_windows_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above must not compare dense rows with themselves."""
    graph, centre = network(1)
    made = []
    whole = patches.PatchRows.__init__

    def counting(self: patches.PatchRows, *args: object, **named: object) -> None:
        made.append(args)
        whole(self, *args, **named)

    monkeypatch.setattr(patches.PatchRows, "__init__", counting)
    certify.bound(graph, certify.Linf(centre, 0.02), "crown")
    assert len(made) > 5
