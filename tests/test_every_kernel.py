"""Every numba kernel against its torch reference, and what switches kernels off."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from certify.bounds import kernels, reference

ROWS, CHANNELS, H, W, h, w = 7, 3, 6, 5, 4, 3
DTYPES = [torch.float32, torch.float64]


def force(monkeypatch: pytest.MonkeyPatch, least: int = 0) -> None:
    """Use kernels from ``least`` coefficients on."""
    monkeypatch.setattr(kernels, "WORTH_IT", least)
    monkeypatch.setattr(kernels, "WORTH_A_CALL", least)


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def places() -> tuple[torch.Tensor, torch.Tensor]:
    """Windows inside, across every border, and entirely outside the map."""
    return torch.tensor([0, -2, 4, 1, -4, 6, 2]), torch.tensor([1, -1, 3, 4, 0, 2, -3])


def operands(name: str, dtype: torch.dtype, per_row: bool) -> tuple[Any, ...]:
    n = CHANNELS * H * W
    if name == "relax_dense":
        A = draw(ROWS, n, dtype=dtype)
        A[0, :4] = torch.tensor([0.0, -0.0, 1.0, -1.0])
        lines = tuple(draw(ROWS if per_row else 1, n, dtype=dtype, seed=i) for i in range(4))
        return A, *lines, draw(n, dtype=dtype, seed=9).abs()
    if name == "dot_dense":
        return draw(ROWS, n, dtype=dtype), draw(n, dtype=dtype), draw(n, dtype=dtype, seed=2).abs()
    A = draw(ROWS, h, w, CHANNELS, dtype=dtype)
    maps = tuple(draw(H, W, CHANNELS, dtype=dtype, seed=i) for i in range(5))
    if name == "relax_windows":
        return A, *places(), *maps[:4], maps[4].abs()
    return A, *places(), maps[0], maps[1].abs()


def both(name: str, args: tuple[Any, ...]) -> tuple[Any, Any]:
    return kernels._call(name, *args), getattr(reference, name)(*args)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", kernels.KERNELS)
def test_a_kernel_computes_what_its_reference_says(
    name: str, dtype: torch.dtype, per_row: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch)
    args = operands(name, dtype, per_row)
    assert kernels.usable(args[0])
    fast, plain = both(name, args)
    if not isinstance(fast, tuple):
        fast, plain = (fast,), (plain,)
    for a, b in zip(fast, plain, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        tolerance = 1e-12 if a.dtype == dtype == torch.float64 else 1e-5
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_the_registry_of_kernels_is_the_kernels_file() -> None:
    from certify.kernels import rows

    compiled = {n for n in dir(rows) if hasattr(getattr(rows, n), "py_func")}
    assert compiled == set(kernels.KERNELS)
    assert all(callable(getattr(reference, name)) for name in kernels.KERNELS)


def test_a_wrong_kernel_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch)
    args = operands("relax_dense", torch.float64, False)
    fast, _ = both("relax_dense", args)
    swapped = (args[0], args[3], args[4], args[1], args[2], args[5])  # upper lines for lower ones
    assert not torch.allclose(fast[0], reference.relax_dense(*swapped)[0])


@pytest.mark.parametrize("why", ["switched off", "small", "gradients"])
def test_kernels_stay_out_of_the_way(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, 10**9 if why == "small" else 0)
    if why == "switched off":
        monkeypatch.setenv("CERTIFY_KERNELS", "off")
    A = draw(4, 4, dtype=torch.float32).requires_grad_(why == "gradients")
    assert not kernels.usable(A)


def test_no_gradient_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coefficients may need no gradient where slopes do, as in the first step of an optimiser."""
    from certify.bounds.fused import relax_rows
    from certify.ops.families import Lines
    from certify.ops.record import Site

    force(monkeypatch)
    site = Site("relu", {}, ((5,),), (True,), (5,))
    A = draw(1, 3, 5, dtype=torch.float32)
    low, up, c = (draw(1, 1, 5, dtype=torch.float32, seed=i) for i in range(3))
    lines = Lines(site, (low,), None, (up,), c)
    assert relax_rows(A, lines, None) is not None
    low.requires_grad_()
    assert relax_rows(A, lines, None) is None
    with torch.no_grad():
        assert relax_rows(A, lines, None) is not None
    assert kernels.usable(A) and not kernels.usable(A, low)
