"""The classifier that is smoothed: batches of inputs to answers, as whole numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from certify.core.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

Scalar = str | int | float | bool


@dataclass(frozen=True)
class Precision:
    """How the model is run; part of which function a certificate is about.

    Attributes:
        autocast: ``"bfloat16"`` or ``"float16"``: the model runs under torch's autocast.
        compiled: through ``torch.compile``.
        channels_last: images are handed over in that memory order.
    """

    autocast: str = ""
    compiled: bool = False
    channels_last: bool = True

    def __post_init__(self) -> None:
        if self.autocast not in ("", "bfloat16", "float16"):
            raise BadInput(f"autocast is '', 'bfloat16' or 'float16', got {self.autocast!r}")


@dataclass(frozen=True, eq=False)
class Base:
    """A classifier of one or several heads.

    Attributes:
        heads: each a function ``(N, *shape)`` -> logits ``(N, classes)``; several where a method
            counts their votes separately.
        shape: of one input.
        classes: an answer is a number below, or ``classes`` itself for logits that are not finite.
        device: where it runs.
        name, format, sha256: of the model, for certificates.
        settings: how it is run.
    """

    heads: tuple[Callable[[Tensor], Tensor], ...]
    shape: tuple[int, ...]
    classes: int
    device: Any
    name: str
    format: str
    sha256: str
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    precision: Precision = Precision()

    @property
    def size(self) -> int:
        """Elements of one input."""
        return math.prod(self.shape)

    def answers(self, flat: Tensor) -> list[Tensor]:
        """``(N, size)`` float32 -> one ``(N,)`` int64 per head."""
        import torch

        x = flat.view(-1, *self.shape)
        if self.precision.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        kind = getattr(torch, self.precision.autocast or "float32")
        automatic = (
            torch.autocast(flat.device.type, kind) if self.precision.autocast else nullcontext()
        )
        with torch.inference_mode(), automatic:
            return [self._vote(head(x), len(x)) for head in self.heads]

    def _vote(self, logits: Tensor, count: int) -> Tensor:
        if logits.dim() != 2 or tuple(logits.shape) != (count, self.classes):
            raise BadInput(
                f"the model answered {tuple(logits.shape)} to {count} inputs; wanted are "
                f"logits {(count, self.classes)}"
            )
        finite = logits.isfinite().all(1)
        return logits.argmax(1).where(finite, logits.new_full((), self.classes).long())


def refuse_training_mode(module: Any) -> None:
    """Votes of a module in training mode depend on each other.

    Raises:
        BadInput: a part of it is in training mode, or keeps no statistics of its own.
    """
    for name, part in module.named_modules():
        where = f"{name or 'the model'} ({type(part).__name__})"
        if part.training:
            raise BadInput(
                f"{where} is in training mode: its answers depend on the batch or on "
                "chance; call model.eval() first"
            )
        if (
            getattr(part, "track_running_stats", True) is False
            and "BatchNorm" in type(part).__name__
        ):
            raise BadInput(
                f"{where} has no running statistics: an answer depends on the other inputs "
                "of its batch, so votes are not independent"
            )


def refuse_mixing(base: Base, x: Tensor) -> None:
    """Run one input alone and among others: it must get the same answer.

    Raises:
        BadInput: it does not.
    """
    import torch

    noise = torch.randn(4, base.size, generator=torch.Generator().manual_seed(0)).to(x.device)
    batch = x.view(1, -1) + 0.5 * noise
    logits = [_logits(base, head, batch) for head in base.heads]
    alone = [_logits(base, head, batch[:1]) for head in base.heads]
    for together, single in zip(logits, alone, strict=True):
        scale = together.abs().max().clamp_min(1e-6)
        if not ((together[:1] - single).abs() <= 0.02 * scale).all():
            raise BadInput(
                "the model's answer to an input depends on the rest of the batch, or on "
                "chance; votes must be independent"
            )


def _logits(base: Base, head: Callable[[Tensor], Tensor], flat: Tensor) -> Tensor:
    import torch

    with torch.inference_mode():
        return head(flat.view(-1, *base.shape)).float()
