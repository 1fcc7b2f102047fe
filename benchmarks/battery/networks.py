"""Random small networks as lists of flat layers: to run in numpy, to encode, to write as ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

KINDS = ("dense", "conv", "residual", "max-pool", "sigmoid", "product")
EXACT = ("dense", "conv", "residual", "max-pool")  # piecewise linear: mixed-integer programs


@dataclass(frozen=True)
class Affine:
    """``W x + b``; with ``kernel``, W is a convolution of ``(1, C, H, W)`` written as a matrix."""

    weight: np.ndarray
    bias: np.ndarray
    kernel: np.ndarray | None = None
    shape: tuple[int, ...] = ()
    stride: int = 1


@dataclass(frozen=True)
class Pointwise:
    """``Relu`` or ``Sigmoid`` or ``Tanh``."""

    name: str


@dataclass(frozen=True)
class Pool:
    """Maxima over 2 x 2 windows, 1 apart, of ``(1, C, H, W)``; flat members ``(outputs, 4)``."""

    members: np.ndarray
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Product:
    """The first half of the elements times the second half."""


@dataclass(frozen=True)
class Residual:
    """``x + body(x)``."""

    body: tuple[Any, ...]


Layers = Sequence[Any]


def run(layers: Layers, x: np.ndarray) -> np.ndarray:
    """Outputs ``(P, m)`` at points ``(P, n)``, in float64."""
    for layer in layers:
        if isinstance(layer, Affine):
            x = x @ layer.weight.T.astype(np.float64) + layer.bias
        elif isinstance(layer, Pool):
            x = x[:, layer.members].max(-1)
        elif isinstance(layer, Product):
            half = x.shape[1] // 2
            x = x[:, :half] * x[:, half:]
        elif isinstance(layer, Residual):
            x = x + run(layer.body, x)
        else:
            x = _POINTWISE[layer.name](x)
    return x


_POINTWISE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Tanh": np.tanh,
}


def random_network(kind: str, rng: np.random.Generator) -> tuple[list[Any], int, int]:
    """Layers, number of inputs and of outputs."""
    inputs, outputs = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    if kind in ("conv", "max-pool"):
        return _images(kind, rng, outputs)
    width = int(rng.integers(3, 9))
    layers: list[Any] = [_dense(rng, inputs, width)]
    for _ in range(int(rng.integers(1, 4))):
        layers.append(Pointwise(str(rng.choice(["Sigmoid", "Tanh"])) if kind == "sigmoid"
                                else "Relu"))
        if kind == "residual":
            body = (_dense(rng, width, width + 1), Pointwise("Relu"), _dense(rng, width + 1, width))
            layers.append(Residual(body))
        elif kind == "product":
            layers += [_dense(rng, width, 2 * width), Product()]
        else:
            layers.append(_dense(rng, width, width))
    return [*layers, Pointwise("Sigmoid" if kind == "sigmoid" else "Relu"),
            _dense(rng, width, outputs)], inputs, outputs


def _images(kind: str, rng: np.random.Generator, outputs: int) -> tuple[list[Any], int, int]:
    shape = (1, int(rng.integers(1, 3)), 4, int(rng.integers(3, 5)))
    layers: list[Any] = []
    first = _convolution(rng, shape, int(rng.integers(1, 3)), 1 if kind == "max-pool" else
                         int(rng.integers(1, 3)))
    layers += [first[0], Pointwise("Relu")]
    shape_now = first[1]
    if kind == "max-pool":
        pool, shape_now = _pool(shape_now)
        layers.append(pool)
    elif min(shape_now[2:]) >= 2:
        second = _convolution(rng, shape_now, 2, 1)
        layers += [second[0], Pointwise("Relu")]
        shape_now = second[1]
    return [*layers, _dense(rng, int(np.prod(shape_now)), outputs)], int(np.prod(shape)), outputs


def _dense(rng: np.random.Generator, n: int, m: int) -> Affine:
    weight = rng.normal(size=(m, n)) * np.sqrt(2 / n)
    if rng.random() < 0.2:
        weight *= rng.random(size=weight.shape) < 0.6
    return Affine(weight.astype(np.float32), (rng.normal(size=m) * 0.4).astype(np.float32))


def _convolution(rng: np.random.Generator, shape: tuple[int, ...], channels: int,
                 stride: int) -> tuple[Affine, tuple[int, ...]]:
    _, c, h, w = shape
    kernel = (rng.normal(size=(channels, c, 2, 2)) * np.sqrt(1 / (2 * c))).astype(np.float32)
    bias = (rng.normal(size=channels) * 0.3).astype(np.float32)
    high, wide = (h - 2) // stride + 1, (w - 2) // stride + 1
    matrix = np.zeros((channels, high, wide, c, h, w), np.float32)
    for i in range(high):
        for j in range(wide):
            a, b = i * stride, j * stride
            matrix[:, i, j, :, a:a + 2, b:b + 2] = kernel
    flat = matrix.reshape(channels * high * wide, c * h * w)
    affine = Affine(flat, np.repeat(bias, high * wide), kernel, shape, stride)
    return affine, (1, channels, high, wide)


def _pool(shape: tuple[int, ...]) -> tuple[Pool, tuple[int, ...]]:
    _, c, h, w = shape
    place = np.arange(c * h * w).reshape(c, h, w)
    windows = np.stack([place[:, i:h - 1 + i, j:w - 1 + j] for i in (0, 1) for j in (0, 1)], -1)
    return Pool(windows.reshape(-1, 4), shape), (1, c, h - 1, w - 1)
