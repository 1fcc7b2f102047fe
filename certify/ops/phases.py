"""Strided transposed convolution as one ordinary convolution per output phase.

Output pixel ``q s + r`` only meets kernel entries ``m s + r``: each of the ``s x s`` phases is a
stride-1 convolution with a kernel of ``ceil(k / s)``. All phases are computed at once as extra
channels and interleaved. Libraries run strided transposed convolutions with few channels at a few
percent of the processor's rate and stride-1 convolutions near it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def transpose_by_phases(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """``conv_transpose2d(x, weight, stride=stride)``, perhaps with zeros appended below and right.

    Args:
        x: ``(N, outer, H, W)``. weight: ``(outer, C, k, k')``.

    Returns:
        ``(N, C, s (H + K - 1), s (W + K' - 1))`` with ``K = ceil(k / s)``.
    """
    from torch.nn.functional import conv2d, pad, pixel_shuffle

    outer, C, kh, kw = weight.shape
    Kh, Kw = -(-kh // stride), -(-kw // stride)
    full = pad(weight, (0, Kw * stride - kw, 0, Kh * stride - kh))
    phases = full.reshape(outer, C, Kh, stride, Kw, stride).permute(1, 3, 5, 0, 2, 4)
    kernel = phases.reshape(C * stride * stride, outer, Kh, Kw).flip(2, 3)
    return pixel_shuffle(conv2d(x, kernel, padding=(Kh - 1, Kw - 1)), stride)
