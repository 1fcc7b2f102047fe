"""Regions and specifications in words, for people."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from certify.core.arrays import is_tensor
from certify.core.region import Box, Product, Region
from certify.core.spec import Spec

_NORMS = {"Linf": "inf", "L2": "2", "L1": "1", "L0": "0"}


def region_words(region: Region, x: str = "x") -> str:
    """Such as ``|x - c|_inf <= 0.03``; goes after "every x with"."""
    if isinstance(region, Product):
        return " and ".join(region_words(p, f"{x}_{i}") for i, p in enumerate(region.parts))
    kind = type(region).__name__
    size = getattr(region, getattr(region, "size_field", ""), None)
    if size is not None:
        norm = _NORMS.get(kind) or str(getattr(region, "p", "p"))
        return f"|{x} - c|_{norm} <= {_range(size)}"
    if isinstance(region, Box) and region.shape is not None:
        return f"low <= {x} <= high ({_count(math.prod(region.shape), 'input')})"
    return f"{x} in a {kind} region"


def spec_words(spec: Spec) -> tuple[str, str]:
    """What holds, and what is the case instead where it does not."""
    label = _label(spec)
    if label is not None:
        return f"the label stays {label}", f"the label is not {label}"
    clauses = _count(len(spec.clauses), "clause")
    return (
        f"the output avoids the unsafe set of {clauses}",
        f"the output is in the unsafe set of {clauses}",
    )


def _label(spec: Spec) -> int | None:
    """The class, if the specification is the plain "class stays largest" for one class."""
    rows = spec.rows()
    one_each = len(spec.clauses) == len(rows.strict) == spec.num_outputs - 1
    if not one_each or rows.x is not None or rows.bound.any() or rows.strict.any():
        return None
    labels = np.unique(rows.y.argmax(-1))
    rivals = np.unique(rows.y.argmin(-1))
    plain = (np.sort(rows.y, -1)[..., [0, -1]] == [-1, 1]).all() and (
        abs(rows.y).sum(-1) == 2
    ).all()
    one_label = plain and len(labels) == 1 and len(rivals) == len(rows.strict)
    return int(labels[0]) if one_label else None


def _range(size: Any) -> str:
    values = np.asarray(size.detach().cpu() if is_tensor(size) else size, dtype=float)
    low, high = float(values.min()), float(values.max())
    return f"{low:.6g}" if low == high else f"eps in [{low:.6g}, {high:.6g}]"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
