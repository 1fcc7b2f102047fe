"""The kinds of `Edit`, and the functions that users call to make one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from certify.core.edit import Edit
from certify.core.errors import BadInput, CertifyError, one_line
from certify.core.graph import Graph, chained

Make = Callable[[Graph, Edit], Graph]


def transformed(network: Graph, image: Any, names: str | Sequence[str]) -> Graph:
    """The network's answer to a transformed image, as a function of the parameters.

    Args:
        network: with one input of the image's size.
        image: ``(C, H, W)``, values in [0, 1].
        names: transformations, such as ``"rotate"`` or ``"scale,brightness"``; each has one
            parameter, in this order, in its own unit (see ``certify supports --transforms``).

    Returns:
        A network with one input ``(k,)``. A box of it is a range of parameters.

    Raises:
        BadInput: the image does not fit the network, or has values outside [0, 1].
        UsageError: unknown names or an impossible order.
    """
    from certify.semantic.transforms import checked_image

    said = names if isinstance(names, str) else ",".join(names)
    return edited(network, [Edit("transform", {"names": said}, {"image": checked_image(image)})])


def free_weights(network: Graph, names: Iterable[str]) -> Graph:
    """The network with some of its constants as further inputs, after its own.

    Args:
        names: of constants (``network.constants``), such as ``"fc1.weight"``.

    Returns:
        A network whose regions are `Product`s: the input's part, then one per name.

    Raises:
        BadInput: no such constant, or one in a place where a variable cannot stand.
    """
    return edited(network, [Edit("free-weights", {"names": ",".join(names)})])


def with_output(network: Graph, kind: str, **settings: Any) -> Graph:
    """The network with a function of its output appended.

    Args:
        kind: one of ``certify.semantic.outputs.OUTPUTS``.
        settings: of that kind; arrays and numbers.

    Raises:
        BadInput: unknown kind or settings that do not fit the network.
    """
    import numpy as np

    numbers = {k: v for k, v in settings.items() if isinstance(v, (int, float, str, bool))}
    arrays = {k: np.asarray(v, dtype=np.float64) for k, v in settings.items() if k not in numbers}
    return edited(network, [Edit("output", {"function": kind, **numbers}, arrays)])


def jacobian(network: Graph, rows: Any) -> Graph:
    """Gradients of rows of the output with respect to the input, ``(R, *input shape)``.

    Kinks have a step as derivative, so bounds over a region hold almost everywhere in it; see
    `certify.lipschitz` for what follows.

    Args:
        rows: coefficients ``(R, outputs)``.

    Raises:
        Unsupported: operators whose derivative has no graph; all are named.
    """
    import numpy as np

    return edited(network, [Edit("jacobian", {}, {"rows": np.asarray(rows, dtype=np.float64)})])


def edited(network: Graph, edits: Sequence[Edit]) -> Graph:
    """``network`` after ``edits``, which its ``source`` records together with the original.

    Raises:
        BadInput: an edit that is unknown or does not fit.
    """
    for edit in edits:
        make = KINDS.get(edit.kind)
        if make is None:
            raise BadInput(f"unknown edit {one_line(edit.kind, 40)!r}; known are "
                           f"{', '.join(sorted(KINDS))}")
        try:
            found = make(network, edit)
        except CertifyError:
            raise
        except (KeyError, TypeError, ValueError, IndexError) as problem:  # an edit from a file
            raise BadInput(f"edit {edit.kind!r}: {one_line(problem)}") from None
        source: Mapping[str, Any] = {
            "format": "graph",
            "dtype": network.source.get("dtype", "float32"),
            "path": network.source.get("path", ""),
            "name": network.source.get("name", ""),
            **found.source,
            "base": network,
            "edits": (*network.source.get("edits", ()), edit),
        }
        network = replace(found, source=MappingProxyType(dict(source)))
    return network


def _transform(network: Graph, edit: Edit) -> Graph:
    from certify.semantic.transforms import image_graph

    dtype = str(network.source.get("dtype", "float32"))
    front = image_graph(edit.arrays["image"], str(edit.settings["names"]).split(","), dtype)
    return chained(front, network, {"stages": (front, network)})


def _free(network: Graph, edit: Edit) -> Graph:
    from certify.semantic.weights import freed

    return freed(network, str(edit.settings["names"]).split(","))


def _output(network: Graph, edit: Edit) -> Graph:
    from certify.semantic.outputs import appended

    settings = dict(edit.settings)
    return appended(network, str(settings.pop("function")), {**settings, **edit.arrays})


def _jacobian(network: Graph, edit: Edit) -> Graph:
    from certify.semantic.derivative import jacobian_graph

    return jacobian_graph(network, edit.arrays["rows"])


KINDS: Mapping[str, Make] = MappingProxyType(
    {"transform": _transform, "free-weights": _free, "output": _output, "jacobian": _jacobian}
)
"""Every kind of edit by name."""
