"""`evaluate`: clean, certified and attacked accuracy of a classifier, in this process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.errors import BadInput
from certify.evaluation.finding import Contradiction, Finding, Tally, tally
from certify.evaluation.plan import Plan

if TYPE_CHECKING:
    from certify.core.graph import Graph

_BLOCK = 250  # images judged together


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found.

    Attributes:
        findings: one per image, in order.
        plan: what was asked.
    """

    findings: tuple[Finding, ...]
    plan: Plan

    @cached_property
    def tally(self) -> Tally:
        """Shares in per cent."""
        return tally(self.findings)

    @property
    def clean(self) -> float:
        """Per cent classified rightly."""
        return self.tally.clean

    @property
    def certified(self) -> float:
        """Per cent classified rightly and proved so: robust accuracy is at least this."""
        return self.tally.certified

    @property
    def attacked(self) -> float:
        """Per cent classified rightly that no attack broke: robust accuracy is at most this."""
        return self.tally.attacked


def evaluate(network: Graph, x: Any, y: Any, eps: float, **options: Any) -> Evaluation:
    """Evaluate a classifier on labelled images.

    Args:
        network: from `certify.load` or `certify.from_torch`; one input, one score per class.
        x: images ``(N, ...)`` with values in [0, 1]; normalisation belongs into the network.
        y: labels ``(N,)``.
        eps: radius, in the units of ``x``.
        options: further fields of `Plan`.

    Returns:
        Accuracies and a finding for every image; certified <= attacked <= clean.

    Raises:
        BadInput: images or labels that do not fit the network.
        Contradiction: an attack broke a certified example.
        UsageError: an unknown option.
    """
    plan = Plan(eps, **options)
    images, labels = np.asarray(x, dtype=np.float32), np.asarray(y)
    check_fit(network, images, labels)
    from certify.evaluation.judge import judge

    found: list[Finding] = []
    for start in range(0, len(labels), _BLOCK):
        block = slice(start, start + _BLOCK)
        found += judge(network, images[block], labels[block], plan, start)
        refuse_contradictions(found[start:])
    return Evaluation(tuple(found), plan)


def check_fit(network: Graph, x: np.ndarray, y: np.ndarray) -> None:
    """Refuse data that the network cannot be asked about.

    Raises:
        BadInput: another number of labels or inputs, labels that are no classes, values outside
            [0, 1].
    """
    if len(network.input_shapes) != 1:
        raise BadInput(f"a classifier of images has one input, this has {len(network.inputs)}")
    size, classes = int(np.prod(network.input_shapes[0])), int(np.prod(network.output_shape))
    if x.ndim < 2 or len(x) != len(y) or y.ndim != 1 or not len(y):
        raise BadInput(f"inputs {x.shape} and labels {y.shape}: give one label per input")
    if x[0].size != size:
        raise BadInput(f"the network takes {size} values, an input has {x[0].size}")
    if y.dtype.kind not in "iu" or int(y.min()) < 0 or int(y.max()) >= classes:
        raise BadInput(f"labels from {y.min()} to {y.max()}; the network's classes are 0 to "
                       f"{classes - 1}")
    if not (x.min() >= 0 and x.max() <= 1):
        raise BadInput(f"values from {x.min():g} to {x.max():g}; they must lie in [0, 1]")


def refuse_contradictions(findings: list[Finding]) -> None:
    """Stop where an attack broke a certified example.

    Raises:
        Contradiction: names the first one.
    """
    for finding in findings:
        if finding.contradiction:
            raise Contradiction(f"{finding.contradiction}: a certificate is wrong; please report "
                                "it with the model and the image")
