"""`evaluate_quantised`: which labels survive every rounding of the weights to an integer format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from certify.bounds.decide import Means, Question, decide
from certify.core.certificate import Certificate
from certify.core.errors import BadInput
from certify.core.graph import Graph
from certify.core.region import Linf, Product
from certify.core.spec import Spec
from certify.ops.builder import as_numpy
from certify.semantic.edits import free_weights
from certify.semantic.quantise import rounded, steps

_AT_ONCE = 16
_UP = 1 + 2.0**-40  # half a step, divided with rounding, is at most this much too small
LADDER = ("ibp", "crown-ibp", "crown", "alpha")


@dataclass(frozen=True)
class Rounding:
    """What is known about one input at one number of bits.

    Attributes:
        index, label: of the input; bits: of the weights.
        predicted: the network's own label; rounded: that of the network rounded to nearest.
        certified: the label is proved for every weight within half a step, and every input within
            ``eps``.
        margin: proved lower bound of the margin over the other labels; -inf for none.
    """

    index: int
    label: int
    bits: int
    predicted: int
    rounded: int
    certified: bool
    margin: float


def weight_region(network: Graph, x: Any, bits: int, eps: float = 0.0,
                  per_channel: bool = True) -> tuple[Graph, Product]:
    """The network over (input, weights), and the region of all roundings.

    Args:
        x: ``(B, *input)``.
        bits: of the weights; every weight may be off by half a step.
        eps: radius of the inputs, in the norm of the largest element.

    Raises:
        UsageError: bits out of range.
        Unsupported: weights that cannot be inputs.
    """
    size = steps(network, bits, per_channel)
    if not size:
        raise BadInput("the network has no weights of linear layers or convolutions")
    graph = free_weights(network, size)
    shapes = graph.input_shapes
    parts: list[Any] = [Linf(np.asarray(x, dtype=np.float64).reshape(-1, *shapes[0]), eps)]
    for name, step in size.items():
        weight = as_numpy(network.constants[name]).astype(np.float64)
        radius = np.broadcast_to(step * (_UP / 2), weight.shape)
        parts.append(Linf(weight[None], radius))
    return graph, Product(parts).batched(shapes)


def evaluate_quantised(network: Graph, x: Any, labels: Any, bits: Sequence[int],
                       eps: float = 0.0, methods: Sequence[str] = LADDER[:3]) -> list[Rounding]:
    """Certify labels against rounding of the weights, and compare with the rounded network.

    Args:
        x, labels: ``(N, *input)`` and ``(N,)``.
        bits: numbers of bits to try.
        eps: radius of the inputs, jointly with the weights.
        methods: tried in this order on what is open.

    Returns:
        One finding per input and number of bits.

    An input whose label the rounded network changes is not tried: there is nothing to prove.
    """
    inputs = np.asarray(x, dtype=np.float64).reshape(-1, *network.input_shapes[0])
    wanted = np.asarray(labels).astype(np.int64)
    if len(inputs) != len(wanted):
        raise BadInput(f"{len(inputs)} inputs and {len(wanted)} labels do not fit")
    classes = math.prod(network.output_shape)
    means, found = Means(), list[Rounding]()
    clean = _labels(network, inputs)
    for count in bits:
        after = _labels(rounded(network, steps(network, count)), inputs)
        margins = np.full(len(inputs), -np.inf)
        for method in methods:
            open_ = np.flatnonzero(~(margins > 0) & (clean == wanted) & (after == wanted))
            for start in range(0, len(open_), _AT_ONCE):
                part = open_[start:start + _AT_ONCE]
                graph, region = weight_region(network, inputs[part], count, eps)
                rows = Spec.classify(wanted[part], classes).rows()
                bound = np.broadcast_to(rows.bound, (len(part), classes - 1)).copy()
                decision = decide(graph, Question(region, rows, bound), method, means)
                margins[part] = np.where(decision.proved, decision.margins.min(axis=1), -np.inf)
        found += [Rounding(i, int(wanted[i]), count, int(clean[i]), int(after[i]),
                           bool(margins[i] > 0), float(margins[i])) for i in range(len(inputs))]
    return found


def certify_quantised(network: Graph, x: Any, label: int, bits: int, eps: float = 0.0,
                      timeout: float = 60.0) -> Certificate:
    """A certificate about one input and all roundings of the weights; as `certify.verify`."""
    from certify.verify import verify

    graph, region = weight_region(network, np.asarray(x)[None], bits, eps)
    return verify(graph, region, Spec.classify(label, math.prod(network.output_shape)), timeout)


def _labels(network: Graph, inputs: np.ndarray) -> np.ndarray:
    import torch

    from certify.bounds.evaluate import evaluate

    with torch.no_grad():
        y = evaluate(network, torch.from_numpy(inputs)).reshape(len(inputs), -1)
    found: np.ndarray = y.argmax(1).numpy()
    return found
