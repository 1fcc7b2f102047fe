"""Walks the nodes of a checked ONNX model and builds graph nodes through the operator registry."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from certify.core.errors import BadInput, CertifyError, LimitExceeded, Unsupported, one_line
from certify.importers.onnx_attributes import (
    Attributes,
    check_schema,
    decode,
    defaults,
    schema_of,
)
from certify.importers.onnx_branches import CHOICE, chosen, initializers, reads
from certify.importers.onnx_builtin import BUILTINS, builtin
from certify.importers.onnx_checks import check_call
from certify.importers.onnx_fold import FOLDED, Known, Place, fold, folded
from certify.importers.onnx_functions import expands, schema_body
from certify.importers.onnx_proto import (
    MOST_NODES,
    OLDEST_OPSET,
    FunctionKey,
    domain_of,
    function_key,
    node_label,
    operator_key,
    opset_versions,
    ordered,
)
from certify.importers.onnx_tensors import quoted
from certify.ops.builder import Builder, Call, Value
from certify.ops.record import REGISTRY

_DEEPEST_CALL = 32
_MOST_RESULTS = 5 * MOST_NODES  # graph nodes, after operators are expanded


@dataclass(frozen=True)
class Lost:
    """What an unsupported operator would have made.

    Attributes:
        static: it would be constant, being a shape or computed from shapes.
    """

    static: bool


Tensors = dict[str, "Known | Lost"]


@dataclass(frozen=True)
class Scope:
    """Where a list of nodes lives: the model's graph, or the body of one function call.

    Attributes:
        known: tensors by name.
        opsets: operator set versions that apply here.
        attrs: attributes of the enclosing call.
        path: prefix of node names, empty at the top.
        where: the enclosing node, for messages, empty at the top.
        depth: how many calls deep this is.
    """

    known: Tensors
    opsets: Mapping[str, int]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    where: str = ""
    depth: int = 0


class Walk:
    """Builds nodes one by one; unsupported operators are collected, not raised.

    Attributes:
        builder: receives the nodes.
        names: ONNX tensor name by name of the graph node that computes it.
        missing: the places of each unsupported operator, by its type.
    """

    def __init__(self, functions: Mapping[FunctionKey, Any]) -> None:
        self.builder = Builder()
        self.names: dict[str, str] = {}
        self.missing: dict[str, list[str]] = {}
        self._functions = functions

    def run(self, nodes: Sequence[Any], scope: Scope, wanted: Sequence[str]) -> None:
        """Adds the results of ``nodes`` to ``scope.known``; ``wanted`` are read afterwards."""
        used = {name for node in nodes for name in reads(node)}.union(wanted)
        for node in ordered(nodes, set(scope.known)):
            found = [scope.known[name] if name else None for name in node.input]
            before = len(self.builder.nodes)
            operands = [k for k in found if not isinstance(k, Lost)]
            lost = len(operands) < len(found)
            results = self._lost(node, found, scope) if lost else self._node(node, operands, scope)
            if isinstance(results, Lost):
                scope.known.update((name, results) for name in node.output if name)
                continue
            if len(self.builder.nodes) > _MOST_RESULTS:
                raise LimitExceeded(f"the graph expands to more than {_MOST_RESULTS} nodes")
            for name, result in zip(node.output, results, strict=False):
                if name:
                    scope.known[name] = result
                    self._remember(scope.path + name, result, before)
            for name in node.output[len(results) :]:
                if name and name in used:
                    raise Unsupported(f"{node_label(node)}: output {quoted(name)} is not supported")

    def _remember(self, name: str, result: Known, before: int) -> None:
        fresh = {node.name for node in self.builder.nodes[before:]}
        if result.value.name in fresh:
            self.names[result.value.name] = name

    def _lost(self, node: Any, found: Sequence[Known | Lost | None], scope: Scope) -> Lost:
        """Notes an operator that is itself unsupported behind one that is."""
        key = operator_key(node)
        static = key in ("Shape", "Size") or all(
            k is None or (k.static if isinstance(k, Lost) else k.native is not None) for k in found
        )
        domain = domain_of(node.domain)
        schema = schema_of(node, scope.opsets.get(domain, 0), domain)
        known = key in REGISTRY.onnx or key in BUILTINS or function_key(node) in self._functions
        known = known or (static and key == CHOICE)
        if not (known or expands(schema) or (static and key in FOLDED)):
            self._miss(node, [k for k in found if isinstance(k, Known)], scope)
        return Lost(static)

    def _node(
        self, node: Any, operands: list[Known | None], scope: Scope
    ) -> Sequence[Known] | Lost:
        body = self._functions.get(function_key(node))
        if body is not None:
            return self._call(body, node, operands, scope)
        domain = domain_of(node.domain)
        opset = scope.opsets.get(domain, 0)
        if not domain and opset < OLDEST_OPSET:
            raise Unsupported(f"{node_label(node)}: a function uses opset {opset} < {OLDEST_OPSET}")
        schema = schema_of(node, opset, domain)
        if schema is not None:
            check_schema(node, schema)
        attrs = decode(node, scope.attrs)
        where = scope.where or node_label(node)
        place = Place(operator_key(node), opset, where, tuple(node.output))
        found = self._settled(place, operands, attrs)
        if found is not None:
            return found
        branch = chosen(place, operands, attrs) if place.op == CHOICE else None
        if branch is not None:
            return self._branch(branch, node, scope)
        if place.op in REGISTRY.onnx:
            return self._translate(node, place, operands, attrs, scope)
        body = schema_body(node, opset, operands) if not domain else None
        if body is not None:
            return self._call(body, node, operands, scope)
        self._miss(node, operands, scope)
        return Lost(static=all(k is None or k.native is not None for k in operands))

    def _settled(
        self, place: Place, operands: list[Known | None], attrs: Mapping[str, Any]
    ) -> Sequence[Known] | None:
        found = builtin(place, operands, attrs)
        if found is None and all(k is None or k.native is not None for k in operands):
            found = fold(place, operands, attrs)
        return found

    def _translate(
        self,
        node: Any,
        place: Place,
        operands: list[Known | None],
        attrs: Mapping[str, Any],
        scope: Scope,
    ) -> list[Known]:
        check_call(node.op_type, operands, attrs, place.where)
        record, translate = REGISTRY.onnx[place.op]
        builder = self.builder
        builder.where = place.where
        builder.prefix = scope.path + next((n for n in node.output if n), "v")
        inputs = tuple(None if k is None else k.value for k in operands)
        seen = Attributes(attrs)
        count = len(node.output)
        call = Call(builder.prefix, place.op, inputs, seen, place.opset, count, place.where)
        result: Value | tuple[Value, ...]
        try:
            if translate is None:
                result = builder.add(record, *inputs, name=call.name)
            else:
                result = translate(builder, call)
        except CertifyError as problem:
            raise type(problem)(f"{_located(problem, place.where)}{_shapes(operands)}") from None
        except (ValueError, TypeError, IndexError, ArithmeticError, RuntimeError) as problem:
            raise BadInput(f"{place.where}: {problem}{_shapes(operands)}") from problem
        seen.check_read(node, schema_of(node, place.opset))
        values = (result,) if isinstance(result, Value) else tuple(result)
        return [Known(v) if v.constant is None else folded(v, operands) for v in values]

    def _call(
        self, body: Any, node: Any, operands: list[Known | None], scope: Scope
    ) -> Sequence[Known] | Lost:
        """The results of a function call, its body expanded in place."""
        where = scope.where or node_label(node)
        if scope.depth >= _DEEPEST_CALL:
            raise Unsupported(f"{where}: function calls are nested too deeply")
        if len(node.input) > len(body.input) or len(node.output) > len(body.output):
            raise BadInput(f"{where}: does not fit the function it calls")
        padded = operands + [None] * (len(body.input) - len(operands))
        given = {name: k for name, k in zip(body.input, padded, strict=True) if k is not None}
        inner = Scope(
            known=dict(given),
            opsets=opset_versions(body.opset_import),
            attrs={**defaults(body, node, scope.opsets), **decode(node, scope.attrs)},
            path=f"{scope.path}{next((n for n in node.output if n), 'call')}/",
            where=where,
            depth=scope.depth + 1,
        )
        omitted = set(body.input) - set(given)
        self.run([_without(n, omitted) for n in body.node], inner, list(body.output))
        names = list(body.output[: len(node.output)])
        return self._results(names, inner, f"{where}: the function")

    def _branch(self, body: Any, node: Any, scope: Scope) -> Sequence[Known] | Lost:
        """The results of the branch that runs, in place of its ``If``."""
        where = scope.where or node_label(node)
        if scope.depth >= _DEEPEST_CALL:
            raise Unsupported(f"{where}: branches are nested too deeply")
        own = initializers(body, where)
        for name in own.keys() & scope.known.keys():
            raise BadInput(f"{where}: its branch defines {quoted(name)}, which exists already")
        path = f"{scope.path}{next((n for n in node.output if n), 'branch')}/"
        known = {**scope.known, **own}
        inner = dataclasses.replace(scope, known=known, path=path, depth=scope.depth + 1)
        names = [value.name for value in body.output]
        self.run(body.node, inner, names)
        return self._results(names, inner, f"{where}: its branch")

    def _results(self, names: Sequence[str], inner: Scope, whose: str) -> Sequence[Known] | Lost:
        results: list[Known] = []
        for name in names:
            result = inner.known.get(name)
            if result is None:
                raise BadInput(f"{whose} does not produce all its outputs")
            if isinstance(result, Lost):
                return result
            results.append(result)
        return results

    def _miss(self, node: Any, operands: Sequence[Known | None], scope: Scope) -> None:
        shapes = ", ".join(str(list(k.value.shape)) for k in operands[:3] if k is not None)
        name = node.name or next((n for n in node.output if n), "?")
        at = f" on {shapes}" if shapes else ""
        place = f"inside {scope.where}" if scope.where else f"node {quoted(name, 40)}"
        self.missing.setdefault(one_line(operator_key(node), 40), []).append(place + at)


def _without(node: Any, omitted: set[str]) -> Any:
    """``node`` with omitted optional inputs of the enclosing function left empty."""
    if not omitted.intersection(node.input):
        return node
    copy = type(node)()
    copy.CopyFrom(node)
    copy.input[:] = ["" if name in omitted else name for name in node.input]
    return copy


def _located(problem: CertifyError, where: str) -> str:
    text = str(problem)
    return text if where in text else f"{where}: {text}"


def _shapes(operands: Sequence[Known | None]) -> str:
    named = [f"{quoted(k.value.name, 30)} {list(k.value.shape)}" for k in operands if k is not None]
    return f" (operands {', '.join(named)})" if named else ""
