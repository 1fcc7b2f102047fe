"""An ONNX file -> a decoded protobuf whose structure has been checked.

Nothing here interprets an operator. What leaves `read_model` is a graph whose names are unique,
whose nodes are in topological order, and whose expansion stays below a stated number of nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any

from certify.core.errors import BadInput, LimitExceeded, Unsupported, one_line
from certify.importers.files import Contents, read_file
from certify.importers.onnx_branches import bodies, nested, reads
from certify.importers.onnx_tensors import quoted

MOST_NODES = 20_000
OLDEST_OPSET = 7  # before it, broadcasting and Dropout had other meanings
_GRAPH_FIELD = 7  # ModelProto.graph
_LENGTH_DELIMITED = 2

FunctionKey = tuple[str, str, str]


@dataclass(frozen=True)
class Model:
    """A structurally sound ONNX model.

    Attributes:
        file: where it came from.
        proto: the ``ModelProto``.
        opsets: version by domain; the default domain is ``""``.
        functions: model-local functions by (domain, name, overload).
    """

    file: Contents
    proto: Any
    opsets: Mapping[str, int]
    functions: Mapping[FunctionKey, Any]


def read_model(path: str | Path) -> Model:
    """Reads and checks an ONNX file (plain or gzip).

    Raises:
        BadInput: not ONNX, or inconsistent.
        Unsupported: a version or feature outside what is supported.
        LimitExceeded: too large, or too many nodes.
    """
    file = read_file(path)
    proto = _decode(file.data)
    if not proto.HasField("graph"):
        raise BadInput("the model has no graph")
    if not proto.graph.node and not proto.graph.input:
        raise BadInput("the graph is empty")
    if any(isinstance(text, bytes) for text in _texts(proto)):  # how protobuf hands those out
        raise BadInput("a name in the file is not valid UTF-8")
    opsets = _versions(proto)
    functions = _functions(proto)
    _check_size(proto.graph, functions)
    _check_names(proto.graph)
    return Model(file, proto, opsets, functions)


def function_key(node: Any) -> FunctionKey:
    """The model-local function a node would call."""
    return domain_of(node.domain), node.op_type, getattr(node, "overload", "")


def node_label(node: Any) -> str:
    """``node 'name' (OpType)``; the first output stands in for a missing name."""
    name = node.name or next((n for n in node.output if n), "?")
    return f"node {quoted(name)} ({one_line(node.op_type, 40)})"


def ordered(nodes: Sequence[Any], known: set[str]) -> Iterator[Any]:
    """``nodes`` in topological order, keeping the file's order where it is one already.

    Raises:
        BadInput: a name is defined twice, never, or in a cycle.
    """
    makers = _makers(nodes, known)
    waiting: dict[int, int] = {}
    readers: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        needed = {name for name in reads(node) if name not in known}
        for name in needed:
            if name not in makers:
                raise BadInput(f"{node_label(node)} reads {quoted(name)}, which nothing defines")
            readers.setdefault(name, []).append(i)
        waiting[i] = len(needed)
    ready = [i for i, count in waiting.items() if not count]
    heapify(ready)
    done = 0
    while ready:
        node = nodes[heappop(ready)]
        done += 1
        yield node
        for name in node.output:
            for i in readers.get(name, ()):
                waiting[i] -= 1
                if not waiting[i]:
                    heappush(ready, i)
    if done < len(nodes):
        stuck = next(nodes[i] for i, count in waiting.items() if count)
        raise BadInput(f"the graph has a cycle through {node_label(stuck)}")


def _makers(nodes: Sequence[Any], known: set[str]) -> set[str]:
    made: set[str] = set()
    for node in nodes:
        for name in filter(None, node.output):
            if name in made or name in known:
                raise BadInput(f"{node_label(node)} defines {quoted(name)}, which exists already")
            made.add(name)
    return made


def _decode(data: bytes) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    if not data:
        raise BadInput("the file is empty, not an ONNX model")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as problem:
        if "depth" in str(problem).lower():
            raise Unsupported("not readable as ONNX: messages are nested too deeply") from None
        raise BadInput("not an ONNX model, or a damaged one: it does not decode") from None
    except RecursionError:
        raise Unsupported("not readable as ONNX: messages are nested too deeply") from None
    before = proto.ByteSize()
    proto.DiscardUnknownFields()
    if proto.ByteSize() != before:
        raise BadInput("the file holds data that is not part of the ONNX format")
    if _count_field(data, _GRAPH_FIELD) > 1:
        raise BadInput("two ONNX models in one file: it has more than one graph")
    return proto


def _texts(proto: Any) -> Iterator[str | bytes]:
    """Every text of the file that is ever looked at."""
    yield from (entry.domain for entry in proto.opset_import)
    yield from _graph_texts(proto.graph)
    for function in proto.functions:
        yield from (function.name, function.domain, getattr(function, "overload", ""))
        yield from (*function.input, *function.output, *function.attribute)
        yield from (entry.domain for entry in function.opset_import)
        yield from (attribute.name for attribute in function.attribute_proto)
        yield from _node_texts(function.node)


def _graph_texts(graph: Any) -> Iterator[str | bytes]:
    for value in (*graph.input, *graph.output):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)
    yield from _node_texts(graph.node)


def _node_texts(nodes: Sequence[Any]) -> Iterator[str | bytes]:
    for node in nodes:
        for body in bodies(node):
            yield from _graph_texts(body)
        yield from (node.op_type, node.domain, node.name, getattr(node, "overload", ""))
        yield from (*node.input, *node.output)
        for attribute in node.attribute:
            yield from (attribute.name, attribute.ref_attr_name)


def _count_field(data: bytes, wanted: int) -> int:
    """How often a top-level length-delimited field occurs; protobuf would merge repetitions."""
    at, found = 0, 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == _LENGTH_DELIMITED:
            size, at = _varint(data, at)
            at += size
        elif tag & 7 == 0:
            _, at = _varint(data, at)
        else:
            at += 8 if tag & 7 == 1 else 4
        found += tag >> 3 == wanted
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            break
    return value, at


def domain_of(name: str) -> str:
    """An operator domain; the default one is the empty string."""
    return "" if name == "ai.onnx" else name


def operator_key(node: Any) -> str:
    """The registry's name of an operator: outside the default domain it has the domain in front."""
    domain = domain_of(node.domain)
    return f"{domain}.{node.op_type}" if domain else str(node.op_type)


