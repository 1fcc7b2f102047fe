"""Losses for networks that certify, schedules, and what goes with them; the loop stays yours."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from certify.training.architectures import network
    from certify.training.attack import Ascent
    from certify.training.batch_norm import precise_batch_norm
    from certify.training.initialise import ibp_initialise
    from certify.training.loss import CertifiedLoss, TrainingStopped, box_around
    from certify.training.regularisers import l1_norm, relu_balance, tightness
    from certify.training.schedules import Ramp, Schedule

_HOME = {
    "Ascent": "attack", "CertifiedLoss": "loss", "Ramp": "schedules", "Schedule": "schedules",
    "TrainingStopped": "loss", "box_around": "loss", "ibp_initialise": "initialise",
    "l1_norm": "regularisers", "network": "architectures", "precise_batch_norm": "batch_norm",
    "relu_balance": "regularisers", "tightness": "regularisers",
}

__all__ = ["Ascent", "CertifiedLoss", "Ramp", "Schedule", "TrainingStopped", "box_around",
           "ibp_initialise", "l1_norm", "network", "precise_batch_norm", "relu_balance",
           "tightness"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
