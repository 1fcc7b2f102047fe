"""Strided transposed convolution as one ordinary convolution per output phase.

Output pixel ``q s + r`` only meets kernel entries ``m s + r``: each of the ``s x s`` phases is a
stride-1 convolution with a kernel of ``ceil(k / s)``. All phases are computed at once as extra
channels and interleaved, channels last. oneDNN runs strided transposed convolutions into few
channels at a few percent of the processor's rate, and stride-1 convolutions near it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_MANY = 32  # examples from which it pays
_FEW = 8  # channels of the result up to which it pays


def phases_pay(
    x: Tensor, weight: Tensor, strides: tuple[int, ...], dilations: tuple[int, ...]
) -> bool:
    """Whether `transpose_by_phases` is faster: float32 on a CPU, a stride, many examples."""
    from torch import float32

    plain = len(set(strides)) == 1 and strides[0] > 1 and set(dilations) == {1}
    plain = plain and min(weight.shape[2:]) >= strides[0]  # else whole phases are zero
    plain = plain and weight.shape[1] <= _FEW
    return plain and x.device.type == "cpu" and x.dtype == float32 and len(x) >= _MANY


def transpose_by_phases(
    x: Tensor, weight: Tensor, stride: int, begins: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """``conv_transpose2d(x, weight, stride=stride)`` from pixel ``begins`` on; channels last.

    Args:
        x: ``(N, O, H, W)``. weight: ``(O, C, k, k')``, one group.
        begins: not negative.
        size: of the result, which may end before or after the last pixel reached.
    """
    from torch import channels_last
    from torch.nn.functional import conv2d, pad

    filters, C = weight.shape[:2]
    ragged = [k % stride for k in weight.shape[2:]]
    if any(b % stride and not 0 < k <= b % stride for b, k in zip(begins, ragged, strict=True)):
        # Shifted, the kernel would need one more entry per phase: cut off what comes before.
        top, left = begins
        whole = transpose_by_phases(x, weight, stride, (0, 0), (top + size[0], left + size[1]))
        return whole[..., top:, left:].contiguous(memory_format=channels_last)
    # Entry e of the kernel moves a pixel by e - begin = e' - skipped s, with e' = e + ahead >= 0.
    skipped = [-(-b // stride) for b in begins]
    ahead = [m * stride - b for m, b in zip(skipped, begins, strict=True)]
    counts = [-(-(k + a) // stride) for k, a in zip(weight.shape[2:], ahead, strict=True)]
    after = [n * stride - k - a for n, k, a in zip(counts, weight.shape[2:], ahead, strict=True)]
    full = pad(weight, (ahead[1], after[1], ahead[0], after[0]))
    parts = full.reshape(filters, C, counts[0], stride, counts[1], stride).permute(3, 5, 1, 0, 2, 4)
    kernel = parts.reshape(stride * stride * C, filters, *counts).flip(2, 3)
    pixels = [-(-n // stride) for n in size]
    first = [n - 1 - m for n, m in zip(counts, skipped, strict=True)]
    last = [p - n + m for p, n, m in zip(pixels, x.shape[2:], skipped, strict=True)]
    padding = (0, 0)
    if first == last and min(first) >= 0:
        padding = (first[0], first[1])
    else:
        x = pad(x, (first[1], last[1], first[0], last[0]))
    x, kernel = (t.contiguous(memory_format=channels_last) for t in (x, kernel))
    y = conv2d(x, kernel, padding=padding).permute(0, 2, 3, 1)
    apart = y.reshape(len(x), *pixels, stride, stride, C).permute(0, 1, 3, 2, 4, 5)
    whole = apart.reshape(len(x), pixels[0] * stride, pixels[1] * stride, C).permute(0, 3, 1, 2)
    return whole[..., : size[0], : size[1]]
