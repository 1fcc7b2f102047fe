"""Random search without gradients: what hides its gradient hides nothing from it.

After the Square attack (Andriushchenko et al. 2020, arXiv:1912.00049): one window per query is
moved to the edge of the region, and kept where the margin falls. The window shrinks by the paper's
schedule. Other norms than l_inf take the same windows, of unit length in their norm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from certify.evaluation.attacks.arena import Arena, margins
from certify.evaluation.attacks.ascent import Record, steepest

_FIRST_SHARE = 0.8  # of the image that the first window covers
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # shares of all queries


def square(arena: Arena, queries: int, eps: float) -> Record:
    """Random windows, one query each for every example."""
    random = arena.random(77)
    centre = arena.centre()
    record = Record(centre[:, 0])
    x = arena.region.project(centre + 2 * eps * _stripes(arena, centre, random))
    for query in range(queries):
        found = margins(arena.scores(x), arena.labels)
        record.note(x, found)
        if record.done:
            return record
        share = _FIRST_SHARE * 0.5 ** sum(query >= queries * at for at in _HALVINGS)
        base = record.point.unsqueeze(1)
        move = steepest(arena.region, _windows(base, share, random))
        x = arena.region.project(base + 2 * eps * move)
    record.note(x, margins(arena.scores(x), arena.labels))
    return record


def _stripes(arena: Arena, like: Tensor, random: torch.Generator) -> Tensor:
    """Vertical stripes of random signs, the start of the paper."""
    shape = (*like.shape[:-2], 1, like.shape[-1]) if like.dim() > 3 else like.shape
    return steepest(arena.region, _signs(shape, random).to(like).expand_as(like))


def _windows(like: Tensor, share: float, random: torch.Generator) -> Tensor:
    """A window of random signs per channel for every example, zero elsewhere."""
    if like.dim() <= 3:  # no image: a share of the features
        chosen = torch.rand(like.shape, generator=random) < share
        return (_signs(like.shape, random) * chosen).to(like)
    *lead, height, width = like.shape
    size = max(1, round(math.sqrt(share * height * width)))
    spans = []
    for extent in (height, width):
        start = torch.randint(max(1, extent - size + 1), (len(like), 1), generator=random)
        at = torch.arange(extent)[None]
        spans.append((at >= start) & (at < start + size))
    window = spans[0][:, :, None] & spans[1][:, None, :]
    window = window.reshape(len(like), *(1,) * (len(lead) - 1), height, width)
    return (_signs((*lead, 1, 1), random) * window).to(like)


def _signs(shape: tuple[int, ...] | torch.Size, random: torch.Generator) -> Tensor:
    return 2.0 * torch.randint(2, shape, generator=random) - 1
