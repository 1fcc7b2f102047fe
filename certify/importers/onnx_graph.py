"""ONNX file -> `Graph`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from certify import ops
from certify.core.errors import (
    BadInput,
    CertifyError,
    LimitExceeded,
    Refused,
    Unsupported,
    one_line,
)
from certify.core.graph import Graph, Shape
from certify.importers.files import shown
from certify.importers.onnx_external import ExternalData
from certify.importers.onnx_fold import Known, constant
from certify.importers.onnx_proto import Model, read_model
from certify.importers.onnx_tensors import FLOATS, MOST_AXES, quoted, to_array, type_name
from certify.importers.onnx_walk import Lost, Scope, Tensors, Walk
from certify.ops.builder import LARGEST_TENSOR, Builder, Value
from certify.ops.gelu_pattern import match_gelu

_LIST_LIMIT = 160  # characters of the list of unsupported operators; leaves room for the path
_PATH_LIMIT = 70
_HINT = "see `certify supports --onnx-operators`"


def load_onnx(path: str | Path) -> Graph:
    """Reads an ONNX model (plain or gzip) as a graph over the operator registry.

    The graph describes one example: a first axis that is symbolic (or 0 or -1) becomes 1. Several
    outputs are flattened and joined in order, so the outputs ``Y_0, Y_1, ...`` of a specification
    run through all of them. Node names are the ONNX tensor names where a tensor has a node.
    An ``If`` whose condition is constant stands for the branch it takes.

    ``Graph.source`` holds ``path``, ``sha256`` (of the decompressed file), ``format``, ``opset``,
    ``dtype``, ``inputs`` and ``outputs`` (ONNX names), ``symbolic`` (whether every input's first
    axis was), ``external`` (SHA-256 by file) and ``bytes``, a self-contained model for a runtime.

    Raises:
        BadInput: missing, malformed, inconsistent, or not finite.
        Unsupported: valid, but outside what can be bounded; names every unsupported operator.
        LimitExceeded: a size beyond a stated limit.
        Refused: it would read files outside its own folder.
    """
    try:
        return _load(path)
    except CertifyError as problem:
        text = str(problem)
        name = shown(path, _PATH_LIMIT)
        prefix = "" if text.startswith(shown(path)) else f"{name}: "
        raise type(problem)(one_line(prefix + text)) from problem.__cause__


def _load(path: str | Path) -> Graph:
    ops.load()
    model = read_model(path)
    external = ExternalData(model.file.path)
    walk = Walk(model.functions)
    graph = model.proto.graph
    scope = Scope(_initializers(graph, external), model.opsets)
    values = [v for v in graph.input if v.name not in scope.known]
    for value in values:
        scope.known[value.name] = Known(walk.builder.input(_clean(value.name), _input_shape(value)))
    wanted = [value.name for value in graph.output]
    walk.run(graph.node, scope, wanted)
    if walk.missing:
        raise Unsupported(_all_missing(walk.missing))
    found = [scope.known[name] for name in wanted]
    output = _joined(walk.builder, [k.value for k in found if not isinstance(k, Lost)])
    built = walk.builder.finish(output, _source(model, external, values))
    return match_gelu(_named(built, walk.names))


def _initializers(graph: Any, external: ExternalData) -> Tensors:
    for sparse in graph.sparse_initializer:
        what = f"sparse initializer {quoted(sparse.values.name)}"
        for part in (sparse.values, sparse.indices):
            if len(part.external_data) or part.data_location == 1:
                raise Refused(f"{what}: external data is not allowed in sparse tensors")
        raise Unsupported(f"{what}: sparse tensors are not supported; store the model densely")
    return {
        tensor.name: constant(
            tensor.name, to_array(tensor, f"initializer {quoted(tensor.name)}", external)
        )
        for tensor in graph.initializer
    }


def _input_shape(value: Any) -> Shape:
    where = f"input {quoted(value.name)}"
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type not in FLOATS:
        kind = type_name(tensor.elem_type)
        raise Unsupported(f"{where} has type {kind}; only floating-point inputs have a region")
    if not tensor.HasField("shape"):
        raise Unsupported(f"{where} has no shape; export the model with static shapes")
    if len(tensor.shape.dim) > MOST_AXES:
        raise BadInput(f"{where} has {len(tensor.shape.dim)} axes; the limit is {MOST_AXES}")
    shape = tuple(_axis(dim, axis, where) for axis, dim in enumerate(tensor.shape.dim))
    if math.prod(shape) > LARGEST_TENSOR:
        raise LimitExceeded(f"{where} has shape {list(shape)}, beyond {LARGEST_TENSOR} elements")
    return shape


def _axis(dim: Any, axis: int, where: str) -> int:
    if dim.dim_value > 0:
        return int(dim.dim_value)
    if axis == 0 and dim.dim_value in (0, -1):
        return 1
    if dim.HasField("dim_value") and dim.dim_value != -1:
        raise BadInput(f"{where}: axis {axis} has size {dim.dim_value}")
    name = f" {quoted(dim.dim_param)}" if dim.dim_param else ""
    raise Unsupported(f"{where}: axis {axis} has a symbolic size{name}; export it with a fixed one")


def _symbolic(value: Any) -> bool:
    axes = value.type.tensor_type.shape.dim
    return len(axes) > 0 and axes[0].dim_value <= 0


def _joined(builder: Builder, outputs: Sequence[Value]) -> Value:
    if len(outputs) == 1:
        return outputs[0]
    builder.where = builder.prefix = "outputs"
    flat = [builder.add("reshape", v, shape=(math.prod(v.shape),)) for v in outputs]
    return builder.add("concat", *flat, axis=-1)


def _all_missing(missing: Mapping[str, Sequence[str]]) -> str:
    """Every unsupported operator in one line; the rarest details go first when space runs out."""
    entries = [
        f"{op} ({places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''})"
        for op, places in missing.items()
    ]
    text = ", ".join(entries)
    if len(text) > _LIST_LIMIT:
        text = ", ".join(missing)
    if len(text) > _LIST_LIMIT:
        kept = text[: _LIST_LIMIT - 20].split(", ")[:-1] or [text[: _LIST_LIMIT - 20]]
        text = ", ".join(kept) + f", and {len(missing) - len(kept)} more"
    return f"unsupported operator{'s' if len(missing) > 1 else ''}: {text}; {_HINT}"


def _source(model: Model, external: ExternalData, inputs: Sequence[Any]) -> dict[str, Any]:
    hashes = external.hashes()
    return {
        "path": model.file.path,
        "sha256": model.file.sha256,
        "format": "onnx",
        "opset": model.opsets[""],
        "dtype": FLOATS[inputs[0].type.tensor_type.elem_type],
        "inputs": tuple(v.name for v in inputs),
        "outputs": tuple(v.name for v in model.proto.graph.output),
        "symbolic": all(_symbolic(v) for v in inputs),
        "external": hashes,
        "bytes": _embedded(model, external) if hashes else model.file.data,
    }


def _embedded(model: Model, external: ExternalData) -> bytes:
    """The model with its external data inside, so that a runtime opens no file at all."""
    for tensor in model.proto.graph.initializer:
        if len(tensor.external_data):
            size = to_array(tensor, quoted(tensor.name), external).nbytes
            tensor.raw_data = external.read(tensor, quoted(tensor.name), size)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return bytes(model.proto.SerializeToString())


def _named(graph: Graph, names: Mapping[str, str]) -> Graph:
    """``graph`` with nodes called like the ONNX tensors they compute, as far as that is unique."""
    taken = {node.name for node in graph.nodes if node.name not in names} | set(graph.constants)
    final: dict[str, str] = {}
    for node in graph.nodes:
        label = _clean(names.get(node.name, node.name))
        if node.name in names and label in taken:
            label = node.name if node.name not in taken else label + "'"
            while label in taken:
                label += "'"
        taken.add(label)
        final[node.name] = label
    nodes = tuple(
        dataclasses.replace(
            node, name=final[node.name], inputs=tuple(final.get(i, i) for i in node.inputs),
            where=one_line(node.where),
        )
        for node in graph.nodes
    )
    return Graph(nodes, MappingProxyType(dict(graph.constants)), final[graph.output], graph.source)


def _clean(name: str) -> str:
    return one_line(name, 200)
