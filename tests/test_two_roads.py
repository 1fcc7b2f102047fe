"""One model by two roads, `certify.from_torch` and an ONNX file: the same network, the same bounds.

The two graphs need not be equal node by node. The exporter writes GELU as a formula, splits a
linear layer into a product and a sum, and gathers where torch slices; and it computes a few
constants in float32 (folded batch norm, sqrt(2), 1/6) that the torch road keeps exact. The first
kind of difference must not show in the bounds at all, the second only at the level of float32
rounding, hence `CLOSE`, relative to the width of the bounds and the size of the values.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch_models
from torch import Tensor, nn

import certify
from certify.bounds.alpha import Alpha
from certify.bounds.evaluate import evaluate
from certify.core.graph import Graph

CLOSE = 1e-6
RADIUS = 0.02
QUICK = Alpha(iterations=2, unit_iterations=1)
Roads = tuple[nn.Module, Tensor, Graph, Graph]


class Block(nn.Module):
    """A basic residual block, with a convolution on the skip connection where sizes change."""

    def __init__(self, wide: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(wide, out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(out), nn.BatchNorm2d(out)])
        self.skip: nn.Module = nn.Identity()
        if stride > 1:
            self.skip = nn.Sequential(nn.Conv2d(wide, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(y)) + self.skip(x))


def resnet() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        Block(3, 3, 1),
        Block(3, 4, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return model, torch.randn(1, 1, 6, 6)


class Mixer(nn.Module):
    """Two attention layers by ``nn.MultiheadAttention``, one of them across, with residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.across = (nn.MultiheadAttention(4, 2, batch_first=True) for _ in range(2))
        self.memory, self.head = nn.Parameter(torch.randn(1, 2, 4)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.own(x, x, x, need_weights=False)[0]
        y, weights = self.across(x, self.memory, self.memory)
        return self.head((x + y).mean(1)) + weights.sum((1, 2))[:, None]


def made(name: str) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: torch_models.make(name)


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "vision transformer": made("transformer"),
    "resnet": resnet,
    "gelu mlp": made("mlp-gelu"),
    "gelu mlp, tanh form": made("mlp-gelu-tanh"),
    "silu mlp": made("mlp-silu"),
    "prelu mlp": made("mlp-prelu"),
    "u-net": made("unet"),
    "multi-head attention": lambda: (Mixer(), torch.randn(1, 3, 4)),
    "group norm": made("group-norm"),
}
OPSETS = [
    ("gelu mlp", 9),
    ("gelu mlp", 20),
    ("u-net", 9),
    ("resnet", 10),
    ("group norm", 11),
    ("vision transformer", 14),
    ("vision transformer", 20),
]


