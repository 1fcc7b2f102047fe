"""Input regions: what a network's inputs may be.

`Box`, `Linf`, `L2`, `L1`, `Lp`, `L0`, `UnionOfBoxes`, `Ellipsoid`, `Polytope`, `Substitutions`,
`Zonotope`, and `Product` for several model inputs; `REGIONS` lists them by name. `as_inputs` makes
one batched region per model input out of any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from certify.core.region_ball import L1, L2, Lp
from certify.core.region_base import REGIONS, Region
from certify.core.region_box import Box, Linf
from certify.core.region_l0 import L0
from certify.core.region_polytope import Polytope
from certify.core.region_product import Product, as_inputs
from certify.core.region_substitutions import Substitutions
from certify.core.region_union import Ellipsoid, UnionOfBoxes
from certify.core.region_zonotope import Zonotope

BALLS: Mapping[str, Any] = {"inf": Linf, "2": L2, "1": L1, "0": L0}
"""Balls of the norms that have a name: ``(center, radius, clip) -> Region``."""

__all__ = [
    "BALLS", "L0", "L1", "L2", "REGIONS", "Box", "Ellipsoid", "Linf", "Lp", "Polytope", "Product",
    "Region", "Substitutions", "UnionOfBoxes", "Zonotope", "as_inputs",
]
