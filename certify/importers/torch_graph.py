"""A torch module as a `Graph` over the module's own live parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import compress
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, OutputKind

from certify import ops
from certify.core.errors import BadInput, Unsupported
from certify.core.graph import Graph
from certify.importers.torch_calls import Problem, refuse
from certify.importers.torch_export import decompose, export
from certify.importers.torch_module import fingerprint, tensors_in
from certify.importers.torch_state import StandIns
from certify.importers.torch_walk import Walk
from certify.ops.builder import Builder, Call, Value
from certify.ops.gelu_pattern import match_gelu
from certify.ops.record import REGISTRY

_ROUNDS = 6  # decompositions of decompositions; torch nests them three deep


def from_torch(module: nn.Module, example: Any) -> Graph:
    """Import a torch module through ``torch.export``.

    The graph describes **one example exactly as the model sees it**: the example's shapes are the
    graph's shapes. A leading batch axis, a hard-coded 1 or no batch axis at all are all the same to
    the engine, which puts its own batch axes in front. Where the model wants a batch axis, give an
    example of batch 1; a larger one makes all its members one joint input.

    ``graph.constants`` holds the module's own parameters and buffers, under their state-dict names
    and as the very same objects: later optimiser steps are seen and gradients flow. Views of a
    parameter (a transpose, a slice) stay live too. A constant *computed* from the state (weight
    normalisation, an exponential of a parameter) is evaluated once, at import; ``source["frozen"]``
    maps its name to the state it derives from. `certify.importers.torch_module.check_current` tells
    whether such a graph still describes the module.

    Dropout and batch normalisation mean what they mean in evaluation mode, whatever the module's
    training flags are; the flags are left exactly as they were. ``detach`` and ``no_grad`` in the
    model's code change no value and are not honoured. Several outputs are flattened and joined into
    one vector in order; outputs that are not tensors are left out.

    Args:
        module: the model, already on its device.
        example: a tensor, or a tuple of what ``module(*example)`` takes. Tensors in it (also inside
            tuples, lists and dictionaries) become the graph's inputs, in order; anything else is
            fixed. Their values do not matter.

    Returns:
        The graph. ``source`` holds ``format`` ("torch"), ``name``, ``dtype``, ``module``,
        ``example``, ``live`` (constant to state name), ``frozen`` and ``frozen_sha256``. The hash
        of the state is left to `certify.importers.torch_module.fingerprint`, for it may change.

    Raises:
        BadInput: the module fails on the example, or an input is not of a floating-point type.
        Unsupported: some operators cannot be bounded (all are named), or the module cannot be
            traced.
    """
    if not isinstance(module, nn.Module):
        raise BadInput(f"from_torch wants a torch.nn.Module, got {type(module).__name__}")
    args = example if isinstance(example, tuple) else (example,)
    dtype = _checked_dtype(args)
    ops.load()
    program = export(module, args)
    stand_ins = StandIns(module)
    with torch.enable_grad():  # how derived constants are told from live ones
        graph = match_gelu(_imported(program, dtype, stand_ins))
    constants, live, frozen = stand_ins.settled(graph.constants)
    source = {
        "format": "torch",
        "name": type(module).__name__,
        "dtype": str(dtype).removeprefix("torch."),
        "module": module,
        "example": args,
        "live": MappingProxyType(live),
        "frozen": MappingProxyType(frozen),
        "frozen_sha256": fingerprint(module) if frozen else "",
    }
    return replace(graph, constants=MappingProxyType(constants), source=MappingProxyType(source))


def _imported(program: ExportedProgram, dtype: torch.dtype, stand_ins: StandIns) -> Graph:
    """The graph, with operators that have no record replaced by torch's own decompositions.

    Raises:
        Unsupported: some operators of the model as it was written cannot be bounded.
    """
    first: list[Problem] = []
    for _ in range(_ROUNDS):
        builder = Builder()
        builder.single = dtype is torch.float32
        walk = Walk(builder, dtype, [])
        results = walk.run(program.graph_module, list(_operands(program, builder, stand_ins)))
        if not walk.problems:
            specs = program.graph_signature.output_specs
            wanted = [spec.kind is OutputKind.USER_OUTPUT for spec in specs]
            return builder.finish(_joined(builder, list(compress(results, wanted))))
        first = first or walk.problems
        simpler = decompose(program, {p.kind for p in walk.problems if not p.reason})
        if simpler is None:
            break
        program = simpler
    raise refuse(_blamed(first, walk.problems))


def _blamed(first: list[Problem], last: list[Problem]) -> list[Problem]:
    """The model's own calls that still fail: those of the same kind, or of the same line."""
    kinds, lines = {p.kind for p in last}, {p.line for p in last}
    return [p for p in first if p.kind in kinds or p.line in lines] or first


def _checked_dtype(args: tuple[Any, ...]) -> torch.dtype:
    found = list(tensors_in(args))
    if not found:
        raise BadInput("the example holds no tensor; pass one, or a tuple of the model's inputs")
    for i, x in enumerate(found):
        if not x.is_floating_point():
            raise BadInput(
                f"input {i} of the example is {x.dtype}; only floating-point inputs can be bounded:"
                " fix it inside a wrapper module, or pass what comes after the embedding"
            )
    return found[0].dtype


def _operands(
    program: ExportedProgram, builder: Builder, stand_ins: StandIns
) -> Iterator[Any]:
    """A value for each placeholder of the exported graph, in order."""
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(nodes, program.graph_signature.input_specs, strict=True):
        if isinstance(spec.arg, ConstantArgument):
            yield spec.arg.value
        elif spec.kind is InputKind.USER_INPUT:
            yield builder.input(node.name, tuple(int(n) for n in node.meta["val"].shape))
        else:
            yield _state_value(program, spec, builder, stand_ins)


def _state_value(
    program: ExportedProgram, spec: InputSpec, builder: Builder, stand_ins: StandIns
) -> Value:
    path = spec.target or ""
    if spec.kind is InputKind.CONSTANT_TENSOR and path in program.constants:
        return builder.constant(program.constants[path], path)
    if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER):
        raise Unsupported(f"the model holds {path}, a {spec.kind.name}; only tensors are supported")
    return builder.constant(stand_ins.of(path), path)


def _joined(builder: Builder, outputs: Sequence[Any]) -> Value:
    """One output: the only one, or all of them flattened and joined."""
    found = [value for value in outputs if isinstance(value, Value)]
    if not found:
        raise BadInput("the model returns no tensor")
    if len(found) == 1:
        return found[0]
    flatten, cat = "aten.flatten.using_ints", "aten.cat.default"
    builder.prefix = builder.where = "joined outputs"
    parts = [_translated(builder, Call(v.name, flatten, (v, 0, -1), {})) for v in found]
    return _translated(builder, Call("outputs", cat, (parts, 0), {}))


def _translated(builder: Builder, call: Call) -> Value:
    translate = REGISTRY.aten[call.kind][1]
    if translate is None:
        raise Unsupported(f"{call.kind} has no translation")
    found = translate(builder, call)
    return found if isinstance(found, Value) else found[0]
