"""Rows that touch only a window of a feature map, kept as windows.

A neuron of an early convolution sees a few pixels. Its coefficients are a small patch at a place
of its own, not a whole map: memory and work grow with the receptive field. Places differ from row
to row, so any subset of neurons can be bounded; a residual connection adds two patches whose
places differ by the same amount in every row. (The idea of windows is that of Xu et al. 2020,
section C.3; there every pixel has a row, on a dense grid.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv_transpose2d, pad

from certify.bounds.program import Step
from certify.bounds.reference import windows
from certify.bounds.rows import UnitRows
from certify.ops.families import Lines
from certify.ops.phases import phases_pay, transpose_by_phases
from certify.ops.windows import window_of

_SCALING = frozenset({"batch_norm", "mul", "div", "neg", "add", "sub"})
_DENSE_FROM = 0.75  # share of the map a window may cover before a dense tensor is cheaper


@dataclass(frozen=True, eq=False)
class PatchRows:
    """Coefficients ``(B, R, h, w, C)`` of windows of a ``(..., C, H, W)`` map; zero elsewhere.

    Attributes:
        values: entries of a window that fall outside the map count as zero. Channels come last:
            that is the order in which convolutions and the kernels run fastest.
        top, left: position of each window's first entry, ``(B, R)``; may be negative.
        shape: the step's shape for one example.
        twice: the second half of the rows has the places of the first.
        clean: entries outside the map really are zero; otherwise they are to be ignored.
    """

    values: Tensor
    top: Tensor
    left: Tensor
    shape: tuple[int, ...]
    twice: bool = False
    clean: bool = True

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every window."""
        return self.values.shape[2], self.values.shape[3]

    def zeros(self) -> Tensor:
        """One zero per row, ``(B, R)``."""
        return self.values.new_zeros(self.top.shape)

    def abs(self) -> PatchRows:
        """The rows with absolute coefficients."""
        return replace(self, values=self.values.abs())

    def mirrored(self) -> PatchRows:
        """These rows, then their negations."""
        double = torch.cat((self.values, -self.values), 1)
        top, left = (torch.cat((t, t), 1) for t in (self.top, self.left))
        return replace(self, values=double, top=top, left=left, twice=True)

    def dense(self) -> Tensor:
        """The rows as ``(B, R, *shape)``, channels last in memory."""
        (h, w), (H, W) = self.size, self.shape[-2:]
        B, R, C = *self.values.shape[:2], self.values.shape[4]
        # A border that holds what sticks out makes every place legal; one scatter, no loop.
        up, left = (max(0, -int(t.min())) for t in (self.top, self.left))
        tall = up + max(H, int(self.top.max()) + h)
        wide = left + max(W, int(self.left.max()) + w)
        full = self.values.new_zeros(B * R, tall * wide, C)
        y = (self.top + up).reshape(-1, 1) + torch.arange(h, device=self.top.device)
        x = (self.left + left).reshape(-1, 1) + torch.arange(w, device=self.top.device)
        place = (y.unsqueeze(2) * wide + x.unsqueeze(1)).reshape(B * R, -1, 1).expand(-1, -1, C)
        full.scatter_(1, place, self.values.reshape(B * R, h * w, C))
        cut = full.reshape(B * R, tall, wide, C)[:, up : up + H, left : left + W]
        return cut.contiguous().permute(0, 3, 1, 2).reshape(B, R, *self.shape)

    def windows(self, maps: Tensor) -> Tensor:
        """The windows of ``maps (B or 1, *shape)``, zero outside, as ``(B, R, h, w, C)``."""
        maps = maps.reshape(maps.shape[0], *self.shape[-3:])
        last, R = len(maps) - 1, self.top.shape[1]
        R = R // 2 if self.twice else R
        found = torch.stack(
            [
                windows(maps[min(b, last)], self.top[b, :R], self.left[b, :R], self.size)
                for b in range(len(self.top))
            ]
        )
        return torch.cat((found, found), 1) if self.twice else found

    def cleaned(self) -> PatchRows:
        """The same rows with zeros outside the map."""
        if self.clean:
            return self
        (h, w), (H, W) = self.size, self.shape[-2:]
        y = self.top.unsqueeze(-1) + torch.arange(h, device=self.top.device)
        x = self.left.unsqueeze(-1) + torch.arange(w, device=self.top.device)
        inside = ((y >= 0) & (y < H)).unsqueeze(-1) & ((x >= 0) & (x < W)).unsqueeze(-2)
        return replace(self, values=self.values * inside.unsqueeze(-1), clean=True)

    def dot(self, maps: Tensor) -> Tensor:
        """``sum coefficient * map``, ``(B, R)``, for ``maps (B or 1, *shape)``."""
        return (self.values * self.windows(maps)).flatten(2).sum(-1)

    def scaled(self, maps: Tensor) -> PatchRows:
        """Each coefficient times the element of ``maps (B or 1, *shape)`` it belongs to."""
        return replace(self, values=self.values * self.windows(maps), clean=True)

    def plus(self, other: PatchRows) -> PatchRows | None:
        """The sum, or None where the windows' offsets differ from row to row."""
        down, right = other.top - self.top, other.left - self.left
        dy, dx = int(down.flatten()[0]), int(right.flatten()[0])
        if bool((down != dy).any()) or bool((right != dx).any()):
            return None
        (h, w), (g, v) = self.size, other.size
        y0, x0 = min(0, dy), min(0, dx)
        y1, x1 = max(h, dy + g), max(w, dx + v)
        mine = pad(self.values, (0, 0, -x0, x1 - w, -y0, y1 - h))
        theirs = pad(other.values, (0, 0, dx - x0, x1 - dx - v, dy - y0, y1 - dy - g))
        return PatchRows(
            mine + theirs,
            self.top + y0,
            self.left + x0,
            self.shape,
            twice=self.twice and other.twice,
            clean=self.clean and other.clean,
        )


