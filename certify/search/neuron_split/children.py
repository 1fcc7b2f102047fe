"""Both halves of sub-problems, and which of a few splits leaves the better pair."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from certify.bounds.crown import State
from certify.search.neuron_split.ascent import pieces, taken
from certify.search.neuron_split.bounding import Variables, cut, opened, searched
from certify.search.neuron_split.branching import Offers
from certify.search.neuron_split.domains import Domains, joined
from certify.search.neuron_split.root import Chooser, Root


def halves(root: Root, domains: Domains, offer: Offers) -> Domains:
    """Both children of each sub-problem: all first ones (``z <= s``), then all second ones.

    Args:
        offer: one column; its step must not be -1.
    """
    pair = [_half(root, domains, offer, side) for side in (-1, 1)]
    return joined(pair)


def _half(root: Root, domains: Domains, offer: Offers, side: int) -> Domains:
    most = int(domains.depth.max()) + 1
    wide = domains.padded(most)
    at = wide.depth[:, None]
    beta = offer.right if side > 0 else offer.left

    def put(name: str, value: Tensor) -> Tensor:
        old = getattr(wide, name)
        changed: Tensor = old.scatter(1, at, value.to(old.dtype))
        return changed

    return replace(
        wide,
        step=put("step", offer.step),
        element=put("element", offer.element),
        point=put("point", offer.point),
        side=put("side", torch.full_like(offer.step, side)),
        beta=put("beta", beta),
        scale=put("scale", offer.scale),
        slopes=_forgotten(root, wide.slopes, offer),
        depth=wide.depth + 1,
    )


def _forgotten(root: Root, slopes: Tensor, offer: Offers) -> Tensor:
    """Slopes with those of the split element unknown, so that they start from the default."""
    slopes = slopes.clone()
    for place in root.layout.places:
        step = root.fast.steps[place.step]
        if step is None or not step.curve.elementwise:
            continue
        hit = (offer.step == step.variables[0]) & (offer.element == place.index)
        slopes[:, place.start : place.stop][hit] = torch.nan
    return slopes


def best_halves(
    root: Root, domains: Domains, found: Offers, size: int, state: State | None = None
) -> Domains:
    """The children of the split whose worse child is bounded best; the other child breaks ties.

    Args:
        found: ``(N, C)``; at least one offer of every sub-problem is a split.
        size: sub-problems that may be bounded at once.
        state: of the sub-problems in plain floats, to look at their children quickly.
    """
    count, choices = found.step.shape
    score = domains.weight.new_full((count, choices), -torch.inf)
    sub, column = (found.step >= 0).nonzero(as_tuple=True)
    for part in pieces(len(sub), max(1, size // 2)):
        at = sub[part]
        offer = Offers(*(t[at, column[part]][:, None] for t in found))
        both = halves(root, domains.take(at), offer)
        near = None if state is None else _nearby(root, state, both, torch.cat([at, at]))
        values = cheaply(root, both, near).clamp(max=0.0)
        low, high = values.chunk(2)
        score[at, column[part]] = torch.minimum(low, high) + 0.25 * torch.maximum(low, high)
    pick = score.argmax(1)
    return halves(root, domains, found.column(pick))


def _nearby(root: Root, state: State, domains: Domains, parent: Tensor) -> State | None:
    """Parents' intervals cut at their children's splits only; None where inputs are split.

    Enough to compare splits: what a cut does to later intervals is left out.
    """
    if domains.steps & set(root.fast.inputs):
        return None
    near = taken(state, parent)
    cut(near, domains)
    return near


def cheaply(root: Root, domains: Domains, state: State | None = None) -> Tensor:
    """Margins ``(N,)`` in plain floats with what is stored, infinite where nothing is left."""
    with torch.no_grad():
        if state is not None:
            return _bounded(root, state, domains)
        state, empty = opened(root, domains, rigorous=False)
        return torch.where(empty, torch.inf, _bounded(root, state, domains))


def _bounded(root: Root, state: State, domains: Domains) -> Tensor:
    chooser = Chooser(state, root.layout, len(domains))
    like = state.program.dtype
    chosen = Variables(
        chooser.inside(domains.slopes), domains.beta.to(like), domains.weight.to(like)
    )
    return searched(root, state, chooser, domains, chosen)
