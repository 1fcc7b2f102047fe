"""Networks of the literature by name, as plain torch modules for images ``(C, H, W)``.

Pixels in [0, 1] go in; a normalisation is the caller's own first layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from certify.core.errors import BadInput

Shape = tuple[int, int, int]
Maker = Callable[[Shape, int], nn.Module]


def network(name: str, shape: Shape, classes: int = 10) -> nn.Module:
    """The architecture called ``name`` for inputs ``shape`` (C, H, W).

    Raises:
        BadInput: no such architecture, or inputs too small for it.
    """
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise BadInput(f"there is no architecture {name!r}; choose one of {known}")
    try:
        return ARCHITECTURES[name](shape, classes)
    except RuntimeError:
        raise BadInput(f"inputs of shape {shape} are too small for {name}") from None


def _convolutions(
    shape: Shape, classes: int, convs: tuple[tuple[int, int, int, int], ...],
    hidden: tuple[int, ...], norm: bool = False,
) -> nn.Sequential:
    """Convolutions (channels, kernel, stride, padding), then linear layers, each with a ReLU."""
    layers: list[nn.Module] = []
    channels = shape[0]
    for out, kernel, stride, padding in convs:
        layers.append(nn.Conv2d(channels, out, kernel, stride, padding))
        layers += [nn.BatchNorm2d(out)] if norm else []
        layers.append(nn.ReLU())
        channels = out
    layers.append(nn.Flatten())
    size = nn.Sequential(*layers).eval()(torch.zeros(1, *shape)).shape[1]
    for out in hidden:
        layers.append(nn.Linear(size, out))
        layers += [nn.BatchNorm1d(out)] if norm else []
        layers.append(nn.ReLU())
        size = out
    return nn.Sequential(*layers, nn.Linear(size, classes))


def _mlp(*hidden: int) -> Maker:
    return lambda shape, classes: _convolutions(shape, classes, (), hidden)


def _cnn7(width: int) -> Maker:
    convs = ((width, 3, 1, 1), (width, 3, 1, 1), (2 * width, 3, 2, 1), (2 * width, 3, 1, 1),
             (2 * width, 3, 1, 1))
    return lambda shape, classes: _convolutions(shape, classes, convs, (8 * width,), True)


class ResidualBlock(nn.Module):
    """``relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))``."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(out)
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, out, H / stride, W / stride)``."""
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(y)) + self.shortcut(x))


def _resnet(shape: Shape, classes: int) -> nn.Module:
    body = nn.Sequential(
        nn.Conv2d(shape[0], 16, 3, 1, 1), nn.ReLU(), ResidualBlock(16, 16, 2),
        ResidualBlock(16, 32, 2), nn.Flatten())
    size = body.eval()(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(*body, nn.Linear(size, 100), nn.ReLU(), nn.Linear(100, classes)).train()


def _plain(
    convs: tuple[tuple[int, int, int, int], ...], hidden: tuple[int, ...], norm: bool = False
) -> Maker:
    return lambda shape, classes: _convolutions(shape, classes, convs, hidden, norm)


ARCHITECTURES: dict[str, Maker] = {
    "mlp-small": _mlp(100),
    "mlp": _mlp(128, 64),
    "mlp-256x4": _mlp(256, 256, 256, 256),
    "cnn3": _plain(((16, 5, 2, 0), (32, 4, 2, 0)), ()),
    "dm-small": _plain(((16, 4, 2, 0), (32, 4, 1, 0)), (100,)),
    "dm-medium": _plain(((32, 3, 1, 0), (32, 4, 2, 0), (64, 3, 1, 0), (64, 4, 2, 0)), (512, 512)),
    "dm-large": _plain(((64, 3, 1, 1), (64, 3, 1, 1), (128, 3, 2, 1), (128, 3, 1, 1),
                        (128, 3, 1, 1)), (512,)),
    "cnn5": _plain(((64, 3, 1, 1), (64, 3, 1, 1), (128, 3, 2, 1)), (512,), True),
    "cnn7": _cnn7(64),
    "cnn7-narrow": _cnn7(16),
    "resnet-small": _resnet,
}
"""By name. The ones called DM are of Gowal et al. 2018, CNN7 of Shi et al. 2021."""
