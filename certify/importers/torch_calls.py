"""One node of an exported graph: arguments in schema order, where it came from, why it fails."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from certify.core.errors import Unsupported, one_line
from certify.importers.torch_export import is_user_file
from certify.ops.builder import Value
from certify.ops.record import REGISTRY

_FRAME = re.compile(
    r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*(?:\n\s+(?P<text>[^\n]*))?'
)
LONGEST = 300  # characters of a message
_ADVICE = "; `certify supports` lists those that can"


@dataclass(frozen=True)
class Problem:
    """A call that cannot be imported.

    Attributes:
        kind: ATen name.
        node: name of the node in the exported graph.
        line: ``model.py:41``, or the layer where no code of the user's own is involved.
        text: that line's source text, in backquotes; may be empty.
        reason: why, where the operator itself is known.
    """

    kind: str
    node: str
    line: str
    text: str
    reason: str = ""

    def describe(self, source: bool = True) -> str:
        """``aten.sin.default (node sin) at model.py:41 `y = torch.sin(x)`: reason``."""
        why = f": {self.reason}" if self.reason else _nearest(self.kind)
        text = f" {self.text}" if source and self.text else ""
        return one_line(f"{self.kind} (node {self.node}) at {self.line}{text}{why}", 170)


def place(node: fx.Node) -> str:
    """``node sin, model.py:41 `y = torch.sin(x)` ``: for messages about the finished graph."""
    return " ".join(part for part in (f"node {node.name},", *source_line(node)) if part)


def source_line(node: fx.Node) -> tuple[str, str]:
    """``("model.py:41", "`y = torch.sin(x)`")``: the last line of the user's own code.

    A model made of torch's layers alone has no such line; the layer's path is given instead.
    """
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    own = [frame for frame in frames if is_user_file(frame["file"])]
    if own:
        text = one_line(own[-1]["text"] or "", 50)
        return f"{os.path.basename(own[-1]['file'])}:{own[-1]['line']}", f"`{text}`" if text else ""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, layer = stack[-1] if stack else ("", "")
    kind = str(layer).rpartition(".")[2]
    return f"layer {path!r}, {kind}" if path else "the model's top level", ""


def positional(node: fx.Node, resolve: Callable[[Any], Any]) -> tuple[Any, ...]:
    """The node's arguments, passed through ``resolve``, in schema order with defaults filled in."""
    given = {key: resolve(value) for key, value in node.kwargs.items()}
    schema = getattr(node.target, "_schema", None)
    values = [resolve(value) for value in node.args]
    if schema is None:
        return (*values, *given.values())
    for argument in schema.arguments[len(values) :]:
        default = argument.default_value if argument.has_default_value() else None
        values.append(given.get(argument.name, default))
    return tuple(values)


def tensor_operands(node: fx.Node, inputs: Sequence[Any]) -> list[Value | None]:
    """Operands of a call that needs no translation: its tensors, all else at its default.

    Raises:
        Unsupported: another argument differs from its default, and would be lost.
    """
    found: list[Value | None] = []
    operator: Any = node.target
    for argument, given in zip(operator._schema.arguments, inputs, strict=True):
        if isinstance(given, Value) or (given is None and "Tensor" in str(argument.type)):
            found.append(given)
        elif given != (argument.default_value if argument.has_default_value() else None):
            raise Unsupported(f"argument {argument.name}={given!r} is not supported")
    while found and found[-1] is None:
        found.pop()
    return found


def loses_precision(node: fx.Node, wanted: torch.dtype) -> str:
    """Why the result's type cannot stand for a real number, or an empty string.

    Bounds are about real numbers: a result that is rounded to integers, or to a narrower type than
    the model's ``wanted`` one, is another function.
    """
    found = getattr(node.meta.get("val"), "dtype", None)
    if found is None or found == wanted or found == torch.bool:
        return ""
    if not found.is_floating_point or torch.finfo(found).bits < torch.finfo(wanted).bits:
        return f"converts {_short(wanted)} to {_short(found)} inside the model"
    return ""


def refuse(problems: Sequence[Problem]) -> Unsupported:
    """One error for all ``problems``, on one line; the whole list is in the exception's notes."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.kind, problem.reason), []).append(problem)
    noun = "operator" if len(groups) == 1 else "operators"
    head = f"{len(groups)} {noun} cannot be bounded: "
    room = LONGEST - len(head) - len(_ADVICE) - len("; and 9999 more")
    for source in (True, False):  # source text only where all of it fits
        parts = [
            first.describe(source) + (f" and {len(others)} more" if others else "")
            for first, *others in groups.values()
        ]
        if len("; ".join(parts)) <= room:
            break
    while len(parts) > 1 and len("; ".join(parts)) > room:
        parts.pop()
    rest = f"; and {len(groups) - len(parts)} more" if len(parts) < len(groups) else ""
    error = Unsupported(head + "; ".join(parts) + rest + _ADVICE)
    for problem in dict.fromkeys(problems):
        error.add_note(f"  {problem.describe()}")
    return error


def _nearest(kind: str) -> str:
    """`` (nearest: aten.silu.default)`` if a supported operator is called much the same."""
    names = {name.split(".")[1]: name for name in REGISTRY.aten if name.count(".") >= 2}
    base = kind.split(".")[1] if kind.count(".") >= 2 else kind
    close = difflib.get_close_matches(base, names, n=1, cutoff=0.7)
    return f" (nearest: {names[close[0]]})" if close else ""


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
