"""The only place that imports numba kernels; `CERTIFY_KERNELS=off` turns them off.

Each function has a torch reference with the same meaning in `certify.bounds.reference`; a generated
test compares them. A kernel is used only on the CPU, without gradients, and only where it saves
more than importing numba costs.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from certify.bounds import reference

WORTH_IT = 2**19  # coefficients in one tensor for which numba is imported ...
WORTH_A_CALL = 2**15  # ... and for which it is used once it is there
KERNELS = ("relax_dense", "relax_windows", "dot_dense", "dot_windows")


def relax_dense(A: Tensor, lines: tuple[Tensor, ...], cost: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``(R, n)`` through elementwise lines ``low, low_c, up, up_c (1 or R, n)``.

    Returns:
        New rows ``(R, n)`` and ``(R, 2)`` float64: the bias, and ``|A| . cost`` for ``cost (n,)``.
    """
    rows, sums = _call("relax_dense", A, *lines, cost)
    return rows, sums


def relax_windows(
    A: Tensor, top: Tensor, left: Tensor, lines: tuple[Tensor, ...], cost: Tensor
) -> tuple[Tensor, Tensor]:
    """As `relax_dense` for windows ``(R, h, w, C)`` at ``top, left (R,)`` of maps ``(H, W, C)``."""
    rows, sums = _call("relax_windows", A, top, left, *lines, cost)
    return rows, sums


def dot_dense(A: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``(R, 2)`` float64: rows ``(R, n)`` times ``first (n,)``, their sizes times ``second``."""
    sums: Tensor = _call("dot_dense", A, first, second)
    return sums


def dot_windows(A: Tensor, top: Tensor, left: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``(R, 2)`` float64: windows times one map, and their sizes times another."""
    sums: Tensor = _call("dot_windows", A, top, left, first, second)
    return sums


def usable(A: Tensor, *others: Tensor) -> bool:
    """Whether kernels pay for coefficients like these and lose no gradient of any operand."""
    least = WORTH_IT if "certify.kernels.rows" not in sys.modules else WORTH_A_CALL
    if A.device.type != "cpu" or A.numel() < least or os.environ.get("CERTIFY_KERNELS") == "off":
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in (A, *others)):
        return False
    return _module() is not None


@lru_cache(maxsize=1)
def _module() -> Any:
    try:
        from certify.kernels import rows
    except ImportError:
        return None
    return rows


def _call(name: str, A: Tensor, *rest: Tensor) -> Any:
    if not usable(A, *rest):
        return getattr(reference, name)(A, *rest)
    arrays = [t.detach().contiguous().numpy() for t in (A, *rest)]
    sums = torch.empty(A.shape[0], 2, dtype=torch.float64)
    kernel = getattr(_module(), name)
    if name.startswith("dot"):
        kernel(*arrays, sums.numpy())
        return sums
    out = torch.empty_like(A, memory_format=torch.contiguous_format)
    kernel(*arrays, out.numpy(), sums.numpy())
    return out, sums
