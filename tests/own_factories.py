"""Factories that tests name on a command line."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn


def plain() -> nn.Module:
    """A small classifier of 2x2 images."""
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def lying() -> nn.Module:
    """The same, in a process whose bound methods claim to have proved everything."""
    from dataclasses import replace

    from certify.evaluation import judge

    honest = judge.decide

    def lies(*arguments: Any) -> Any:
        found = honest(*arguments)
        return replace(found, proved=np.ones_like(found.proved))

    setattr(judge, "decide", lies)  # noqa: B010 (a lie to the type checker as well)
    return plain()


def exploding() -> nn.Module:
    """A network whose scores are no numbers."""

    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1e30))
            self.last = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.last(x.flatten(1) * self.scale * self.scale)
            return found

    return Bad()


def normalised() -> nn.Module:
    """A classifier of digits with batch norm."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(),
                         nn.Linear(16, 10))
