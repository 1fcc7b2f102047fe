"""Batch normalisation in certified training: statistics are those of clean inputs, everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_Norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def recorded_statistics(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What batch norms in training mode normalise with, by state name, differentiable.

    The dictionary fills while the model runs inside: ``<module>.running_mean`` and ``_var`` map to
    the mean and the (biased) variance of the batch.
    """
    found: dict[str, Tensor] = {}
    handles = []
    for name, part in model.named_modules():
        if isinstance(part, _Norm) and part.training:
            handles.append(part.register_forward_pre_hook(_recorder(name, found)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _recorder(name: str, found: dict[str, Tensor]) -> Any:
    prefix = f"{name}." if name else ""

    def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        axes = [0, *range(2, x.dim())]
        found[f"{prefix}running_mean"] = x.mean(axes)
        found[f"{prefix}running_var"] = x.var(axes, unbiased=False)

    return record


def has_batch_norm(model: nn.Module) -> bool:
    """Whether there is anything here to take care of."""
    return any(isinstance(part, _Norm) for part in model.modules())


def precise_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set running statistics to those of whole data, with the weights as they are now.

    Averages over ``batches`` in place of the running average, which lags behind the weights; to be
    called at the end of an epoch. Training flags are left as they were.
    """
    norms = [part for part in model.modules() if isinstance(part, _Norm)]
    if not norms:
        return
    flags = [(part, part.training) for part in model.modules()]
    momenta = [part.momentum for part in norms]
    try:
        model.eval()
        for part in norms:
            part.train()
            part.reset_running_stats()
            part.momentum = None  # a plain average
        with torch.no_grad():
            for x in batches:
                model(x)
    finally:
        for part, momentum in zip(norms, momenta, strict=True):
            part.momentum = momentum
        for any_part, flag in flags:
            any_part.training = flag
