"""Freed memory kept for the next tensor instead of going back to the operating system.

The C library maps large blocks afresh every time and gives them back at once; the page faults cost
a fifth of a backward pass. It learns from what is freed: one block of nearly 32 MiB, the most it
adapts to, raises its threshold. The block is never written to and takes no memory.
"""

from __future__ import annotations

from functools import lru_cache

import torch

_BLOCK = 2**25 - 2**16  # bytes; just below the limit of glibc's M_MMAP_THRESHOLD


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Let the allocator reuse tensors of up to 32 MiB; once per process, harmless elsewhere."""
    torch.empty(_BLOCK, dtype=torch.uint8)
