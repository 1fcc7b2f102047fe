"""Scaled dot-product attention, as products, a (masked) softmax and another product."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from certify.core.errors import Unsupported
from certify.core.graph import Shape
from certify.ops.arguments import scaled
from certify.ops.builder import Builder, Call, Value, as_numpy
from certify.ops.matmul import product
from certify.ops.products import divide
from certify.ops.record import REGISTRY, Composite


class Mask(NamedTuple):
    """What is added to the scores, and which scores count at all; None for nothing and for all."""

    bias: np.ndarray | None
    seen: np.ndarray | None


def attend(
    b: Builder, qkv: tuple[Value, Value, Value], mask: Mask, scale: float, softcap: float = 0.0
) -> Value:
    """``softmax(cap(q k^T scale) + bias) v`` over the last two axes of q, k, v.

    Raises:
        Unsupported: a query sees no key (its row would be NaN or zero, depending on the runtime).
    """
    q, k, v = _repeated_heads(b, qkv)
    turned = b.add("transpose", k, perm=(*range(-k.rank, -2), -1, -2))
    scores = product(b, scaled(b, q, scale), turned)
    if softcap:
        cap = b.constant(np.float64(softcap))
        scores = scaled(b, b.add("tanh", divide(b, scores, cap)), softcap)
    if mask.bias is not None:
        scores = b.add("add", *b.broadcast(scores, b.constant(mask.bias)))
    if mask.seen is None:
        return product(b, b.add("softmax", scores, axis=-1), v)
    if not np.broadcast_to(mask.seen, scores.shape).any(-1).all():
        raise Unsupported(f"{b.where}: attention with a query that sees no key; drop that query")
    return product(b, b.add("softmax", scores, axis=-1, mask=mask.seen), v)


def _repeated_heads(b: Builder, qkv: tuple[Value, Value, Value]) -> tuple[Value, Value, Value]:
    """Keys and values repeated to the number of query heads (grouped-query attention)."""
    q, k, v = qkv
    if q.rank < 3 or k.rank != q.rank or k.shape[-3] in (1, q.shape[-3]):
        return qkv
    index = np.repeat(np.arange(k.shape[-3]), q.shape[-3] // k.shape[-3])
    k, v = (b.add("gather", t, indices=index, axis=-3) for t in (k, v))
    return q, k, v


def mask_of(call: Call, given: Any, allowed: np.ndarray | None) -> Mask:
    """A mask operand (boolean, or added to the scores) joined with the pairs that are ``allowed``.

    Minus infinity in a float mask means "not seen".

    Raises:
        Unsupported: the mask depends on the model's input.
    """
    if given is None:
        return Mask(None, allowed)
    if given.constant is None:
        raise Unsupported(f"{call.where or call.name}: attention mask that depends on the input")
    array = as_numpy(given.constant)
    if array.dtype == bool:
        return Mask(None, array if allowed is None else array & allowed)
    seen = array != -np.inf
    finite = np.where(seen, array, 0)
    if not seen.all():
        allowed = seen if allowed is None else seen & allowed
    return Mask(finite if finite.any() else None, allowed)


def _band(rows: int, columns: int, left: int, right: int) -> np.ndarray | None:
    """Pairs with ``i - left <= j <= i + right``; -1 leaves a side open; None when both are."""
    if left < 0 and right < 0:
        return None
    i, j = np.ogrid[:rows, :columns]
    seen = np.ones((rows, columns), dtype=bool)
    if left >= 0:
        seen &= j >= i - left
    if right >= 0:
        seen &= j <= i + right
    return seen


def _aten(b: Builder, call: Call) -> Value:
    q, k, v = call.inputs[:3]
    if call.arg(4, 0.0):
        raise Unsupported(
            f"{call.where or call.name}: attention with dropout; put the model in eval mode"
        )
    allowed = _band(q.shape[-2], k.shape[-2], -1, 0) if call.arg(5, False) else None
    scale = float(call.arg(6, 1 / math.sqrt(q.shape[-1])))
    return attend(b, (q, k, v), mask_of(call, call.arg(3), allowed), scale)


def _heads(b: Builder, x: Value, count: int) -> Value:
    """``(batch, sequence, heads * size)`` as ``(batch, heads, sequence, size)``."""
    batch, length, width = x.shape
    split = b.add("reshape", x, shape=(batch, length, count, width // count))
    return b.add("transpose", split, perm=(-4, -2, -3, -1))


def _onnx(b: Builder, call: Call) -> Value:
    cached = any(call.arg(k) is not None for k in (4, 5, 6))
    if cached or call.outputs > 1:
        raise Unsupported(f"{call.where or call.name}: Attention with a cache or a second output")
    q, k, v = call.inputs[:3]
    flat = q.rank == 3
    if flat:
        kv_heads = int(call.attr("kv_num_heads"))
        q = _heads(b, q, int(call.attr("q_num_heads")))
        k, v = _heads(b, k, kv_heads), _heads(b, v, kv_heads)
    left, right = int(call.attr("left_window_size", -1)), int(call.attr("right_window_size", -1))
    right = 0 if call.attr("is_causal", 0) else right
    allowed = _band(q.shape[-2], k.shape[-2], left, right)
    scale = float(call.attr("scale", 0.0) or 1 / math.sqrt(q.shape[-1]))
    cap = float(call.attr("softcap", 0.0))
    y = attend(b, (q, k, v), mask_of(call, call.arg(3), allowed), scale, cap)
    if not flat:
        return y
    back = b.add("transpose", y, perm=(-4, -2, -3, -1))
    whole: Shape = (*back.shape[:2], back.shape[2] * back.shape[3])
    return b.add("reshape", back, shape=whole)


REGISTRY.add(
    Composite(
        "attention",
        onnx={"Attention": _onnx},
        aten={"aten.scaled_dot_product_attention.default": _aten},
        summary="scaled dot-product attention with constant masks",
    )
)
