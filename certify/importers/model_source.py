"""A model as a command line names it: an ONNX file, or weights and the function that builds it."""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from certify.core.errors import BadInput, UsageError, one_line
from certify.importers.files import read_file, shown
from certify.importers.model_file import ONNX_ENDINGS

if TYPE_CHECKING:
    from torch import nn

    from certify.core.graph import Graph


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from. Nothing in a file is executed; a factory is the caller's own code.

    Attributes:
        path: an ONNX file, or a checkpoint as `certify.load_weights` reads it.
        factory: ``"package.module:function"``; called without arguments, it returns the
            ``torch.nn.Module`` that a checkpoint's weights belong to. Names are looked up in the
            current folder, too.
    """

    path: str
    factory: str | None = None

    def __post_init__(self) -> None:
        if self.is_onnx and self.factory is not None:
            raise UsageError("an ONNX file needs no factory: it holds the whole network")
        if not self.is_onnx and self.factory is None:
            raise UsageError(f"{shown(self.path)}: holds weights, not a network; name the function "
                             "that builds the module with --factory package.module:function, or "
                             "give an ONNX file")

    @property
    def is_onnx(self) -> bool:
        """Whether the file holds a network, and not weights alone."""
        return self.path.lower().endswith(ONNX_ENDINGS)

    def digest(self) -> str:
        """What results depend on: the file's SHA-256, and the name of the factory."""
        data = f"{read_file(self.path).sha256} {self.factory or ''}"
        return hashlib.sha256(data.encode()).hexdigest()

    def module(self) -> nn.Module:
        """The torch module with its weights, in evaluation mode.

        Raises:
            UsageError: it is an ONNX file, or the factory cannot be found.
            BadInput: the factory fails or makes no module, or the weights do not fit it.
        """
        if self.factory is None:
            raise UsageError(f"{shown(self.path)}: an ONNX file is no torch module; give a "
                             "checkpoint and --factory")
        return filled(built(self.factory), self.path)

    def graph(self, shape: tuple[int, ...]) -> Graph:
        """The network, for inputs of ``shape`` (one input, without a batch axis).

        Raises:
            BadInput: the model is malformed, or takes other inputs.
            Unsupported: operators that cannot be bounded.
        """
        if self.is_onnx:
            from certify.importers.model_file import load

            return fitting(load(self.path), shape, self.path)
        import torch

        from certify.importers.torch_graph import from_torch

        graph = from_torch(self.module(), torch.zeros(1, *shape))
        source = {**graph.source, "path": self.path}
        return fitting(replace(graph, source=MappingProxyType(source)), shape, self.path)


def fitting(graph: Graph, shape: tuple[int, ...], path: str) -> Graph:
    """``graph``, once it is clear that it classifies inputs of ``shape``.

    Raises:
        BadInput: it has several inputs, or one of another size, or fewer than two outputs.
    """
    name = shown(path)
    if len(graph.input_shapes) != 1:
        raise BadInput(f"{name}: has {len(graph.input_shapes)} inputs; one is wanted, the image")
    there = graph.input_shapes[0]
    if math.prod(there) != math.prod(shape):
        raise BadInput(f"{name}: takes inputs of shape {there}, the data have {shape}")
    if math.prod(graph.output_shape) < 2:
        raise BadInput(f"{name}: has {math.prod(graph.output_shape)} outputs; a classifier has at "
                       "least 2")
    return graph


def built(factory: str) -> nn.Module:
    """What the function called ``"package.module:function"`` returns.

    Raises:
        UsageError: there is no such function.
        BadInput: it fails, or returns something else than a module.
    """
    from torch import nn

    module, colon, name = factory.partition(":")
    if not (colon and module and name):
        raise UsageError(f"--factory {one_line(factory, 80)!r} is not package.module:function")
    try:
        with _current_folder():
            function: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as problem:
        raise UsageError(f"--factory {one_line(factory, 80)}: {one_line(problem, 150)}") from None
    try:
        found = function()
    except Exception as problem:
        raise BadInput(f"the factory {one_line(factory, 80)} failed: {type(problem).__name__}: "
                       f"{one_line(problem, 150)}") from problem
    if not isinstance(found, nn.Module):
        raise BadInput(f"the factory {one_line(factory, 80)} returned a "
                       f"{one_line(type(found).__name__, 60)}, not a torch.nn.Module")
    return found


def filled(module: nn.Module, path: str | Path) -> nn.Module:
    """``module`` with the weights in a file, in evaluation mode.

    Raises:
        BadInput: weights are missing, left over, or of another shape.
        Refused, LimitExceeded, Unsupported: as `certify.load_weights`.
    """
    import torch

    from certify.importers.checkpoints import load_weights

    weights, there = load_weights(path), module.state_dict()
    missing, extra = sorted(there.keys() - weights.keys()), sorted(weights.keys() - there.keys())
    odd = [f"{n} is {weights[n].shape}, the module has {tuple(there[n].shape)}"
           for n in there.keys() & weights.keys() if weights[n].shape != tuple(there[n].shape)]
    problems = [f"missing: {', '.join(missing[:4])}"] if missing else []
    problems += [f"left over: {', '.join(extra[:4])}"] if extra else []
    problems += odd[:2]
    if problems:
        raise BadInput(f"{shown(path)}: the weights do not fit the module; "
                       f"{one_line('; '.join(problems), 200)}")
    module.load_state_dict({name: torch.tensor(weights[name]) for name in there})
    return module.eval()


@contextmanager
def _current_folder() -> Iterator[None]:
    """The current folder can be imported from inside, as under ``python -m``."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before