def relax_patches(rows: PatchRows, lines: Lines) -> tuple[PatchRows, Tensor] | None:
    """Patches through an elementwise relaxation: new patches and a bias ``(B, R)``.

    None where the lines differ from row to row, or the operator has several operands.
    """
    low, up = lines.low[0], lines.up[0]
    constants = [t for t in (low, up, lines.low_c, lines.up_c) if t is not None]
    if len(lines.low) != 1 or any(t.shape[1] != 1 for t in constants):
        return None
    if lines.site.shapes[0] != lines.site.shape:
        return None
    shape, coefficients = lines.site.shape, rows.values

    def take(t: Tensor | None) -> Tensor:
        if t is None:
            return coefficients.new_zeros(())
        return rows.windows(t[:, 0].expand(-1, *shape))

    slopes = torch.where(coefficients > 0, take(low), take(up))
    bias = rows.zeros()
    for constant, positive in ((lines.low_c, True), (lines.up_c, False)):
        if constant is not None:
            part = coefficients.clamp(min=0) if positive else coefficients.clamp(max=0)
            bias = bias + torch.nan_to_num(part * take(constant), 0.0).flatten(2).sum(-1)
    return replace(rows, values=coefficients * slopes, clean=True), bias


def pull_patches(step: Step, rows: Any) -> tuple[Any, ...] | None:
    """Unit or patch rows through an affine step; None where only a dense tensor will do."""
    name, site = step.op.name, step.site
    if name == "conv" and len(site.shapes[1]) == 4 and sum(site.varies) == 1:
        return _pull_conv(step, rows)
    if not isinstance(rows, PatchRows) or site.shape != rows.shape:
        return None
    if name == "add" and all(site.varies) and site.shapes[0] == site.shapes[1] == site.shape:
        return (replace(rows), replace(rows))
    if name in _SCALING and step.diagonal and site.shapes[site.varies.index(True)] == site.shape:
        ones = step.like.new_ones(1, *site.shape)
        factors = step.linear.transpose(site, ones, *step.constants)
        return tuple(None if f is None else rows.scaled(f) for f in factors)
    return None


def _pull_conv(step: Step, rows: Any) -> tuple[Any, ...] | None:
    site, weight = step.site, step.constants[1]
    if weight is None:
        raise TypeError(f"{site.name}: the convolution's weight is not a constant")
    window, groups = window_of(site.attrs, 2), int(site.attrs.get("groups", 1))
    (sy, sx), (py, px), (dy, dx) = window.strides, window.begins, window.dilations
    H, W = site.shapes[0][-2:]
    if isinstance(rows, UnitRows):
        if groups != 1 or (dy, dx) != (1, 1):
            return None
        OH, OW = site.shape[-2:]
        channel, place = rows.index // (OH * OW), rows.index % (OH * OW)
        values = weight.permute(0, 2, 3, 1)[channel]
        top, left = place // OW * sy - py, place % OW * sx - px
    else:
        rows = rows.cleaned()
        (h, w), (B, R) = rows.size, rows.top.shape
        flat = rows.values.reshape(B * R, h, w, -1).permute(0, 3, 1, 2)
        if groups == 1 and phases_pay(flat, weight, window.strides, window.dilations):
            whole = [(n - 1) * sy + k for n, k in zip((h, w), weight.shape[2:], strict=True)]
            found = transpose_by_phases(flat, weight, sy, (0, 0), (whole[0], whole[1]))
        else:
            kernel = weight.contiguous(memory_format=torch.channels_last)
            found = conv_transpose2d(flat, kernel, None, (sy, sx), 0, 0, groups, (dy, dx))
        found = found.permute(0, 2, 3, 1)
        values = found.reshape(B, R, *found.shape[1:])
        top, left = rows.top * sy - py, rows.left * sx - px
    kh, kw = values.shape[2:4]
    if kh * kw >= _DENSE_FROM * H * W:
        return None
    outside = (top < 0) | (left < 0) | (top + kh > H) | (left + kw > W)
    twice = isinstance(rows, PatchRows) and rows.twice
    clean = not bool(outside.any())
    return PatchRows(values, top, left, site.shapes[0], twice, clean), None, None
