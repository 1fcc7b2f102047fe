"""The last word on a counterexample: the model itself, run on that very point."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from certify.core.certificate import Counterexample
from certify.core.errors import BadInput
from certify.core.graph import Graph
from certify.core.region import Region
from certify.core.spec import Spec
from certify.importers.vnnlib_cases import Case
from certify.search.membership import into_case, into_region, precision

if TYPE_CHECKING:
    from certify.importers.onnx_runtime import Runtime

_RUNTIMES: WeakKeyDictionary[Graph, Runtime] = WeakKeyDictionary()


def replay(graph: Graph, x: Any) -> np.ndarray:
    """The model's own answer at one point.

    An ONNX model is run by ONNX Runtime on the bytes that were imported; a torch model by the
    module itself, in evaluation mode, its flags exactly restored. A graph that comes from neither
    *is* the model and is evaluated in the precision it names.

    Args:
        x: all inputs, flat and joined in order; exact in the model's precision.

    Returns:
        The output, flat.

    Raises:
        BadInput: the number of elements does not fit, or the model cannot be run.
    """
    flat = np.asarray(x).reshape(-1)
    total = sum(math.prod(shape) for shape in graph.input_shapes)
    if flat.size != total:
        raise BadInput(f"{flat.size} values were given for a network with {total} inputs")
    stages: tuple[Graph, ...] = graph.source.get("stages", ())
    if stages:  # each in the precision of the model, the model itself as its users run it
        for stage in stages:
            flat = replay(stage, flat.astype(precision(str(stage.source.get("dtype", "float32")))))
        return flat
    kind = graph.source.get("format")
    if kind == "onnx":
        return _runtime(graph).run(flat)
    return _by_torch(graph, flat, module=kind == "torch")


def confirm(  # noqa: PLR0913 (the last two are only labels)
    graph: Graph,
    place: Region | Case,
    spec: Spec,
    x: Any,
    semantics: str = "real",
    *,
    case: int = 0,
    example: int = 0,
) -> Counterexample | None:
    """``x`` as a counterexample, if it is one.

    The point is moved into the region in the model's precision with zero slack (an input fixed to
    a decimal that is no such number takes the nearest), the model is run, and its output must be
    unsafe, decided exactly. In ``"real"`` semantics a point is refused when real arithmetic
    provably contradicts the model's own rounding.

    Args:
        place: a region, or a case of a property file with its exact decimal ends.
        semantics: ``"real"`` or ``"float32"``.
        case, example: kept in the result; ``example`` also picks from a batch of regions.

    Returns:
        The counterexample, or None.
    """
    dtype = precision(str(graph.source.get("dtype", "float32")))
    flat = np.asarray(x, dtype=np.float64).reshape(-1)
    shapes = list(graph.input_shapes)
    if not np.isfinite(flat).all():
        return None
    if isinstance(place, Case):
        point: np.ndarray | None = into_case(place, flat, dtype)
    else:
        point = into_region(place, shapes, example, flat, dtype)
    if point is None:
        return None
    output = np.asarray(replay(graph, point)).reshape(-1)
    if not np.isfinite(output).all() or not _unsafe(spec, point, output, example):
        return None
    verdict = _in_real_arithmetic(graph, place, spec, point, example)
    if verdict is False and semantics == "real":
        return None
    return Counterexample(_shaped(point, shapes), output, case, example, proved=verdict is True)


def _unsafe(spec: Spec, x: np.ndarray, y: np.ndarray, example: int) -> bool:
    found = spec.violated(x[None], y[None])  # one answer per example of the specification
    return bool(found[example if len(found) > 1 else 0])


def _in_real_arithmetic(
    graph: Graph, place: Region | Case, spec: Spec, x: np.ndarray, example: int
) -> bool | None:
    """Whether the exact function of the stored weights is unsafe at ``x``; None: cannot tell.

    Where the point had to leave the exact box of a property file, the whole (tiny) interval of that
    input is taken instead, so that the answer is about a point of the box.
    """
    from certify.search.exact_point import row_interval

    lower = upper = x.astype(np.float64)
    if isinstance(place, Case):
        outside = (lower < place.inner_lower) | (lower > place.inner_upper)
        low, high = (
            np.asarray(e, dtype=np.float64).reshape(-1) for e in (place.box.lower, place.box.upper)
        )
        lower, upper = np.where(outside, low, lower), np.where(outside, high, upper)
    spec = spec.only(example)
    least, most = row_interval(graph, lower, upper, spec)
    rows = spec.rows()
    never = np.where(rows.strict, least >= rows.bound, least > rows.bound)
    rounded = np.array([c.exact is not None for c in spec.clauses])[rows.group]
    threshold = np.where(rounded, np.nextafter(rows.bound, -np.inf), rows.bound)
    always = np.where(rows.strict, most < threshold, most <= threshold)
    starts = np.searchsorted(rows.group, np.arange(len(spec.clauses)))
    if np.logical_and.reduceat(always, starts).any():
        return True
    return False if np.logical_or.reduceat(never, starts).all() else None


def _runtime(graph: Graph) -> Runtime:
    from certify.importers.onnx_runtime import Runtime

    if graph not in _RUNTIMES:
        _RUNTIMES[graph] = Runtime(graph)
    return _RUNTIMES[graph]


def _by_torch(graph: Graph, flat: np.ndarray, module: bool) -> np.ndarray:
    import torch

    from certify.bounds.evaluate import evaluate
    from certify.importers.torch_module import evaluate_module, tensors_in

    wanted = (
        torch.float64 if precision(str(graph.source.get("dtype"))) == np.float64 else torch.float32
    )
    likes = list(tensors_in(graph.source["example"])) if module else [torch.empty(0, dtype=wanted)]
    shaped = _shaped(flat, list(graph.input_shapes))
    inputs = [
        torch.from_numpy(a).to(like)
        for a, like in zip(shaped, itertools.cycle(likes), strict=False)
    ]
    for given, moved in zip(shaped, inputs, strict=True):
        if not np.array_equal(moved.double().cpu().numpy(), given.astype(np.float64)):
            raise BadInput(f"the point is not exact in the model's {moved.dtype}: round it first")
    with torch.no_grad():
        if module:
            found = evaluate_module(graph, *inputs)
        else:
            found = evaluate(graph, *(x.unsqueeze(0) for x in inputs))
    found = found.detach().cpu()
    return (
        (found if found.dtype in (torch.float16, torch.float32) else found.double())
        .numpy()
        .reshape(-1)
    )


def _shaped(flat: np.ndarray, shapes: list[tuple[int, ...]]) -> tuple[np.ndarray, ...]:
    stops = np.cumsum([0, *(math.prod(s) for s in shapes)])
    return tuple(
        flat[a:b].reshape(s).copy()
        for (a, b), s in zip(itertools.pairwise(stops), shapes, strict=True)
    )
