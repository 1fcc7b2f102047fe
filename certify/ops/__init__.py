"""Operator records. Importing a record's module is what registers it; `load` imports them all."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from certify.ops.record import REGISTRY, Registry


@cache  # a training step asks for it, and looking for modules reads the disk
def load() -> Registry:
    """The registry with every record of this package in it (torch is not imported by this)."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return REGISTRY
