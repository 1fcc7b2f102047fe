"""Walks an exported graph: constants are computed by torch, the rest becomes nodes of ours."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from certify.core.errors import BadInput, LimitExceeded, Unsupported, one_line
from certify.importers.torch_calls import (
    Problem,
    loses_precision,
    place,
    positional,
    source_line,
    tensor_operands,
)
from certify.ops.builder import Builder, Call, Value
from certify.ops.record import REGISTRY

_TRANSPARENT = {  # regions that change no value, and the position of the function they run
    "wrap_with_set_grad_enabled": 1,
    "wrap_with_autocast": 4,
}
_SHAPE_ONLY = {
    f"aten.{name}.default"
    for name in ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
}
_IDENTITY = {"aten.detach.default", "aten.detach_.default", "aten.alias.default"}


class _Failed:
    """What a call that could not be imported leaves behind."""


_FAILED = _Failed()


@dataclass(frozen=True)
class Walk:
    """Walks exported graphs, adding to ``builder`` and to ``problems``."""

    builder: Builder
    dtype: torch.dtype
    problems: list[Problem]

    def run(self, module: fx.GraphModule, operands: Sequence[Any]) -> list[Any]:
        """The values of a graph module's outputs for the given placeholder values."""
        values: dict[fx.Node, Any] = {}
        given = iter(operands)
        output = module.graph.output_node()
        needed = _needed(output)

        def resolve(argument: Any) -> Any:
            if isinstance(argument, fx.Node):
                return values[argument]
            if isinstance(argument, (list, tuple)):
                return [resolve(part) for part in argument]
            return argument

        for node in module.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr" and node in needed:
                values[node] = getattr(module, str(node.target))
                if isinstance(values[node], Tensor):
                    values[node] = self.builder.constant(values[node], node.name)
            elif node.op == "call_function" and node in needed:
                values[node] = self._call(node, resolve)
        found = resolve(output.args[0])
        return list(found) if isinstance(found, (list, tuple)) else [found]

    def _call(self, node: fx.Node, resolve: Callable[[Any], Any]) -> Any:
        kind, inputs = str(node.target), positional(node, resolve)
        flat = list(_flat(inputs))
        if kind in _TRANSPARENT and not (kind == "wrap_with_autocast" and inputs[2]):
            at = _TRANSPARENT[kind]
            return self.run(inputs[at], inputs[at + 1 :])
        if node.target is operator.getitem:
            return self._part(node, *inputs)
        if kind in _IDENTITY:
            return inputs[0]
        varies = any(isinstance(v, Value) and v.constant is None for v in flat)
        failed = any(v is _FAILED for v in flat)
        if kind in _SHAPE_ONLY or (not varies and not failed and not _random(node)):
            return self._fold(node, resolve)
        if kind not in REGISTRY.aten:
            reason = "" if varies or failed else "random numbers; the model is not one function"
            return self._fail(node, reason)
        return _FAILED if failed else self._translate(node, inputs)

    def _part(self, node: fx.Node, whole: Any, index: int) -> Any:
        """One result of a call that has several."""
        if whole is _FAILED or index < len(whole):
            return whole if whole is _FAILED else whole[index]
        return self._fail(cast(fx.Node, node.args[0]), f"its result {index} is not supported")

    def _translate(self, node: fx.Node, inputs: tuple[Any, ...]) -> Any:
        kind = str(node.target)
        self.builder.prefix, self.builder.where = node.name, place(node)
        if any(not isinstance(n, int) for shape in _shapes(node) for n in shape):
            return self._fail(node, "the shape of its result depends on the values of a tensor")
        reason = loses_precision(node, self.dtype)
        if reason:
            return self._fail(node, reason)
        record, translate = REGISTRY.aten[kind]
        count, where = len(_shapes(node)), self.builder.where
        call = Call(node.name, kind, inputs, {}, outputs=count, where=where)
        try:
            if translate is not None:
                found = translate(self.builder, call)
            else:
                operands = tensor_operands(node, inputs)
                found = self.builder.add(record, *self._aligned(operands), name=node.name)
        except LimitExceeded:
            raise
        except (Unsupported, BadInput) as problem:
            return self._fail(node, str(problem).removeprefix(where).lstrip(": "))
        except (ValueError, TypeError, IndexError, ArithmeticError, RuntimeError) as problem:
            return self._fail(node, one_line(problem, 100))
        return self._checked(node, found)

    def _aligned(self, operands: list[Value | None]) -> Sequence[Value | None]:
        present = [v for v in operands if v is not None]
        return self.builder.broadcast(*present) if len(present) == len(operands) > 1 else operands

    def _checked(self, node: fx.Node, found: Any) -> Any:
        """``found``, if its shapes are those that torch computed."""
        several = isinstance(node.meta.get("val"), (list, tuple))
        values = [found] if isinstance(found, Value) else list(found)
        for value, shape in zip(values, _shapes(node), strict=False):
            if value.shape != shape:
                return self._fail(node, f"imported with shape {value.shape}, not torch's {shape}")
        return values if several else values[0]

    def _fold(self, node: fx.Node, resolve: Callable[[Any], Any]) -> Any:
        """The result of a call that needs no variable's values, computed by torch itself."""
        args = _unwrapped(resolve(node.args))
        if str(node.target) in _SHAPE_ONLY:
            like = cast(fx.Node, node.args[0]).meta["val"]
            args[0] = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        keywords = {key: _unwrapped(resolve(value)) for key, value in node.kwargs.items()}
        try:
            result = cast(Callable[..., Any], node.target)(*args, **keywords)
        except RuntimeError as problem:  # some calls cannot be differentiated, so not be tracked
            return self._fail(node, one_line(problem, 100))
        return self._wrapped(node.name, result)

    def _wrapped(self, name: str, result: Any) -> Any:
        if isinstance(result, Tensor):
            return self.builder.constant(result, name)
        if isinstance(result, (list, tuple)):
            return [self._wrapped(f"{name}_{i}", part) for i, part in enumerate(result)]
        return result

    def _fail(self, node: fx.Node, reason: str = "") -> _Failed:
        self.problems.append(Problem(str(node.target), node.name, *source_line(node), reason))
        return _FAILED


def _needed(output: fx.Node) -> set[fx.Node]:
    """The nodes an output depends on; the rest are assertions and dead code."""
    found, stack = {output}, [output]
    while stack:
        for source in stack.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                stack.append(source)
    return found


def _random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _shapes(node: fx.Node) -> list[tuple[Any, ...]]:
    """The shapes of a node's results, as torch computed them."""
    found = node.meta.get("val")
    parts = found if isinstance(found, (list, tuple)) else [found]
    return [tuple(part.shape) for part in parts if isinstance(part, Tensor)]


def _flat(inputs: Sequence[Any]) -> Iterator[Any]:
    for part in inputs:
        if isinstance(part, list):
            yield from _flat(part)
        else:
            yield part


def _unwrapped(part: Any) -> Any:
    if isinstance(part, Value):
        return part.constant
    if isinstance(part, (list, tuple)):
        return [_unwrapped(value) for value in part]
    return part
