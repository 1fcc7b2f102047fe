"""Small torch models of many kinds, for the importer's tests: each a module and one example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, randn
from torch.nn.utils.parametrizations import weight_norm


class Residual(nn.Module):
    """Two batch-normed convolutions around a skip connection, in place where that is usual."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.norm.running_mean.uniform_(-0.5, 0.5)
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.first(x)))
        y = self.second(y)
        y += x
        return self.act(y).mean((2, 3))


class Branched(nn.Module):
    """Three ways through, joined by concatenation, subtraction and a product with a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        self.mask = torch.tensor([1.0, 0.0, 1.0])

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.relu(self.left(x)), torch.sigmoid(self.right(x))
        steps = torch.arange(3) * 0.1
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            c = (2.0 - a) * self.mask
        return torch.cat([a - b + steps, b * self.scale, c / 2], dim=-1)


class NoBatchAxis(nn.Module):
    """Works on a bare vector, and moves axes about."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.weight @ x).view(5, 1).expand(5, 2).transpose(0, 1)
        return y.reshape(-1)[2:9]


class HardCodedOne(nn.Module):
    """Flattens with ``view(1, -1)``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 2, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.conv(x)).view(1, -1))


class UNet(nn.Module):
    """One level down and up again."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(4, 2, 2, stride=2), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.leaky_relu(self.down(x), 0.1)
        deep = F.relu(self.inner(F.max_pool2d(skip, 2)))
        return self.out(torch.cat([self.up(deep), skip], dim=1))


class VisionTransformer(nn.Module):
    """Patches, a class token, positions, one encoder layer, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 4, stride=4)
        self.token = nn.Parameter(randn(1, 1, 8))
        self.position = nn.Parameter(randn(1, 9, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation="gelu")
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], dim=1)
        tokens = self.layer(tokens + self.position[:, : tokens.shape[1]])
        return self.head(self.norm(tokens[:, 0]))


class SelfAttention(nn.Module):
    """``nn.MultiheadAttention`` of a sequence with itself, and its weights when asked."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.attention, self.weights = nn.MultiheadAttention(4, 2, batch_first=True), weights

    def forward(self, x: Tensor) -> Any:
        return self.attention(x, x, x, need_weights=self.weights)


class CrossAttention(nn.Module):
    """Queries from one place, keys and values from another: the packed weight is split."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x * 0.5, x + 1, need_weights=False)[0]


class Shared(nn.Module):
    """One layer used twice, and a second one tied to its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.tied = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied.weight = self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(torch.relu(self.layer(torch.relu(self.layer(x)))))


class ManyOutputs(nn.Module):
    """Two inputs, one in a dictionary; a dictionary, a tuple and None come out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, more: dict[str, Tensor], factor: float) -> Any:
        y = self.layer(x)
        return {"y": y, "rest": (torch.relu(more["z"]) * factor, None)}


class Decomposed(nn.Module):
    """Calls that have no record of their own."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.glu(torch.addcmul(x, x, x, value=0.5))
        norm = torch.linalg.vector_norm(x + 9)
        return torch.kron(y, torch.ones(1, 2)) + torch.addcdiv(x, x, norm)


