"""Tells a module's live tensors from what is computed from them, while it is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from certify.importers.torch_module import memory, state


class StandIns:
    """Aliases of a module's state that make autograd record what is computed from them.

    Each shares its storage with the tensor it stands for and requires a gradient, whether or not
    that tensor does; at the end the real tensors take their places.
    """

    def __init__(self, module: nn.Module) -> None:
        """Stand-ins for the state of ``module``, made as they are asked for."""
        self._module = module
        self._alias: dict[str, Tensor] = {}
        self._path: dict[int, str] = {}
        self._by_memory: dict[tuple[str, int], str] = {}

    def of(self, path: str) -> Tensor:
        """The stand-in of the state called ``path``; integer state stands for itself."""
        if path not in self._alias:
            real = state(self._module, path)
            alias = real.detach()
            if real.is_floating_point():
                alias.requires_grad_(True)
            self._alias[path] = alias
            self._path[id(alias)] = path
            if real.numel():
                self._by_memory.setdefault(memory(real), path)
        return self._alias[path]

    def settled(
        self, constants: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, str], dict[str, tuple[str, ...]]]:
        """The real constants, the state each live one is (a view of), and the state each computed
        one derives from."""
        real: dict[str, Any] = {}
        live: dict[str, str] = {}
        frozen: dict[str, tuple[str, ...]] = {}
        for name, found in constants.items():
            path = self._path.get(id(found)) if isinstance(found, Tensor) else None
            if path is not None:
                real[name], live[name] = state(self._module, path), path
            elif isinstance(found, Tensor) and memory(found) in self._by_memory:
                path = self._by_memory[memory(found)]
                real[name], live[name] = _view(state(self._module, path), found), path
            elif isinstance(found, Tensor) and found.requires_grad:
                real[name] = found.detach()
                frozen[name] = tuple(sorted(self._origins(found)))
            else:
                real[name] = found
        return real, live, frozen

    def _origins(self, tensor: Tensor) -> set[str]:
        """The state a tensor was computed from, read off its autograd graph."""
        found: set[str] = set()
        stack, seen = [tensor.grad_fn], set()
        while stack:
            step = stack.pop()
            if step is None or step in seen:
                continue
            seen.add(step)
            leaf = getattr(step, "variable", None)
            if leaf is not None and id(leaf) in self._path:
                found.add(self._path[id(leaf)])
            stack.extend(following for following, _ in step.next_functions)
        return found


def _view(base: Tensor, like: Tensor) -> Tensor:
    """``like``'s elements as a view of ``base``, in whose storage they lie.

    One strided view replaces whatever chain of views led there: a part of a split could not be
    differentiated again after an optimiser step has changed ``base``.
    """
    if base.dtype != like.dtype:
        return like.detach()
    with torch.enable_grad():
        return base.as_strided(like.size(), like.stride(), like.storage_offset())