def _versions(proto: Any) -> dict[str, int]:
    import onnx

    if not 1 <= proto.ir_version <= onnx.IR_VERSION:
        raise Unsupported(
            f"IR version (ir_version) {proto.ir_version} is outside 1 to {onnx.IR_VERSION}"
        )
    opsets = opset_versions(proto.opset_import)
    newest = onnx.defs.onnx_opset_version()
    if "" not in opsets:
        raise BadInput("no opset_import for the ONNX operators")
    if opsets[""] < 1:
        raise BadInput(f"opset {opsets['']} does not exist")
    if not OLDEST_OPSET <= opsets[""] <= newest:
        raise Unsupported(
            f"opset {opsets['']} is outside {OLDEST_OPSET} to {newest}; "
            "onnx.version_converter can change it"
        )
    return opsets


def opset_versions(entries: Any) -> dict[str, int]:
    """Operator set version by domain.

    Raises:
        BadInput: two versions for one domain.
    """
    opsets: dict[str, int] = {}
    for entry in entries:
        domain = domain_of(entry.domain)
        if opsets.setdefault(domain, entry.version) != entry.version:
            raise BadInput(f"two different opset versions for domain {quoted(domain)}")
    return opsets


def _functions(proto: Any) -> dict[FunctionKey, Any]:
    found: dict[FunctionKey, Any] = {}
    for function in proto.functions:
        key = (domain_of(function.domain), function.name, getattr(function, "overload", ""))
        if key in found:
            raise BadInput(f"model-local function {quoted(function.name)} is defined twice")
        found[key] = function
    return found


def _check_size(graph: Any, functions: Mapping[FunctionKey, Any]) -> None:
    """Counts nodes after expanding functions, without expanding any."""
    _limit(sum(1 for _ in nested(graph.node)))
    sizes: dict[FunctionKey, int] = {}
    for root in functions:
        stack = [root]
        open_calls: set[FunctionKey] = set()
        while stack:
            key = stack[-1]
            calls = [function_key(node) for node in nested(functions[key].node)]
            inner = {k for k in calls if k in functions}
            missing = [k for k in inner if k not in sizes]
            if key in sizes or not missing:
                sizes[key] = min(MOST_NODES + 1, sum(sizes.get(k, 1) for k in calls))
                open_calls.discard(stack.pop())
            elif key in open_calls:  # its callees were on top of it and still have no size
                raise Unsupported(f"model-local function {quoted(key[1])} calls itself")
            else:
                open_calls.add(key)
                stack += missing
    _limit(sum(sizes.get(function_key(node), 1) for node in nested(graph.node)))


def _limit(count: int) -> None:
    if count > MOST_NODES:
        raise LimitExceeded(f"the graph has {count} nodes; the limit is {MOST_NODES}")


def _check_names(graph: Any) -> None:
    names: set[str] = set()
    tensors = [t.name for t in graph.initializer]
    tensors += [t.values.name for t in graph.sparse_initializer]
    for kind, listed in (("initializer", tensors), ("input", [v.name for v in graph.input])):
        seen: set[str] = set()
        for name in listed:
            if not name or name in seen:
                found = f"two {kind}s are called {quoted(name)}"
                raise BadInput(found if name else f"an {kind} has no name")
            seen.add(name)
        names |= seen
    if all(v.name in set(tensors) for v in graph.input):
        raise BadInput("the graph has no input")
    if not graph.output:
        raise BadInput("the graph has no output")
    for node in graph.node:
        names.update(filter(None, node.output))
    for value in graph.output:
        if value.name not in names:
            raise BadInput(f"output {quoted(value.name)} is never produced")
