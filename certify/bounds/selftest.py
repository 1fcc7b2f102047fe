"""Refuses to certify on a machine whose arithmetic breaks the error bounds of `rounding`.

The a-priori bounds hold for any order of IEEE float64 additions and multiplications. They do not
hold for Winograd or FFT convolutions, reduced-precision products (TF32, bf16), or when subnormal
numbers are flushed to zero by a process-wide switch. Each is provoked here once per device.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from certify.bounds.rounding import gamma, unit_of
from certify.core.errors import CertifyError


class BrokenArithmetic(CertifyError):
    """This process's floating-point arithmetic does not keep the promises a proof needs."""


def check_arithmetic(device: torch.device | str = "cpu") -> None:
    """Run the self-test on ``device``; cheap after the first call unless a global switch changed.

    Raises:
        BrokenArithmetic: names the broken promise and the remedy.
    """
    device = torch.device(device)
    cudnn = torch.backends.cudnn.allow_tf32 if device.type == "cuda" else False
    switches = (torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled, cudnn)
    _flushing(device)
    problem = _test(str(device), switches)
    if problem:
        raise BrokenArithmetic(f"arithmetic self-test on {device}: {problem}")


def _flushing(device: torch.device) -> None:
    tiny = torch.tensor([2.0**-1022, 2.0**-1000], dtype=torch.float64, device=device)
    half = torch.tensor([0.5, 2.0**-60], dtype=torch.float64, device=device)
    if bool((tiny * half == 0).any()):
        raise BrokenArithmetic(
            "subnormal numbers are flushed to zero in this process; "
            "undo torch.set_flush_denormal(True)"
        )


@lru_cache(maxsize=8)
def _test(device: str, switches: tuple[object, ...]) -> str:
    for dtype, name in ((torch.float64, "float64"), (torch.float32, "float32")):
        if not _product_holds(device, dtype):
            return (
                f"matrix products are less accurate than {name} allows (TF32 or bfloat16 is on); "
                "undo torch.set_float32_matmul_precision"
            )
        if not _convolution_holds(device, dtype):
            return (
                f"convolutions are less accurate than {name} allows (Winograd, FFT or TF32); "
                "enable oneDNN, or torch.backends.cudnn.deterministic"
            )
    return ""


def _integers(generator: torch.Generator, *shape: int) -> Tensor:
    """Integers over a wild range of scales: products and sums are exact in Python."""
    exponents = torch.randint(0, 40, shape, generator=generator)
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    odd = torch.randint(1, 8, shape, generator=generator)
    return (signs * odd * 2**exponents).double()


def _within(found: float, left: list[int], right: list[int], unit: float) -> bool:
    exact = sum(a * b for a, b in zip(left, right, strict=True))
    size = sum(abs(a * b) for a, b in zip(left, right, strict=True))
    return abs(int(found) - exact) <= size * gamma(len(left) + 2, unit) + 1


def _product_holds(device: str, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(1)
    a, b = _integers(generator, 24, 96), _integers(generator, 96, 24)
    found = (a.to(device, dtype) @ b.to(device, dtype)).cpu()
    rows, columns = a.long().tolist(), b.T.long().tolist()
    return all(_within(float(found[i, i]), rows[i], columns[i], unit_of(dtype)) for i in range(24))


def _convolution_holds(device: str, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(2)
    x, w = _integers(generator, 16, 8, 10, 10), _integers(generator, 8, 8, 3, 3)
    found = torch.nn.functional.conv2d(x.to(device, dtype), w.to(device, dtype)).cpu()
    for k in range(8):
        patch = x[k, :, k : k + 3, k % 5 : k % 5 + 3].flatten().long().tolist()
        if not _within(
            float(found[k, k, k, k % 5]), patch, w[k].flatten().long().tolist(), unit_of(dtype)
        ):
            return False
    return True
