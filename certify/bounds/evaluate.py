"""Runs a graph on points: the meaning every bound is measured against."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from certify.bounds.program import Program, prepare
from certify.core.errors import BadInput
from certify.core.graph import Graph


def evaluate(graph: Graph, *inputs: Tensor) -> Tensor:
    """The graph's output at points.

    Args:
        inputs: one tensor per model input, ``(N, *input shape)``; precision and device are theirs.

    Returns:
        ``(N, *output shape)``. Differentiable in the inputs and in live parameters.
    """
    program = prepare(graph, inputs[0].dtype, inputs[0].device)
    return run(program, inputs)[program.output]


def run(program: Program, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Every node's value at points, by index of the program's steps.

    Raises:
        BadInput: wrong number or shape of inputs.
    """
    values: list[Any] = [None] * len(program.steps)
    if len(inputs) != len(program.inputs):
        raise BadInput(f"the model has {len(program.inputs)} inputs, {len(inputs)} were given")
    for index, x in zip(program.inputs, inputs, strict=True):
        shape = program.shape(index)
        if tuple(x.shape[1:]) != shape:
            raise BadInput(
                f"input {program.graph.nodes[index].name!r} has shape {tuple(x.shape[1:])}"
                f" after the batch axis; the model wants {shape}"
            )
        values[index] = x
    count = inputs[0].shape[0]
    for step in program.steps:
        if step is not None:
            y = step.op.forward(step.site, *step.operands(values))
            values[step.index] = (
                y if y.dim() > len(step.site.shape) else y.expand(count, *step.site.shape)
            )
    return values


__all__ = ["evaluate", "run"]
