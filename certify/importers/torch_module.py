"""A torch module as a fixed function: evaluation mode, its state, its value at a point."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor, nn

from certify.core.errors import BadInput
from certify.core.graph import Graph


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Every submodule's ``training`` flag is False inside, and exactly what it was afterwards.

    The flags are set directly: a module may override ``train`` and do more than that. torch's fused
    attention kernels, which exist in evaluation mode only and hide their parts, are off as well.
    """
    flags = [(part, part.training) for part in module.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for part, _ in flags:
            part.training = False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for part, flag in flags:
            part.training = flag


def state(module: nn.Module, path: str) -> Tensor:
    """The parameter, buffer or tensor attribute at ``path``, such as ``"features.0.weight"``."""
    found: Any = reduce(getattr, path.split("."), cast(Any, module))
    if not isinstance(found, Tensor):
        raise BadInput(f"{type(module).__name__}.{path} is not a tensor")
    return found


def fingerprint(module: nn.Module) -> str:
    """SHA-256 (hexadecimal) of all parameters and buffers: name, type, shape and bytes, by name.

    Equal for equal states on any device; unlike a file's hash it does not depend on how the state
    was saved. The class and the forward code are not part of it.
    """
    found: dict[str, Tensor] = {}
    found.update(module.named_parameters(remove_duplicate=False))
    found.update(module.named_buffers(remove_duplicate=False))
    digest = hashlib.sha256()
    for name in sorted(found):
        tensor = found[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def evaluate_module(graph: Graph, *inputs: Tensor) -> Tensor:
    """The torch model's own answer at one point, laid out like the graph's output.

    Args:
        graph: made by `certify.importers.torch_graph.from_torch`.
        inputs: one tensor per graph input, of that input's shape (no extra batch axis).

    Returns:
        A tensor of ``graph.output_shape``, computed by the module in evaluation mode.

    Raises:
        BadInput: the graph does not come from torch, or the inputs do not fit it.
    """
    if graph.source.get("format") != "torch":
        raise BadInput("the graph was not imported from a torch module; there is none to evaluate")
    shapes = tuple(tuple(x.shape) for x in inputs)
    if shapes != graph.input_shapes:
        raise BadInput(f"the model's inputs have shapes {graph.input_shapes}, {shapes} were given")
    module = graph.source["module"]
    result = call_in_evaluation(module, substitute(graph.source["example"], inputs))
    parts = list(tensors_in(result))
    joined = parts[0] if len(parts) == 1 else torch.cat([part.reshape(-1) for part in parts])
    return joined.reshape(graph.output_shape)


def call_in_evaluation(module: nn.Module, args: tuple[Any, ...]) -> Any:
    """``module(*args)`` in evaluation mode, without gradients, on copies of the tensors."""
    copies = substitute(args, [x.detach().clone() for x in tensors_in(args)])
    with evaluation_mode(module), torch.no_grad():
        return module(*copies)


def check_current(graph: Graph) -> None:
    """Refuse a graph that no longer describes its module.

    Parameters are live, so training steps are seen. Two things are not: tensors that were replaced
    (by assignment or by moving the module), and the constants listed in ``source["frozen"]``, which
    were computed from the state at import.

    Raises:
        BadInput: the graph is out of date; importing again is the remedy.
    """
    module, source = graph.source.get("module"), graph.source
    if module is None:
        return
    for name, path in source["live"].items():
        if memory(graph.constants[name]) != memory(state(module, path)):
            raise BadInput(f"{path!r} was replaced or moved after the import; import again")
    if source["frozen"] and source["frozen_sha256"] != fingerprint(module):
        names = ", ".join(list(source["frozen"])[:3])
        raise BadInput(f"the state changed after {names} had been computed from it; import again")


def memory(tensor: Tensor) -> tuple[str, int]:
    """Where a tensor's storage lies; equal for a tensor and its views."""
    return str(tensor.device), tensor.untyped_storage().data_ptr()


def tensors_in(structure: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples, lists and dictionaries, in order; other leaves are skipped."""
    if isinstance(structure, Tensor):
        yield structure
    elif isinstance(structure, Mapping):
        for part in structure.values():
            yield from tensors_in(part)
    elif isinstance(structure, (tuple, list)):
        for part in structure:
            yield from tensors_in(part)


def substitute(structure: Any, tensors: Iterable[Tensor]) -> Any:
    """``structure`` with its tensors replaced, in order, by ``tensors``."""
    source = iter(tensors)

    def walk(part: Any) -> Any:
        if isinstance(part, Tensor):
            return next(source)
        if isinstance(part, Mapping):
            return {key: walk(value) for key, value in part.items()}
        if isinstance(part, tuple) and hasattr(part, "_fields"):
            return type(part)(*(walk(value) for value in part))
        if isinstance(part, (tuple, list)):
            return type(part)(walk(value) for value in part)
        return part

    return walk(structure)
