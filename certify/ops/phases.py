"""Strided transposed convolution as one ordinary convolution per output phase.

Output pixel ``q s + r`` only meets kernel entries ``m s + r``: each of the ``s x s`` phases is a
stride-1 convolution with a kernel of ``ceil(k / s)``. All phases are computed at once as extra
channels and interleaved, channels last. oneDNN runs strided transposed convolutions with few
channels at a few percent of the processor's rate, and stride-1 convolutions near it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_MANY = 32  # examples from which it pays


def phases_pay(
    x: Tensor, weight: Tensor, strides: tuple[int, ...], dilations: tuple[int, ...]
) -> bool:
    """Whether `transpose_by_phases` is faster: float32 on a CPU, a stride, many examples."""
    from torch import float32

    plain = len(set(strides)) == 1 and strides[0] > 1 and set(dilations) == {1}
    plain = plain and min(weight.shape[2:]) >= strides[0]  # else whole phases are zero
    return plain and x.device.type == "cpu" and x.dtype == float32 and len(x) >= _MANY


def transpose_by_phases(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """``conv_transpose2d(x, weight, stride=stride)``, channels last in memory.

    Args:
        x: ``(N, O, H, W)``. weight: ``(O, C, k, k')``, one group.
    """
    from torch import channels_last
    from torch.nn.functional import conv2d, pad

    filters, C, kh, kw = weight.shape
    Kh, Kw = -(-kh // stride), -(-kw // stride)
    full = pad(weight, (0, Kw * stride - kw, 0, Kh * stride - kh))
    parts = full.reshape(filters, C, Kh, stride, Kw, stride).permute(3, 5, 1, 0, 2, 4)
    kernel = parts.reshape(stride * stride * C, filters, Kh, Kw).flip(2, 3)
    y = conv2d(
        x.contiguous(memory_format=channels_last),
        kernel.contiguous(memory_format=channels_last),
        padding=(Kh - 1, Kw - 1),
    ).permute(0, 2, 3, 1)
    N, Q, P, _ = y.shape
    apart = y.reshape(N, Q, P, stride, stride, C).permute(0, 1, 3, 2, 4, 5)
    whole = apart.reshape(N, Q * stride, P * stride, C).permute(0, 3, 1, 2)
    return whole[..., : (x.shape[2] - 1) * stride + kh, : (x.shape[3] - 1) * stride + kw]
