"""Regions from ``.npz`` files: arrays named ``KIND.FIELD``, such as ``L2.center`` and ``L2.eps``.

For a model with several inputs the names begin with the input's number: ``0.Box.lower``.
Written by ``numpy.savez("region.npz", **{"L2.center": x, "L2.eps": 0.5})``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from certify.core.errors import BadInput, one_line
from certify.core.region import REGIONS, Product, Region
from certify.importers.checkpoints import load_weights
from certify.importers.files import shown


def load_region(path: str | Path) -> Region:
    """The region in a ``.npz`` file, see above; `certify.verify` fits it to the model.

    Raises:
        BadInput: missing, malformed, or no such region.
        LimitExceeded, Refused, Unsupported: as `load_weights`.
    """
    arrays = load_weights(path)
    try:
        return _region(arrays)
    except BadInput as problem:
        raise BadInput(f"{shown(path)}: {one_line(problem)}") from None


def _region(arrays: dict[str, np.ndarray]) -> Region:
    inputs: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        number, dot, rest = name.partition(".")
        many = number.isdigit() and dot
        inputs.setdefault(number if many else "", {})[rest if many else name] = array
    if set(inputs) == {""}:
        return _part(inputs[""])
    wanted = [str(i) for i in range(len(inputs))]
    if sorted(inputs, key=lambda n: (len(n), n)) != wanted:
        raise BadInput("inputs are numbered 0, 1, ... in front of every name, such as 0.Box.lower")
    return Product([_part(inputs[n]) for n in wanted])


def _part(arrays: dict[str, np.ndarray]) -> Region:
    kinds = {name.partition(".")[0] for name in arrays}
    if len(kinds) != 1 or (kind := min(kinds)) not in REGIONS or kind == "Product":
        known = ", ".join(sorted(set(REGIONS) - {"Product"}))
        raise BadInput(f"arrays are named KIND.FIELD with one KIND of {known}; "
                       f"found {', '.join(sorted(arrays)) or 'none'}")
    fields: dict[str, Any] = {name.partition(".")[2]: _plain(a) for name, a in arrays.items()}
    if {"clip.0", "clip.1"} <= set(fields):  # sides of different shapes
        fields["clip"] = (fields.pop("clip.0"), fields.pop("clip.1"))
    allowed = [f.name for f in dataclasses.fields(REGIONS[kind]) if f.name != "shape"]
    unknown, missing = set(fields) - set(allowed), set(allowed) - set(fields) - {"clip"}
    if unknown or missing:
        raise BadInput(f"{kind} has the fields {', '.join(allowed)}"
                       + "".join(f"; {name} is unknown" for name in sorted(unknown))
                       + "".join(f"; {name} is missing" for name in sorted(missing)))
    if "clip" in fields:
        fields["clip"] = _pair(kind, fields["clip"])
    try:
        found: Region = REGIONS[kind](**fields)
    except (TypeError, ValueError) as problem:
        raise BadInput(f"{kind}: {one_line(problem)}") from None
    return found


def _plain(array: Any) -> Any:
    return array.item() if np.ndim(array) == 0 else array


def _pair(kind: str, clip: Any) -> tuple[Any, Any]:
    if isinstance(clip, tuple):
        return clip
    if np.ndim(clip) == 0 or len(clip) != 2:
        raise BadInput(f"{kind}: clip must be a pair (low, high)")
    return _plain(clip[0]), _plain(clip[1])
