"""numpy arrays and torch tensors through one small door, without importing torch.

Whoever hands over a tensor has imported torch already; ``torch_if_loaded`` finds it there.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.core.errors import BadInput
from certify.core.graph import Array, Shape

if TYPE_CHECKING:
    from torch import Tensor


def is_tensor(value: object) -> bool:
    """True for a torch tensor; never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def unify(*values: Any) -> list[Array]:
    """All values as tensors when one of them is a tensor, else as read-only float64 arrays.

    Tensors keep device, dtype and gradient (integers become float64); plain numbers next to a
    tensor become float64 scalars on its device, so that 8/255 keeps all its digits.
    """
    tensors = [v for v in values if is_tensor(v)]
    if not tensors:
        return [_frozen(v) for v in values]
    import torch

    device = tensors[0].device
    made = [torch.as_tensor(v, dtype=None if is_tensor(v) else torch.float64, device=device)
            for v in values]
    return [t if t.is_floating_point() else t.double() for t in made]


def _frozen(value: Any) -> np.ndarray:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadInput(f"not an array of numbers: {type(value).__name__} ({error})") from error
    array.setflags(write=False)
    return array


def widened(value: Array) -> Array:
    """The same numbers in float64 (exact for every narrower float)."""
    return value.double() if is_tensor(value) else np.asarray(value, dtype=np.float64)


def where(condition: Array, yes: Array, no: Array) -> Array:
    """``numpy.where`` or ``torch.where``, whichever the condition belongs to."""
    if is_tensor(condition):
        import torch

        return torch.where(condition, yes, no)
    return np.where(condition, yes, no)


def larger(a: Array, b: Array) -> Array:
    """Elementwise maximum."""
    return where(a >= b, a, b)


def smaller(a: Array, b: Array) -> Array:
    """Elementwise minimum."""
    return where(a <= b, a, b)


def first_index(mask: Array) -> tuple[int, ...] | None:
    """Index of the first true element, or None."""
    if not bool(mask.any()):
        return None
    plain = mask.detach().cpu().numpy() if is_tensor(mask) else np.asarray(mask)
    return tuple(int(i) for i in np.argwhere(plain)[0])


def finite(value: Array) -> Array:
    """True where the value is neither infinite nor NaN."""
    if is_tensor(value):
        return value.isfinite()
    return np.isfinite(value)


def to_tensor(value: Array, dtype: Any, device: Any) -> Tensor:
    """``value`` as a tensor of this dtype on this device; a gradient is kept."""
    import torch

    if is_tensor(value):
        moved: Tensor = value.to(dtype=dtype, device=device)
        return moved
    return torch.tensor(np.ascontiguousarray(value), dtype=dtype, device=device)


def expand(value: Array, shape: Shape) -> Array:
    """``value`` broadcast to ``shape`` without a copy."""
    return value.expand(shape) if is_tensor(value) else np.broadcast_to(value, shape)


def fit(value: Array, shape: Shape, what: str) -> Array:
    """``value`` as ``(B, *shape)``, for a model input whose one-example shape is ``shape``.

    Accepts ``shape`` (B = 1), ``(B, *shape)``, a scalar, and, when ``shape[0] == 1``, also
    ``shape[1:]`` and ``(B, *shape[1:])``.

    Raises:
        BadInput: any other shape; the message states both.
    """
    got = tuple(value.shape)
    if got == ():
        return expand(value, (1, *shape))
    if got == shape:
        return value.reshape(1, *shape)
    batch = None
    if len(got) == len(shape) + 1 and got[1:] == shape:
        batch = got[0]
    elif shape and shape[0] == 1 and got == shape[1:]:
        batch = 1
    elif shape and shape[0] == 1 and len(got) == len(shape) and got[1:] == shape[1:]:
        batch = got[0]
    if not batch:
        raise BadInput(f"{what} has shape {got} but the model input has shape {shape}: "
                       f"give {shape} or {('batch', *shape)}".replace("'", ""))
    return value.reshape(batch, *shape)


def fit_side(value: Array, center: Array, shape: Shape, what: str) -> Array:
    """``value`` (a radius, a range) as an array that broadcasts against ``(B, *shape)``.

    Accepts the shape of the centre, anything that broadcasts to ``shape`` (one number per
    channel, say), or ``(B,)`` for one number per example.

    Raises:
        BadInput: when the shape fits neither way, or both ways with different meanings.
    """
    got, batch = tuple(value.shape), fit(center, shape, what).shape[0]
    size = int(np.prod(got))
    if size == 1:
        return value.reshape((1,) * (len(shape) + 1))
    if got == tuple(center.shape):
        return fit(value, shape, what)
    if _broadcasts(got, (batch, *shape)):
        return value
    padded = (1,) * (len(shape) - len(got)) + got
    elementwise = _broadcasts(padded, shape)
    per_example = got == (batch,)
    if elementwise and per_example:
        raise BadInput(f"{what} of shape {got} could be one number per example or per element: "
                       f"reshape it to {(batch, *(1,) * len(shape))} or {(1, *padded)}")
    if not elementwise and not per_example:
        raise BadInput(f"{what} has shape {got}, which fits neither the batch of {batch} nor the "
                       f"model input {shape}")
    return value.reshape((1, *padded) if elementwise else (batch, *(1,) * len(shape)))


def _broadcasts(got: Shape, to: Shape) -> bool:
    return len(got) == len(to) and all(g in (1, t) for g, t in zip(got, to, strict=True))
