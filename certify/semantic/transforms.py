"""Image transformations by name: `TRANSFORMS`, and the graph from parameters to an image.

Images are ``(C, H, W)`` with values in [0, 1]. A transformation is declared once, with the function
that adds its nodes to a graph; the command line, the tests and the documentation read the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from certify.core.errors import BadInput, UsageError
from certify.core.graph import Graph
from certify.core.registry import enter
from certify.ops import load
from certify.ops.builder import Builder, Value

Pixels = Callable[[Builder, Value, Value], Value]  # (builder, image, parameter) -> image
Coordinates = Callable[[Builder, Value, Value, Value], tuple[Value, Value]]


@dataclass(frozen=True)
class Transform:
    """One transformation with one parameter.

    Attributes:
        name: as users write it.
        unit: of the parameter, for people.
        identity: the parameter that changes nothing.
        pixels: adds the nodes that change pixel values, or None.
        coordinates: adds the nodes of the *inverse* map of coordinates ``(builder, u, v,
            parameter) -> (u, v)``, in pixels from the centre, u to the right and v up; or None.
        typical: a range that makes sense, for tests and documentation.
        summary: one line.
    """

    name: str
    unit: str
    identity: float
    typical: tuple[float, float]
    summary: str
    pixels: Pixels | None = None
    coordinates: Coordinates | None = None

    @property
    def geometric(self) -> bool:
        """Whether it moves pixels rather than changing their values."""
        return self.coordinates is not None


TRANSFORMS: dict[str, Transform] = {}
"""Every transformation by name."""


def register(transform: Transform) -> Transform:
    """Enter a transformation.

    Raises:
        ValueError: the name is taken.
    """
    return enter(TRANSFORMS, transform.name, transform, "transformation")


def named(names: Sequence[str]) -> tuple[Transform, ...]:
    """The transformations called ``names``, in that order.

    Raises:
        UsageError: an unknown name (all are listed), none, or one twice.
    """
    from certify.semantic import colour, geometry, light  # noqa: F401  register theirs

    unknown = [n for n in names if n not in TRANSFORMS]
    if unknown or not names:
        what = f"no transformation {unknown[0]!r}" if unknown else "no transformation given"
        raise UsageError(f"{what}; choose from {', '.join(sorted(TRANSFORMS))}")
    if len(set(names)) < len(names):
        raise UsageError(f"a transformation is given twice in {', '.join(names)}")
    return tuple(TRANSFORMS[n] for n in names)


def image_graph(image: Any, names: Sequence[str], dtype: str = "float64") -> Graph:
    """The transformed image as a function of the parameters: ``(k,) -> (C, H, W)``.

    Geometric transformations act on the image first, in the order given (one interpolation of
    their composition, zeros outside), then the others in theirs, each limited to [0, 1].

    Args:
        image: ``(C, H, W)``, values in [0, 1].
        names: of transformations; one parameter each, in this order.
        dtype: the precision in which a counterexample is to be computed.

    Raises:
        BadInput: the image has another shape or range.
        UsageError: unknown names, or a geometric transformation after one of values.
    """
    load()
    chosen = named(names)
    pixels = checked_image(image)
    kinds = [t.geometric for t in chosen]
    if kinds != sorted(kinds, reverse=True):
        raise UsageError("geometric transformations come before those of values: write for "
                         "example rotate,brightness")
    b = Builder()
    b.prefix = "image"
    parameters = b.input("parameters", (len(chosen),))
    each = [b.add("gather", parameters, indices=np.array([i]), axis=-1)
            for i in range(len(chosen))]
    value = b.constant(pixels, "image")
    moves = [(t.coordinates, p) for t, p in zip(chosen, each, strict=True)
             if t.coordinates is not None]
    if moves:
        from certify.semantic.geometry import resampled

        value = resampled(b, value, moves)
    for transform, parameter in zip(chosen, each, strict=True):
        if transform.pixels is not None:
            value = transform.pixels(b, value, parameter)
    return b.finish(value, {"format": "graph", "dtype": dtype, "name": "+".join(names)})


def checked_image(image: Any) -> np.ndarray:
    """``image`` as float64 ``(C, H, W)``.

    Raises:
        BadInput: another shape, or values outside [0, 1].
    """
    pixels = np.array(image, dtype=np.float64)
    if pixels.ndim != 3 or pixels.size == 0:
        raise BadInput(f"an image must have shape (channels, height, width), not {pixels.shape}")
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise BadInput(f"image values reach from {pixels.min():g} to {pixels.max():g}; "
                       "transformations are about values in [0, 1]: divide by 255, and leave the "
                       "normalisation to the network")
    return pixels


def over(b: Builder, parameter: Value, rank: int = 3) -> Value:
    """A parameter ``(1,)`` shaped to meet an image."""
    return b.align(parameter, rank)
