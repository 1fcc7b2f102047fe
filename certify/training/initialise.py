"""Weights with which boxes neither grow nor shrink from layer to layer."""

from __future__ import annotations

import math

import torch
from torch import nn

_AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def ibp_initialise(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw all weights but the last layer's anew, normal with deviation ``sqrt(2 pi) / n``.

    n is the fan-in; then a box's expected radius stays what it is through a layer and a ReLU (Shi
    et al. 2021, section 4.1). Biases become 0, the last layer keeps what it has.
    """
    layers = [part for part in model.modules() if isinstance(part, _AFFINE)]
    with torch.no_grad():
        for layer in layers[:-1]:
            fan_in = layer.weight[0].numel()
            layer.weight.normal_(0.0, math.sqrt(2 * math.pi) / fan_in, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
