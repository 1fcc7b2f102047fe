"""Calls ``torch.export`` and turns whatever goes wrong in it into one line."""

from __future__ import annotations

import io
import logging
import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, cast

import torch
from torch import nn
from torch.export import ExportedProgram

from certify.core.errors import BadInput, Unsupported, one_line
from certify.importers.torch_module import call_in_evaluation, evaluation_mode

TORCH_FOLDER = os.path.dirname(torch.__file__)


def export(module: nn.Module, args: tuple[Any, ...]) -> ExportedProgram:
    """``module(*args)`` in evaluation mode as a graph of ATen calls that change nothing in place.

    Raises:
        BadInput: the module itself fails on ``args``.
        Unsupported: ``torch.export`` cannot trace it, or it changes its own state when called.
    """
    name = type(module).__name__
    try:
        call_in_evaluation(module, args)
    except Exception as problem:  # whatever the user's forward raises
        raise BadInput(
            f"{name} fails on the example{_place(problem)}: {_cause(problem)};"
            " pass the example exactly as the model is called"
        ) from problem
    try:
        with evaluation_mode(module), torch.no_grad(), _quiet():
            program = torch.export.export(module, args, strict=False)
            if _writes(program):
                program = program.run_decompositions({})
    except Exception as problem:  # torch.export raises many unrelated and private classes
        raise Unsupported(_why(name, problem)) from problem
    changed = sorted(program.graph_signature.buffers_to_mutate.values())
    if changed:
        raise Unsupported(
            f"{name} changes its buffer {changed[0]!r} when evaluated, so it is not one function;"
            " leave that out in evaluation mode"
        )
    return program


def decompose(program: ExportedProgram, kinds: set[str]) -> ExportedProgram | None:
    """``program`` with the ATen calls named in ``kinds`` replaced by torch's own decompositions.

    None where torch has none for any of them.
    """
    found = {node.target for node in program.graph.nodes if str(node.target) in kinds}
    table = torch.export.default_decompositions()
    chosen = {target: table[target] for target in found if target in table}
    if not chosen:
        return None
    try:
        with torch.no_grad(), _quiet():
            return cast(ExportedProgram, program.run_decompositions(chosen))
    except Exception:  # some decompositions fail on some inputs; the call stays unsupported then
        return None


def _writes(program: ExportedProgram) -> bool:
    """Some call changes a tensor in place (``detach_`` changes no value)."""
    schemas = [
        getattr(node.target, "_schema", None)
        for part in program.graph_module.modules()
        if isinstance(part, torch.fx.GraphModule)
        for node in part.graph.nodes
    ]
    return any(s is not None and s.is_mutable and s.name != "aten::detach_" for s in schemas)


def _why(name: str, problem: Exception) -> str:
    place = _place(problem)
    kind = type(problem).__name__
    if "DataDependent" in kind or "data-dependent" in str(problem):
        return (
            f"{name}: control flow or a Python number depends on the values of a tensor{place};"
            " write it with torch.where, or fix the choice outside forward"
        )
    return f"torch.export cannot trace {name}{place}: {_cause(problem)}; simplify forward there"


def _cause(problem: Exception) -> str:
    text = str(problem).strip().split("\n")[0].rstrip(".")
    return one_line(f"{type(problem).__name__}: {text}" if text else type(problem).__name__, 120)


def _place(problem: Exception) -> str:
    """Where the user's own code was last, as `` at model.py:12 `code` ``; empty if nowhere."""
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if is_user_file(f.filename)]
    if not frames:
        return ""
    last = frames[-1]
    return f" at {os.path.basename(last.filename)}:{last.lineno} `{one_line(last.line, 60)}`"


def is_user_file(path: str) -> bool:
    """Whether ``path`` is neither torch's nor this package's own code."""
    return not path.startswith((TORCH_FOLDER, os.path.dirname(os.path.dirname(__file__))))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what torch.export logs, warns of and prints; `_why` says what went wrong."""
    before = logging.root.manager.disable
    try:
        logging.disable(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
