"""The multiplier of a norm ball inside a box: how much of each coefficient the ball carries.

Flat tensors: coefficients ``(B or 1, R, n)``, reaches ``(B, 1, n)``. Nothing here has to be exact;
any multiplier gives a valid bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_STEPS = 64
_PIECE = 1 << 18  # elements handled at a time on a CPU
_CLOSE = {2: 1e-3, 4: 1e-6, 8: 1e-14}  # relative accuracy of the radius, by bytes per float


@dataclass(frozen=True)
class Reach:
    """How far an element may move: ``low <= d <= high``, ``(B, 1, n)``; radius ``(B, 1, 1)``."""

    low: Tensor
    high: Tensor
    eps: Tensor

    def example(self, i: int) -> Reach:
        """One example of the batch; what is shared stays shared."""
        low, high, eps = (v[i : i + 1] if v.shape[0] > 1 else v
                          for v in (self.low, self.high, self.eps))
        return Reach(low, high, eps)


@dataclass(frozen=True)
class _Downhill:
    """Moves along ``-a``: their sign, least and greatest length, and where they are forced."""

    sign: Tensor
    least: Tensor
    most: Tensor
    forced: Tensor  # an element outside its range that can only move uphill

    def move(self, length: Tensor) -> Tensor:
        return self.sign * length.where(~self.forced, -length)


def _downhill(a: Tensor, reach: Reach) -> _Downhill:
    import torch

    down = a > 0
    sign = torch.where(down, -1.0, 1.0).to(a.dtype)
    least = torch.where(down, -reach.high, reach.low)
    most = torch.where(down, -reach.low, reach.high)
    forced = most < 0
    least = torch.where(forced, -most, least.clamp(min=0))
    return _Downhill(sign, least, torch.where(forced, -most, most), forced)


def level(a: Tensor, reach: Reach, p: float) -> tuple[Tensor, Tensor, Tensor]:
    """The multiplier for p > 1, with no gradient.

    In ``s``, a power of the inverse multiplier, the p-th power of a free element's move is linear:
    ``|d_i|^p = s w_i``. So ``|d|_p^p`` is a piecewise linear, increasing function of ``s``, and
    Newton's method, kept inside a bracket, finds where it equals ``eps^p``.

    Returns:
        ``(m, d, free)``: the multiplier ``(B, R, 1)`` (0 where the ball does not bind), the move
        ``(B, R, n)``, and which elements are free of the box.
    """
    import torch

    with torch.no_grad():
        examples = max(a.shape[0], reach.low.shape[0])
        if examples * a.shape[1] * a.shape[2] <= _PIECE or a.device.type != "cpu":
            return _level(a, reach, p)
        rows = max(1, _PIECE // max(1, a.shape[2]))
        done = []
        for i in range(examples):  # pieces that stay in the cache are several times faster
            own, around = a[i : i + 1] if a.shape[0] > 1 else a, reach.example(i)
            parts = [_level(own[:, r : r + rows], around, p) for r in range(0, a.shape[1], rows)]
            done.append([torch.cat(column, 1) for column in zip(*parts, strict=True)])
        multiplier, move, free = (torch.cat(column) for column in zip(*done, strict=True))
        return multiplier, move, free


def _level(a: Tensor, reach: Reach, p: float) -> tuple[Tensor, Tensor, Tensor]:
    """`level` in one piece."""
    import torch

    path, q = _downhill(a, reach), p / (p - 1)
    top = a.abs().amax(-1, keepdim=True) if a.shape[-1] else a.sum(-1, keepdim=True)
    top = top.where(top > 0, 1.0)
    weight = (a.abs() / top) ** q
    least, most, target = path.least**p, path.most**p, reach.eps**p
    moving = weight > 0
    binds = torch.where(moving, most, least).sum(-1, keepdim=True) > target
    s = _newton(weight, least, most, target, binds)
    length = torch.where(moving, (s * weight).clamp(least, most), least)
    length = torch.where(binds, length, torch.where(moving, most, least))
    free = binds & moving & (s * weight > least) & (s * weight < most) & ~path.forced
    bounded = torch.maximum(s, 1e-10 * target)  # a radius just enough to reach the range: s = 0
    multiplier = (top * bounded ** (-1 / q)).where(binds, 0.0).nan_to_num(0.0, 0.0, 0.0)
    return multiplier, path.move(length ** (1 / p)), free


def _newton(weight: Tensor, least: Tensor, most: Tensor, target: Tensor, binds: Tensor) -> Tensor:
    """``s`` with ``sum clamp(s weight, least, most) = target``, ``(B, R, 1)``."""
    import torch

    close = _CLOSE[weight.element_size()] * target
    s = torch.zeros_like(weight.sum(-1, keepdim=True) + target)
    low, high = s.clone(), torch.full_like(s, float("inf"))
    for _ in range(_STEPS):
        grown = s * weight
        value = grown.clamp(least, most).sum(-1, keepdim=True)
        short = value <= target
        done = ((value - target).abs() <= close) | ~binds
        if bool(done.all()):
            break
        low, high = torch.where(short, s, low), torch.where(short, high, s)
        rising = (grown >= least) & (grown < most)
        slope = (weight * rising).sum(-1, keepdim=True)
        newton = s + (target - value) / slope
        middle = torch.where(high.isinf(), 2 * low + 1, 0.5 * (low + high))
        s = torch.where(done, s, torch.where((newton > low) & (newton < high), newton, middle))
    return s


def fill(a: Tensor, reach: Reach) -> tuple[Tensor, Tensor, Tensor]:
    """p = 1: spend the radius on the largest coefficients first.

    Returns:
        ``(share, m, d)``: the ball's part of ``a`` (differentiable), the multiplier ``(B, R)``,
        which is its dual norm, and the optimal move.
    """
    import torch

    a = a.expand(max(a.shape[0], reach.low.shape[0]), -1, -1)
    size = a.abs()
    with torch.no_grad():
        path = _downhill(a, reach)
        budget = (reach.eps - path.least.sum(-1, keepdim=True)).clamp(min=0)
        order = size.argsort(-1, descending=True)
        steps = (path.most - path.least).gather(-1, order)
        spent = steps.cumsum(-1)
        short = spent < budget
        position = short.sum(-1, keepdim=True)
        binds = position < a.shape[-1]
        pivot = order.gather(-1, position.clamp(max=max(a.shape[-1] - 1, 0)))
        taken = torch.minimum(steps, (budget - (spent - steps)).clamp(min=0))
        length = path.least + torch.zeros_like(size).scatter(-1, order, taken)
        move = path.move(length)
    multiplier = size.gather(-1, pivot) * binds
    share = torch.maximum(torch.minimum(a, multiplier), -multiplier)
    share = torch.where(reach.low > 0, -multiplier, share)
    return torch.where(reach.high < 0, multiplier, share), multiplier.squeeze(-1), move
