"""The two families that fill in most of an operator record: affine maps and elementwise lines."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, Unpack

from certify.core.graph import Shape
from certify.ops.record import REGISTRY, AffineRule, Interval, Op, Site

if TYPE_CHECKING:
    from torch import Tensor


class RuleFacts(TypedDict, total=False):
    """What an affine operator may say about itself besides its ``forward``; see `AffineRule`.

    ``forward(site, *operands)`` must accept None for each operand in ``biases``. With
    ``monotone=True`` every coefficient is >= 0 (moves, averages, sums). Otherwise coefficients are
    those of ``weights``, which must enter linearly with factor >= 0; anything else (subtraction,
    negation) needs ``absolute``. The transpose is found by automatic differentiation unless given.
    """

    biases: tuple[int, ...]
    weights: tuple[int, ...]
    absolute: Callable[..., Tensor]
    transpose: Callable[..., tuple[Tensor | None, ...]]
    summands: Callable[[Site], tuple[int, int]]
    monotone: bool
    roundings: int


def affine(
    name: str,
    forward: Callable[..., Tensor],
    *,
    shape: Callable[..., Shape],
    examples: tuple[Any, ...],
    **facts: Any,
) -> Op:
    """Register an affine operator from its ``forward`` alone.

    ``facts`` are those of `RuleFacts`, and further fields of `Op`.
    """
    about_rule = {key: facts.pop(key) for key in RuleFacts.__optional_keys__ & facts.keys()}
    rule = affine_rule(forward, **about_rule)
    op = Op(name, forward, shape, tuple(examples), affine=rule, **facts)
    REGISTRY.add(op)
    return op


def affine_rule(forward: Callable[..., Tensor], **facts: Unpack[RuleFacts]) -> AffineRule:
    """The `AffineRule` behind `affine`, for records that also have a relaxed rule."""
    biases, weights = facts.get("biases", ()), facts.get("weights", ())
    monotone = facts.get("monotone", False)

    def linear(site: Site, *operands: Any) -> Tensor:
        return forward(site, *(None if i in biases else v for i, v in enumerate(operands)))

    def counted(site: Site) -> tuple[int, int]:
        if monotone and not weights and not biases:
            inputs = sum(math.prod(s) for s, v in zip(site.shapes, site.varies, strict=True) if v)
            return inputs + 1, math.prod(site.shape) + 1
        return math.prod(max(site.shapes, key=math.prod)) + 1, math.prod(site.shape) + 1

    fields: dict[str, Any] = {
        "absolute": linear,
        "transpose": _derived_transpose(linear),
        "summands": counted,
    }
    fields.update(facts)
    return AffineRule(linear=linear, **fields)


def _derived_transpose(linear: Callable[..., Tensor]) -> Callable[..., tuple[Tensor | None, ...]]:
    def transpose(site: Site, A: Tensor, *operands: Any) -> tuple[Tensor | None, ...]:
        import torch

        lead = A.shape[: A.dim() - len(site.shape)]
        varying = [i for i, v in enumerate(site.varies) if v]

        def call(*variables: Tensor) -> Tensor:
            full = list(operands)
            for i, x in zip(varying, variables, strict=True):
                full[i] = x
            return linear(site, *full)

        # A batched probe beats vmap over rows: forward takes any number of leading axes.
        zeros = tuple(A.new_zeros((*lead, *site.shapes[i])) for i in varying)
        pull = torch.func.vjp(call, *zeros)[1]
        found: list[Tensor | None] = [None] * len(operands)
        for i, gradient in zip(varying, pull(A), strict=True):
            found[i] = gradient
        return tuple(found)

    return transpose


def per_row(A: Tensor) -> Tensor:
    """``(B, R, *shape)`` as ``(B, R, n)``, also where the shape is ``()``."""
    return A.reshape(A.shape[0], A.shape[1], math.prod(A.shape[2:]))


def to_operand(A: Tensor, shape: Shape, rank: int) -> Tensor:
    """Sum coefficients over the axes along which an operand of ``shape`` was broadcast.

    ``A`` is ``(..., *result shape)`` with ``rank`` result axes; the result is ``(..., *shape)``.
    """
    extra = rank - len(shape)
    if extra:
        A = A.flatten(A.dim() - rank, A.dim() - len(shape) - 1).sum(A.dim() - rank)
    axes = [k for k in range(-len(shape), 0) if shape[k] == 1 and A.shape[k] != 1]
    return A.sum(dim=axes, keepdim=True) if axes else A


@dataclass(frozen=True)
class Lines:
    """Elementwise linear bounds: ``sum_i low_i x_i + low_c <= op(x) <= sum_i up_i x_i + up_c``.

    Every tensor is ``(B, 1 or R, *result shape)``-broadcastable; None stands for zero. ``shapes``
    are the operand shapes (None where constant).

    ``absorbs``: rounding in `backward`'s coefficients is harmless, and all terms of its bias have
    one sign, so that the bias itself tells what its sum may have lost.
    """

    absorbs: ClassVar[bool] = False
    site: Site
    low: tuple[Tensor | None, ...]
    low_c: Tensor | None
    up: tuple[Tensor | None, ...]
    up_c: Tensor | None

    def backward(self, A: Tensor) -> tuple[tuple[Tensor | None, ...], Tensor]:
        """See `Relaxation.backward`."""
        import torch

        positive, negative = A.clamp(min=0), A.clamp(max=0)
        found: list[Tensor | None] = []
        for i, (low, up) in enumerate(zip(self.low, self.up, strict=True)):
            if not self.site.varies[i]:
                found.append(None)
                continue
            part = _times(positive, low)
            if part is not None and up is not None:
                part = torch.addcmul(part, negative, up)
            elif part is None:
                part = _times(negative, up)
            if part is None:
                found.append(A.new_zeros((*A.shape[:2], *self.site.shapes[i])))
            else:
                found.append(to_operand(part, self.site.shapes[i], len(self.site.shape)))
        bias = A.new_zeros(A.shape[:2])
        for part, c in ((positive, self.low_c), (negative, self.up_c)):
            if c is not None:
                bias = bias + _dot(part, c)
        return tuple(found), bias

    def weight(self, magnitudes: tuple[Tensor | None, ...]) -> Tensor:
        """See `Relaxation.weight`; ``(B, *shape)`` (the maximum over rows)."""
        total: Any = 0.0
        for low, up, size in zip(self.low, self.up, magnitudes, strict=True):
            if size is not None:
                total = total + _largest(low, up) * size
        weight: Tensor = total + _largest(self.low_c, self.up_c)
        return weight


def _times(A: Tensor, coefficient: Tensor | None) -> Tensor | None:
    return None if coefficient is None else A * coefficient


def _dot(A: Tensor, c: Tensor) -> Tensor:
    """``A (B, R, *shape) . c`` per row, where 0 times infinity is 0."""
    import torch

    if not _finite(c):
        return per_row(torch.where(A == 0, 0.0, A * c)).sum(-1)
    if c.shape[1] > 1 or c.shape[2:] != A.shape[2:] or c.shape[0] != A.shape[0]:
        return per_row(A * c).sum(-1)
    return torch.matmul(per_row(A), per_row(c).transpose(1, 2)).squeeze(2)


def _finite(c: Tensor) -> bool:
    return bool(c.isfinite().all())


def _largest(a: Tensor | None, b: Tensor | None) -> Any:
    sizes = [t.detach().abs().amax(1) for t in (a, b) if t is not None]
    if not sizes:
        return 0.0
    return sizes[0] if len(sizes) == 1 else sizes[0].maximum(sizes[1])


__all__ = ["Interval", "Lines", "affine", "affine_rule", "per_row", "to_operand"]
