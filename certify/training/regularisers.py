"""What keeps early training stable; each a number to add to a loss, usable alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from certify.ops.record import Interval

_WEIGHTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TAU = 0.5


def tightness(input_radius: Tensor, boxes: Sequence[Interval], tau: float = _TAU) -> Tensor:
    """Punishes layers whose mean radius is more than ``1 / tau`` times the input's.

    Shi et al. 2021, equation 7: mean over layers of ``relu(tau - r_0 / r_i) / tau``.
    """
    means = [((box.upper - box.lower) / 2).mean() for box in boxes]
    terms = [torch.relu(tau - input_radius / r.clamp_min(1e-12)) / tau for r in means]
    return torch.stack(terms).mean()


def relu_balance(boxes: Sequence[Interval], tau: float = _TAU) -> Tensor:
    """Punishes layers whose active neurons outweigh the inactive ones, or the other way round.

    Shi et al. 2021, equations 9 and 10; a layer without one of the two kinds adds nothing.
    """
    terms = [_balance(box, tau) for box in boxes]
    return torch.stack(terms).mean()


def _balance(box: Interval, tau: float) -> Tensor:
    centre = (box.lower + box.upper) / 2
    active, inactive = (box.lower > 0).to(centre.dtype), (box.upper < 0).to(centre.dtype)
    means = (centre * active).mean() / -(centre * inactive).mean()
    apart = (centre - centre.mean(0, keepdim=True)) ** 2
    spreads = (apart * active).sum() / (apart * inactive).sum()
    total = centre.new_zeros(())
    for ratio in (means, spreads):
        if bool(ratio.isfinite()) and float(ratio.detach()) > 0:
            total = total + torch.relu(tau - torch.minimum(ratio, 1 / ratio)) / tau
    return total


def l1_norm(model: nn.Module) -> Tensor:
    """Sum of the sizes of all weights of linear and convolution layers; no biases."""
    sizes = [m.weight.abs().sum() for m in model.modules() if isinstance(m, _WEIGHTS)]
    return torch.stack(sizes).sum()
