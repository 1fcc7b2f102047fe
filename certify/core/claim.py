"""What a certificate is about, exact enough to be rebuilt from a file alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import numpy as np

from certify.core.codec import Codec, Kind
from certify.core.edit import Edit
from certify.core.errors import BadInput
from certify.core.region import REGIONS, Region
from certify.core.spec import Clause, Spec
from certify.core.votes import Smoothing


@dataclass(frozen=True, eq=False)
class Case:
    """One region and what must hold on it.

    Attributes:
        region: batched to the model's inputs; its batch is the number of examples.
        spec: its rows serve all examples, or one each.
    """

    region: Region
    spec: Spec


@dataclass(frozen=True, eq=False)
class Claim:
    """A model and the cases asked about it; a claim holds when all of its cases do.

    Attributes:
        model: its name, for people.
        format: ``"onnx"`` or ``"torch"``.
        model_sha256: of the model file, or of the module's state.
        cases: at least one.
        smoothing: the claim is about the model smoothed by this noise; None: about the model.
        edits: the claim is about the model after these changes, in order.
    """

    model: str
    format: str
    model_sha256: str
    cases: tuple[Case, ...]
    smoothing: Smoothing | None = None
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        if not self.cases:
            raise BadInput("a claim without a case says nothing: give at least one")


def region_to_dict(region: Region) -> dict[str, Any]:
    """Plain data: ``kind`` and every field; arrays exactly as they are."""
    return dict(CODEC.encode(region))


def region_from_dict(data: Any, where: str = "region") -> Region:
    """The same set again, validated by the region's own constructor.

    Raises:
        BadInput: not a region; the message says where.
    """
    found: Region = CODEC.decode(Region, data, where)
    return found


def spec_to_dict(spec: Spec) -> dict[str, Any]:
    """Plain data: every clause with its rows and exact thresholds."""
    return dict(CODEC.encode(spec))


def spec_from_dict(data: Any, where: str = "spec") -> Spec:
    """The same specification again, validated.

    Raises:
        BadInput: not a specification; the message says where.
    """
    found: Spec = CODEC.decode(Spec, data, where)
    return found


def _region(cls: type[Region]) -> Kind:
    def build(shape: Any, **fields: Any) -> Region:
        region = cls(**fields)
        if shape is None:
            return region
        if not isinstance(shape, tuple) or not all(type(n) is int and n > 0 for n in shape):
            raise BadInput("shape must be a list of positive sizes")
        if getattr(region, cls.cut_axis[0]).size % math.prod(shape):  # no tiny file, huge region
            raise BadInput(f"the arrays do not fill the shape {list(shape)}")
        return region.batched(shape)

    return Kind(cls, build)


def _clause(y: Any, x: Any, bound: Any, strict: Any, exact: Any) -> Clause:
    count = strict.shape[0] if strict.ndim == 1 else 0
    fits = bound.ndim in (1, 2) and bound.shape[-1] == count and strict.shape == (count,)
    fits = fits and y.ndim == 3 and y.shape[1] == count
    fits = fits and strict.dtype == np.bool_ and y.dtype == bound.dtype == np.float64
    if x is not None:
        fits = fits and x.ndim == 3 and x.shape[:2] == (1, count) and x.dtype == np.float64
    if exact is not None:
        fits = (
            fits
            and bound.ndim == 1
            and len(exact) == count
            and all(
                isinstance(e, Decimal) and e <= Decimal(float(b))
                for e, b in zip(exact, bound, strict=True)
            )
        )
    if not fits:
        raise BadInput("the arrays of a clause do not fit each other")
    return Clause(y, x, bound, strict, exact)


def _spec(clauses: Any, num_outputs: Any) -> Spec:
    if not isinstance(clauses, tuple) or not all(isinstance(c, Clause) for c in clauses):
        raise BadInput("clauses must be a list of clauses")
    if len({c.x.shape[2] for c in clauses if c.x is not None}) > 1:
        raise BadInput("the clauses mention different numbers of inputs")
    return Spec(clauses, num_outputs)


_REGION_KINDS: Mapping[str, Kind] = {name: _region(cls) for name, cls in REGIONS.items()}
CODEC = Codec(
    MappingProxyType({**_REGION_KINDS, "Clause": Kind(Clause, _clause), "Spec": Kind(Spec, _spec)})
)
"""Everything a certificate may hold. Regions come from their registry."""

__all__ = [
    "CODEC",
    "Case",
    "Claim",
    "region_from_dict",
    "region_to_dict",
    "spec_from_dict",
    "spec_to_dict",
]
