"""Small networks of the literature by name, and their weights before training."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from certify.core.errors import BadInput, one_line
from certify.importers.model_source import built

Make = Callable[[tuple[int, ...], int], nn.Module]


def make_network(arch: str, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """A network for images of ``shape``, initialised from ``seed`` as torch does it.

    Args:
        arch: a name of `ARCHITECTURES`, or ``package.module:function`` (no arguments).

    Raises:
        BadInput: no such name, or images too small for it.
        UsageError: no such function.
    """
    torch.manual_seed(seed)
    if ":" in arch:
        return built(arch)
    if arch not in ARCHITECTURES:
        raise BadInput(f"there is no architecture {one_line(arch, 40)!r}; choose one of "
                       f"{', '.join(ARCHITECTURES)}, or give package.module:function")
    try:
        model = ARCHITECTURES[arch](shape, classes)
        model(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, IndexError) as problem:
        raise BadInput(f"{arch} does not fit images of shape {shape}: "
                       f"{one_line(problem, 120)}") from None
    return model


def keep_widths(model: nn.Module) -> None:
    """Draw weights so that interval widths keep their size from layer to layer.

    Shi et al. 2021 (arXiv:2103.17268, section 4.1): deviation sqrt(2 pi) / fan-in, for all layers
    but the last.
    """
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    for layer in layers[:-1]:
        fan_in = layer.weight[0].numel()
        nn.init.normal_(layer.weight, 0.0, math.sqrt(2 * math.pi) / fan_in)


def _mlp(shape: tuple[int, ...], classes: int) -> nn.Module:
    size = math.prod(shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, 64),
                         nn.ReLU(), nn.Linear(64, classes))


def _cnn3(shape: tuple[int, ...], classes: int) -> nn.Module:
    return _closed([nn.Conv2d(shape[0], 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU()],
                   shape, (), classes)


def _dm_small(shape: tuple[int, ...], classes: int) -> nn.Module:
    return _closed([nn.Conv2d(shape[0], 16, 4, 2), nn.ReLU(), nn.Conv2d(16, 32, 4, 1), nn.ReLU()],
                   shape, (100,), classes)


def _closed(head: list[nn.Module], shape: tuple[int, ...], widths: tuple[int, ...],
            classes: int) -> nn.Module:
    """Convolutions with dense layers behind them."""
    body = nn.Sequential(*head, nn.Flatten())
    size = int(body(torch.zeros(1, *shape)).shape[1])
    for width in widths:
        body.extend([nn.Linear(size, width), nn.ReLU()])
        size = width
    body.append(nn.Linear(size, classes))
    return body


ARCHITECTURES: dict[str, Make] = {"mlp": _mlp, "cnn3": _cnn3, "dm-small": _dm_small}
