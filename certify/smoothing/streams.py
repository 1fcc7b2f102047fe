"""Random words by key and counter: the same on every device, in every batch, after restarts.

A stream belongs to (run seed, input, stage); its samples are numbered. Philox4x32-10 (Salmon et al.
2011) turns key and number into words, so nothing is stored and nothing depends on order.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_LOW = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def stream_key(seed: int, item: str, stage: str) -> int:
    """The 64-bit key of a stream; streams of different stages share no sample."""
    text = f"{int(seed)}\n{stage}\n{item}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little", signed=True)


def item_name(x: Any) -> str:
    """An input's own name: a digest of its values, so that its noise depends on nothing else."""
    import numpy as np

    array = np.ascontiguousarray(x, dtype="<f4")
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()


def words(key: int, first: int, count: int, size: int, device: Any = "cpu") -> Tensor:
    """``(count, 4 ceil(size / 4))`` int64 tensor of words in [0, 2^32), samples ``first``
    onward."""
    import torch

    blocks = (size + 3) // 4
    compiled = kernels() if torch.device(device).type == "cpu" else None
    if compiled is None:
        return reference_words(key, first, count, blocks, device)
    import numpy as np

    out = np.empty((count, 4 * blocks), np.uint32)
    compiled.words(out, key, first)
    return torch.from_numpy(out.astype(np.int64))


def reference_words(key: int, first: int, count: int, blocks: int, device: Any) -> Tensor:
    """As the kernel, in int64 arithmetic of torch, on any device."""
    import torch

    index = torch.arange(first, first + count, device=device, dtype=torch.int64)
    c0 = torch.arange(blocks, device=device, dtype=torch.int64).expand(count, blocks)
    c1, c2 = (part.unsqueeze(1).expand(count, blocks) for part in (index & _LOW, index >> 32))
    c3 = torch.zeros_like(c0)
    a, b = key & _LOW, (key >> 32) & _LOW
    for _ in range(_ROUNDS):
        (high0, low0), (high1, low1) = _product(_M0, c0), _product(_M1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ a, low1, high0 ^ c3 ^ b, low0
        a, b = (a + _W0) & _LOW, (b + _W1) & _LOW
    return torch.cat([c0, c1, c2, c3], 1)


def _product(m: int, c: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower half of a product of 32-bit numbers; 64 signed bits do not hold it whole."""
    low, high = m * (c & 0xFFFF), m * (c >> 16)
    middle = (low >> 16) + (high & _LOW)  # below 2^33
    return (high >> 32 << 16) + (middle >> 16), ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


@lru_cache(maxsize=1)
def _module() -> Any:
    try:
        from certify.kernels import noise
    except ImportError:
        return None
    return noise


def kernels() -> Any:
    """The compiled functions, or None where they are switched off or cannot be had."""
    return None if os.environ.get("CERTIFY_KERNELS") == "off" else _module()