def exported(module: nn.Module, example: Tensor, path: Path, opset: int) -> Path:
    """An ONNX file by torch's own exporter; its fused attention kernel has no ONNX form."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # this exporter is deprecated, and needs no package
            torch.onnx.export(module, (example,), str(path), dynamo=False, opset_version=opset)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return path


def travelled(name: str, folder: Path, opset: int = 17) -> Roads:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, example = MODELS[name]()
    module.eval()
    file = exported(module, example, folder / f"{opset}.onnx", opset)
    return module, example, certify.from_torch(module, example), certify.load(file)


@pytest.fixture(scope="module", params=MODELS)
def roads(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Roads:
    return travelled(request.param, tmp_path_factory.mktemp("roads"))


def around(example: Tensor) -> certify.Linf:
    return certify.Linf(example.numpy()[None], RADIUS)


def samples(example: Tensor, count: int = 100) -> Tensor:
    """Points of the region, its corners among them: ``(count, *example)``, float64."""
    generator = torch.Generator().manual_seed(2)
    u = 2 * torch.rand((count, *example.shape), generator=generator, dtype=torch.float64) - 1
    u[: count // 2] = u[: count // 2].sign()
    return example.double() + RADIUS * (1 - 1e-6) * u  # the centre is float32


def close(a: Tensor, b: Tensor, width: Tensor) -> bool:
    size = width.max() + torch.maximum(a.abs(), b.abs())
    return bool(((a.reshape_as(b) - b).abs() <= CLOSE * size).all())


def test_outputs_agree_with_each_other_and_with_their_runtimes(roads: Roads) -> None:
    module, example, torch_graph, onnx_graph = roads
    assert torch_graph.input_shapes == onnx_graph.input_shapes == (tuple(example.shape),)
    points = samples(example, 8)
    with torch.no_grad():
        ours, theirs = evaluate(torch_graph, points), evaluate(onnx_graph, points)
        wanted = torch.stack([module(x.float()) for x in points])
    session = onnxruntime.InferenceSession(
        onnx_graph.source["bytes"], providers=["CPUExecutionProvider"]
    )
    feed = session.get_inputs()[0].name
    ran = np.stack([session.run(None, {feed: x.float().numpy()})[0] for x in points])
    torch.testing.assert_close(ours, theirs.reshape_as(ours), rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(ours.float(), wanted.reshape_as(ours), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(theirs.numpy(), ran.reshape(theirs.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["ibp", "crown", "alpha"])
def test_bounds_agree_and_hold(roads: Roads, method: str) -> None:
    _, example, *graphs = roads
    found = [certify.bound(g, around(example), method, alpha=QUICK) for g in graphs]
    lower, upper = ([getattr(b, side).detach() for b in found] for side in ("lower", "upper"))
    width = upper[0] - lower[0]
    assert bool(width.isfinite().all()) and bool((width > 0).all())
    assert close(lower[0], lower[1], width)
    assert close(upper[0], upper[1], width)
    with torch.no_grad():
        for graph, low, high in zip(graphs, lower, upper, strict=True):
            values = evaluate(graph, samples(example))
            assert bool(((values >= low) & (values <= high)).all())


def test_better_methods_are_tighter_on_both_roads(roads: Roads) -> None:
    _, example, *graphs = roads
    for graph in graphs:
        widths = []
        for method in ("ibp", "crown", "alpha"):
            found = certify.bound(graph, around(example), method, alpha=QUICK)
            widths.append(float((found.upper - found.lower).detach().sum()))
        assert widths[1] < widths[0]
        assert widths[2] <= widths[1] * (1 + 1e-9)


@pytest.mark.parametrize(("name", "opset"), OPSETS)
def test_older_and_newer_operator_sets_give_the_same_bounds(
    name: str, opset: int, tmp_path: Path
) -> None:
    """Before 20 GELU is a formula, before 17 layer norm is, before 13 axes are attributes."""
    _, example, torch_graph, onnx_graph = travelled(name, tmp_path, opset)
    assert onnx_graph.source["opset"] == opset
    a, b = (certify.bound(g, around(example), "crown") for g in (torch_graph, onnx_graph))
    width = (a.upper - a.lower).detach()
    assert close(a.lower.detach(), b.lower, width)
    assert close(a.upper.detach(), b.upper, width)


def test_both_roads_are_verified_alike(tmp_path: Path) -> None:
    _, example, *graphs = travelled("resnet", tmp_path)
    label = int(evaluate(graphs[1], example.double()[None]).argmax())
    spec = certify.Spec.classify(label, 3)
    region = certify.Linf(example.numpy()[None], 0.002)
    found = [certify.verify(g, region, spec, timeout=30) for g in graphs]
    assert [c.verdict for c in found] == [certify.Verdict.HOLDS] * 2
    assert found[0].margin == pytest.approx(found[1].margin, rel=1e-5)
    wrong = certify.Spec.classify((label + 1) % 3, 3)
    for graph in graphs:
        certificate = certify.verify(graph, region, wrong, timeout=30)
        assert certificate.verdict is certify.Verdict.VIOLATED
        assert certificate.counterexample is not None
