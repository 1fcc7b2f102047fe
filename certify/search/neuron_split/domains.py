"""Sub-problems: what was split, and what the parent's bound leaves to start from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

NONE = -1  # step of a split that is not there


@dataclass(frozen=True, eq=False)
class Domains:
    """N sub-problems, each a clause to refute where up to D splits hold.

    Attributes:
        clause: ``(N,)`` index of the clause.
        weight: ``(N, r)`` of its rows.
        step, element: ``(N, D)``: which element of which step's result; step -1: no split.
        point: ``(N, D)`` float64, a float32 number.
        side: ``(N, D)``: +1 where ``z >= point``, -1 where ``z <= point``.
        beta: ``(N, D)`` multipliers >= 0; scale: what they may usefully grow to.
        slopes: ``(N, M)`` all optimisable slopes, joined; see `Layout`.
        margin: ``(N,)`` float64, proved.
        node: ``(N,)`` number in the tree.
        depth: ``(N,)`` number of splits.
    """

    clause: Tensor
    weight: Tensor
    step: Tensor
    element: Tensor
    point: Tensor
    side: Tensor
    beta: Tensor
    scale: Tensor
    slopes: Tensor
    margin: Tensor
    node: Tensor
    depth: Tensor

    def __len__(self) -> int:
        return len(self.clause)

    @property
    def steps(self) -> set[int]:
        """Every step that is split anywhere."""
        found: list[int] = self.step.flatten().tolist()
        return set(found) - {NONE}

    def take(self, index: Tensor | slice) -> Domains:
        """The sub-problems named by an index or a mask."""
        return Domains(*(getattr(self, f.name)[index] for f in fields(self)))

    def padded(self, depth: int) -> Domains:
        """The same with room for at least ``depth`` splits."""
        missing = depth - self.step.shape[1]
        if missing <= 0:
            return self
        blank = {"step": NONE, "element": 0, "point": 0.0, "side": 1, "beta": 0.0, "scale": 0.0}

        def wider(name: str, value: float) -> Tensor:
            old = getattr(self, name)
            return torch.cat([old, old.new_full((len(old), missing), value)], 1)

        return replace(self, **{name: wider(name, value) for name, value in blank.items()})


def joined(parts: Iterable[Domains]) -> Domains:
    """Several batches as one."""
    every = list(parts)
    if len(every) == 1:
        return every[0]
    depth = max(d.step.shape[1] for d in every)
    wide = [d.padded(depth) for d in every]
    return Domains(*(torch.cat([getattr(d, f.name) for d in wide]) for f in fields(Domains)))


@dataclass
class Open:
    """Open sub-problems in blocks, each sorted by margin; the worst come off first."""

    block: int = 128
    blocks: list[Domains] = field(default_factory=list)
    count: int = 0

    def push(self, domains: Domains) -> None:
        """Add sub-problems."""
        order = torch.argsort(domains.margin, stable=True)
        for start in range(0, len(order), self.block):
            part = domains.take(order[start : start + self.block])
            self.blocks.append(_trimmed(part))
        self.count += len(domains)

    def pop(self, count: int) -> Domains:
        """Take up to ``count`` off the list."""
        found, size = list[Domains](), 0
        while self.blocks and size < count:
            worst = [float(b.margin[0]) for b in self.blocks]
            block = self.blocks.pop(worst.index(min(worst)))
            room = count - size
            if len(block) > room:
                self.blocks.append(block.take(slice(room, None)))
                block = block.take(slice(room))
            found.append(block)
            size += len(block)
        self.count -= size
        return joined(found)

    def worst(self) -> Domains | None:
        """The sub-problem with the worst margin; None when nothing is open."""
        if not self.blocks:
            return None
        return min(self.blocks, key=lambda b: float(b.margin[0])).take(slice(1))

    def share(self, clauses: int) -> float:
        """How much is open: halves of halves, averaged over the clauses."""
        total = sum(float((0.5 ** b.depth.double()).sum()) for b in self.blocks)
        return total / clauses


def _trimmed(domains: Domains) -> Domains:
    """Without columns that no sub-problem uses."""
    used = int(domains.depth.max()) if len(domains) else 0
    if used == domains.step.shape[1]:
        return domains
    names = ("step", "element", "point", "side", "beta", "scale")
    return replace(domains, **{n: getattr(domains, n)[:, :used].contiguous() for n in names})
