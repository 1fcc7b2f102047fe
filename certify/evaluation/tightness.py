"""Propagation tightness: how much of its true size a small box keeps on its way through intervals.

Mao et al. 2023 (arXiv:2306.10426): tau = (exact radius of the margins) / (radius of intervals), for
the linear network that the activation pattern at an image leaves. 1 means that intervals lose
nothing; untrained and adversarially trained networks have about 0.1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from certify.bounds.evaluate import evaluate
from certify.bounds.methods import bound
from certify.core.graph import Graph
from certify.core.region import Linf
from certify.core.spec import Spec

_RADIUS = 1e-7  # of the box: small against any distance to a kink, large against rounding
_LEAST = 1e-8  # radii below count as this
_CHUNK = 64


def tightness(network: Graph, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Tightness ``(N,)`` at each image, averaged over its margins.

    Both radii are taken in the limit of small boxes: the exact one is the l1 norm of the margin's
    gradient, the other the interval width of the margin, last layer and difference taken together.

    Args:
        x: ``(N, ...)``.
        y: labels ``(N,)``.
    """
    shape, classes = network.input_shapes[0], int(np.prod(network.output_shape))
    points = torch.from_numpy(np.asarray(x, dtype=np.float64).reshape(len(y), *shape))
    found = []
    for start in range(0, len(y), _CHUNK):
        part = points[start : start + _CHUNK]
        labels = np.asarray(y[start : start + _CHUNK], dtype=np.int64)
        rows = torch.from_numpy(Spec.classify(labels, classes).rows().y)
        exact = _gradient_sizes(network, part, rows).clamp(min=_LEAST)
        with torch.no_grad():
            box = bound(network, Linf(part, _RADIUS), "ibp", rows, semantics="search")
        wide = ((box.upper - box.lower) / (2 * _RADIUS)).clamp(min=_LEAST)
        found.append((exact / wide).mean(1))
    return torch.cat(found).numpy()


def _gradient_sizes(network: Graph, x: Tensor, rows: Tensor) -> Tensor:
    """The l1 norm of the gradient of every row at every point, ``(N, R)``."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        margins = (rows * evaluate(network, x).flatten(1).unsqueeze(1)).sum(2)
        gradients = [torch.autograd.grad(margins[:, r].sum(), x, retain_graph=True)[0]
                     for r in range(margins.shape[1])]
    return torch.stack([g.flatten(1).abs().sum(1) for g in gradients], 1)
