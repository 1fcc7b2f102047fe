"""Small products on one thread: waking a second one costs more CPU time than it saves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_WORTH_A_SECOND_THREAD = 2.0e7  # floating-point operations in one pass


@contextmanager
def threads_for(operations: float) -> Iterator[None]:
    """Run the body on one thread if it holds about this few floating-point operations."""
    before = torch.get_num_threads()
    if before == 1 or operations > _WORTH_A_SECOND_THREAD:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
