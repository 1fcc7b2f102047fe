"""`lipschitz`: how fast outputs can change within a region, from bounds of their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from certify.bounds.methods import bound
from certify.core.errors import UsageError
from certify.core.graph import Graph
from certify.core.region import Region
from certify.semantic.edits import jacobian

_UP = 1 + 2.0**-40  # far above the rounding of the sums below


def lipschitz(network: Graph, region: Region, rows: Any = None, *, norm: str = "inf",
              method: str = "crown") -> np.ndarray:
    """Upper bounds of the Lipschitz constants of rows of the output over a convex region.

    ``|r . f(x) - r . f(x')| <= L |x - x'|`` for all x, x' in the region: L is a bound of the
    largest dual norm of the gradient (Zhang et al. 2019; Jordan and Dimakis 2020).

    Args:
        region: convex (a ball or a box); with or without a batch axis.
        rows: coefficients ``(R, outputs)``; default: every output.
        norm: of the input, ``"inf"``, ``"2"`` or ``"1"``.
        method: bounds the gradient, see `certify.bound`.

    Returns:
        ``(B, R)`` float64; infinite where nothing is known.

    Raises:
        Unsupported: operators whose derivative has no graph.
        UsageError: another norm, or a region that need not be convex.
    """
    if norm not in ("inf", "2", "1"):
        raise UsageError(f"there is no norm {norm!r} here; choose inf, 2 or 1")
    if type(region).__name__ in ("UnionOfBoxes", "Substitutions", "L0"):
        raise UsageError(f"a Lipschitz constant over {type(region).__name__}, which is not convex, "
                         "says nothing; give a box or a ball around it")
    size = int(np.prod(network.output_shape))
    gradients = jacobian(network, np.eye(size) if rows is None else rows)
    found = bound(gradients, region, method)
    largest = np.maximum(np.abs(found.lower.detach().cpu().numpy()),
                         np.abs(found.upper.detach().cpu().numpy()))
    flat = largest.reshape(*largest.shape[:2], -1)
    if norm == "inf":
        total = flat.sum(-1)
    else:
        total = np.sqrt((flat**2).sum(-1)) if norm == "2" else flat.max(-1)
    result: np.ndarray = total * _UP
    return result