class InPlace(nn.Module):
    """Writes into its input, and into slices of its own intermediate results."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        y = x * 2
        y[:, 0] = 1.0
        view = y.view(2, 2)
        view.clamp_(min=-0.5)
        z = torch.zeros_like(x)
        z[:, 1:3] += y[:, :2]
        z[0, torch.tensor([3, 0])] = x[0, :2]
        return y * 0.5 + z


class Written(nn.Module):
    """Calls written as a few others."""

    def forward(self, x: Tensor) -> Tensor:
        one, largest = x.norm(p=1), x.norm(p=torch.inf, dim=-1, keepdim=True)
        y = F.softshrink(x, 0.3) + F.rrelu(x) * largest
        return torch.log1p(one + y * y) + torch.expm1(x)


def _mlp(activation: nn.Module, *, size: int = 4) -> nn.Module:
    first, second, third = nn.Linear(size, 6), nn.Linear(6, 5), nn.Linear(5, 3)
    return nn.Sequential(first, activation, second, activation, third)


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(18, 4), nn.BatchNorm1d(4), nn.ReLU6(), nn.Linear(4, 3),
    )  # fmt: skip


def _normed(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "mlp": lambda: (_mlp(nn.ReLU()), randn(1, 4)),
    "mlp-tanh": lambda: (_mlp(nn.Tanh()), randn(1, 4)),
    "mlp-gelu": lambda: (_mlp(nn.GELU()), randn(1, 4)),
    "mlp-gelu-tanh": lambda: (_mlp(nn.GELU(approximate="tanh")), randn(1, 4)),
    "mlp-silu": lambda: (_mlp(nn.SiLU()), randn(1, 4)),
    "mlp-softplus": lambda: (_mlp(nn.Softplus(beta=2.0)), randn(1, 4)),
    "mlp-hardswish": lambda: (_mlp(nn.Hardswish()), randn(1, 4)),
    "mlp-elu": lambda: (_mlp(nn.ELU(0.7)), randn(1, 4)),
    "mlp-prelu": lambda: (_mlp(nn.PReLU()), randn(1, 4)),
    "cnn": lambda: (_cnn(), randn(1, 1, 8, 8)),
    "residual": lambda: (Residual(), randn(1, 3, 4, 4)),
    "branched": lambda: (Branched(), randn(1, 4)),
    "no-batch-axis": lambda: (NoBatchAxis(), randn(6)),
    "hard-coded-one": lambda: (HardCodedOne(), randn(1, 1, 4, 4)),
    "joint-batch": lambda: (_mlp(nn.ReLU()), randn(3, 4)),
    "unet": lambda: (UNet(), randn(1, 1, 4, 4)),
    "transformer": lambda: (VisionTransformer(), randn(1, 1, 8, 8)),
    "attention": lambda: (SelfAttention(False), randn(1, 3, 4)),
    "attention-weights": lambda: (SelfAttention(True), randn(1, 3, 4)),
    "cross-attention": lambda: (CrossAttention(), randn(3, 1, 4)),
    "encoder-layer": lambda: (
        nn.TransformerEncoderLayer(4, 2, 6, norm_first=True), randn(3, 1, 4)),
    "group-norm": lambda: (_normed(nn.GroupNorm(2, 4)), randn(1, 1, 5, 5)),
    "layer-norm": lambda: (_normed(nn.LayerNorm([4, 3, 3])), randn(1, 1, 5, 5)),
    "instance-norm": lambda: (_normed(nn.InstanceNorm2d(4, affine=True)), randn(1, 1, 5, 5)),
    "average-pool": lambda: (_normed(nn.AvgPool2d(3, 1, 1)), randn(1, 1, 5, 5)),
    "adaptive-pool": lambda: (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        randn(1, 1, 5, 5)),
    "upsample": lambda: (
        nn.Sequential(nn.Conv2d(1, 1, 3), nn.Upsample(scale_factor=2)), randn(1, 1, 4, 4)),
    "conv1d": lambda: (
        nn.Sequential(nn.Conv1d(2, 3, 3, padding="same"), nn.ReLU()), randn(1, 2, 5)),
    "shared": lambda: (Shared(), randn(1, 4)),
    "weight-norm": lambda: (weight_norm(nn.Linear(4, 3)), randn(1, 4)),
    "lstm": lambda: (nn.LSTM(2, 3, batch_first=True), randn(1, 3, 2)),
    "written": lambda: (Written(), randn(1, 4)),
    "decomposed": lambda: (Decomposed(), randn(1, 4)),
    "many-outputs": lambda: (ManyOutputs(), (randn(1, 3), {"z": randn(1, 2)}, 3.0)),
    "in-place": lambda: (InPlace(), randn(1, 4)),
}  # fmt: skip


def make(name: str) -> tuple[nn.Module, Any]:
    """The model called ``name`` and one example, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name]()
