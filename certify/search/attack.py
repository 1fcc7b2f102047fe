"""Looking for a counterexample: projected gradient descent on the distance to the unsafe set.

Madry et al. 2018 (arXiv:1706.06083), with many clauses at once (multi-targeted, Gowal et al.
2019, arXiv:1910.09338) and starts diverse in the outputs (Tashiro et al. 2020, arXiv:2003.06878).
What is found here is a suggestion: `certify.search.replay.confirm` decides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certify.bounds.program import prepare
from certify.core.errors import BadInput
from certify.core.graph import Graph
from certify.core.region import Region, as_inputs
from certify.core.spec import Spec
from certify.search.descent import Descent
from certify.search.goal import Goal, goal
from certify.search.space import Space
from certify.search.surrogate import Surrogate, surrogate

_NEAR = 1e-6  # relative: within this of the unsafe set, another implementation may differ
_DEEPER = 0.5  # a further candidate of the same round must be this much deeper inside
_ODD = 1_000_003  # spreads seeds
_VARIETY = 6  # further unsafe points of a round, when none before was accepted
_CHEAP = 2**18  # elements of all intermediate results that take no longer than the overhead


@dataclass(frozen=True)
class AttackSettings:
    """How hard to look.

    Attributes:
        quick: points of the first look.
        restarts: points per round; up to eight times as many where the network is so small that
            they cost next to nothing.
        steps: gradient steps per round.
        rounds: rounds after the first look; each starts from elsewhere.
        device: where to run.
        memory: bytes that intermediate results of one batch may take.
    """

    quick: int = 24
    restarts: int = 32
    steps: int = 40
    rounds: int = 6
    device: str | torch.device = "cpu"
    memory: int = 2**29


@dataclass(frozen=True, eq=False)
class Candidate:
    """A point worth running the model on.

    Attributes:
        x: all model inputs, flat, in the model's precision and inside the region.
        margin: largest row of the nearest clause, in plain floats; at most 0 inside the unsafe set.
            Outside, where the outputs are a softmax and are only compared, that of its logits.
        clause: index of that clause.
        example: index into the region's batch.
    """

    x: np.ndarray
    margin: float
    clause: int
    example: int = 0


def attack(  # noqa: PLR0913 (three describe the query, four the effort)
    graph: Graph,
    region: Region,
    spec: Spec,
    *,
    deadline: float = math.inf,
    seed: int = 0,
    settings: AttackSettings | None = None,
    starts: Any = None,
) -> Iterator[Candidate]:
    """Points in or near the unsafe set, as they are found.

    Stop taking from the iterator once a candidate is confirmed; while it is asked, it looks on. For
    each example the last candidate is the best point reached, whether or not it is inside the
    unsafe set: its margin is the distance that is left.

    Args:
        region: with or without a batch axis; every example of a batch is attacked in turn.
        deadline: by `time.monotonic`; no step is begun that would probably end after it.
        seed: equal seeds give equal candidates on one machine, unless the deadline cuts them off.
        starts: points to try first, ``(N, n)`` or ``(N, *shape)``, flat and joined for several
            inputs; moved into the region.

    Raises:
        BadInput: region, specification or starts do not fit the network.
    """
    settings = settings or AttackSettings()
    parts = as_inputs(region, list(graph.input_shapes))
    if spec.num_outputs != math.prod(graph.output_shape):
        raise BadInput(
            f"the specification is about {spec.num_outputs} outputs, the model has "
            f"{math.prod(graph.output_shape)}"
        )
    dtype = torch.float64 if graph.source.get("dtype") == "float64" else torch.float32
    with torch.no_grad():  # constants only: live parameters must not make a fresh program
        program = prepare(graph, dtype, settings.device)
    model = surrogate(program)
    batch = max(part.batch for part in parts)
    return _examples(model, parts, spec, _Plan(deadline, seed, settings, starts), batch)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What stays the same for all examples."""

    deadline: float
    seed: int
    settings: AttackSettings
    starts: Any


def _examples(
    model: Surrogate,
    parts: tuple[Region, ...],
    spec: Spec,
    plan: _Plan,
    batch: int,
) -> Iterator[Candidate]:
    for b in range(batch):
        own = tuple(part.rows(b if part.batch > 1 else 0) for part in parts)
        dtype, device = model.program.dtype, model.program.device
        hunt = _Hunt(model, Space(own, dtype, device), goal(spec, b, dtype, device), plan, b)
        yield from hunt.run()


@dataclass
class _Hunt:
    """The search on one example. Local to one call.

    Attributes:
        best, margins: the nearest point seen for each clause, ``(K, n)``, and its margin ``(K,)``.
        cost: seconds that one point takes, as last measured.
    """

    model: Surrogate
    space: Space
    goal: Goal
    plan: _Plan
    example: int
    best: Tensor = field(init=False)
    margins: Tensor = field(init=False)
    size: float = 0.0
    cost: float = 0.0
    shown: float = math.inf

    def __post_init__(self) -> None:
        count = self.goal.count
        self.best = self.space.centre.expand(count, -1).clone()
        self.margins = self.best.new_full((count,), math.inf)

    def run(self) -> Iterator[Candidate]:
        """The first look, the rounds, and finally the best point."""
        settings = self.plan.settings
        yield from self._first_look()
        for index in range(settings.rounds):
            if not self._time_for(self._restarts()):
                break
            yield from self._round(index)
        if self.shown > float(self.margins.min()):
            yield self._candidate(int(self.margins.argmin()))

    def _first_look(self) -> Iterator[Candidate]:
        """Centre, given points and random ones; then the corners their gradients point to."""
        space, plan = self.space, self.plan
        points = [space.centre]
        if plan.starts is not None:
            points.append(space.points(plan.starts))
        points.append(space.sample(max(2, plan.settings.quick), self._seed(0)))
        yield from self._look(torch.cat(points))
        most = max(1, plan.settings.quick // 2)
        nearest = self.margins.argsort(stable=True)[:most]
        if not self._time_for(4 * len(nearest)):
            return
        bases = torch.cat([space.centre.expand(len(nearest), -1), self.best[nearest]])
        gradient = self._gradient(bases, nearest.repeat(2))[0]
        yield from self._look(space.minimiser(gradient))

    def _round(self, index: int) -> Iterator[Candidate]:
        """One descent from a batch of starts."""
        settings = self.plan.settings
        x, clause = self._starts(index)
        descent = Descent.begin(self.space, x, settings.steps)
        self.shown = math.inf
        random = torch.Generator().manual_seed(self._seed(10 * index + 7))
        for _ in range(settings.steps):
            if not self._time_for(2 * len(x)):
                return
            gradient, rows = self._gradient(x, clause)
            yield from self._seen(x, rows)
            dead = ~gradient.any(1, keepdim=True)
            if bool(dead.any()):  # nothing to follow: wander
                noise = torch.randn(x.shape, generator=random, dtype=torch.float64)
                gradient = torch.where(dead, noise.to(x), gradient)
            x = descent.step(x, gradient)
        yield from self._look(x)
        if self.shown <= 0:  # and yet refused
            yield from self._variety(*self._starts(index))
            yield from self._variety(x, clause)

    def _starts(self, index: int) -> tuple[Tensor, Tensor]:
        """Where a round begins, and which clause each point aims at."""
        count = self._restarts()
        order = self.margins.argsort(stable=True)
        clause = order[_shares(count, len(order)).to(order.device)]
        anywhere = self.space.sample(count, self._seed(10 * index + 1))
        if index % 2:
            anywhere = self._diverse(anywhere, index)
        # In turn: the best point of the clause, that point shaken, anywhere, anywhere.
        kind = (torch.arange(count, device=order.device) // 2 % 4)[:, None]
        best = self.best[clause]
        shaken = self.space.project(best + 0.3 * (anywhere - best))
        x = torch.where(kind == 1, shaken, anywhere)
        return (torch.where(kind == 0, best, x) if index == 0 else x), clause

    def _diverse(self, x: Tensor, index: int) -> Tensor:
        """Points moved so that their outputs differ: a few steps up random directions of them."""
        random = torch.Generator().manual_seed(self._seed(10 * index + 2))
        width = self.goal.y.shape[1]
        up = (2 * torch.rand(len(x), width, generator=random, dtype=torch.float64) - 1).to(x)
        descent = Descent.begin(self.space, x, 3)
        for _ in range(3):
            if not self._time_for(2 * len(x)):
                break
            gradient = self._chunked(x, lambda v, at: -(self._outputs(v) * up[at]).sum(1))
            x = descent.step(x, gradient)
        return x

    # -- evaluating ---------------------------------------------------------------------------

    def _look(self, x: Tensor) -> Iterator[Candidate]:
        """Evaluate points without moving them."""
        found = []
        started = time.monotonic()
        with torch.no_grad():
            for part in torch.split(x, self._chunk()):
                y, before = self.model.run(self.space.split(part))
                self.size = max(self.size, float(y.abs().nan_to_num(0, 0, 0).max()))
                found.append(self._rows(part, y, before))
        self._measure(started, len(x))
        yield from self._seen(x, torch.cat(found, 1))

    def _gradient(self, x: Tensor, clause: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the points' losses ``(N, n)``, and their rows, see `_rows`."""
        rows: list[Tensor] = []

        def loss(v: Tensor, at: slice) -> Tensor:
            y, before = self.model.run(self.space.split(v))
            found = self._rows(v, y, before)
            rows.append(found.detach())
            return self.goal.loss(found[1], clause[at])

        started = time.monotonic()
        gradient = self._chunked(x, loss)
        self._measure(started, 2 * len(x))
        return gradient, torch.cat(rows, 1)

    def _chunked(self, x: Tensor, loss: Any) -> Tensor:
        found, chunk = [], self._chunk()
        for start in range(0, len(x), chunk):
            at = slice(start, start + chunk)
            part = x[at].detach().requires_grad_(True)
            with torch.enable_grad():
                total = loss(part, at).sum()
                (gradient,) = (
                    torch.autograd.grad(total, part, allow_unused=True)
                    if total.requires_grad
                    else (None,)
                )
            found.append(
                torch.zeros_like(part) if gradient is None else gradient.nan_to_num(0, 0, 0)
            )
        return torch.cat(found).detach()

    def _outputs(self, x: Tensor) -> Tensor:
        return self.model.run(self.space.split(x))[0]

    def _chunk(self) -> int:
        """Points at once, so that all intermediate results and their gradients fit the memory."""
        width = self.model.program.dtype.itemsize
        return max(1, self.plan.settings.memory // (2 * width * self._elements()))

    def _restarts(self) -> int:
        least = self.plan.settings.restarts
        return max(least, min(8 * least, _CHEAP // self._elements()))

    def _elements(self) -> int:
        """Of all intermediate results of one point."""
        return max(1, sum(math.prod(node.shape) for node in self.model.program.graph.nodes))

    # -- keeping ------------------------------------------------------------------------------

    def _rows(self, x: Tensor, y: Tensor, before: Tensor) -> Tensor:
        """``(2, N, R)``: the rows themselves, and rows of the same signs that never saturate."""
        g = self.goal.values(x, y)
        return torch.stack([g, self.goal.values(x, before) if self.goal.compares else g])

    def _seen(self, x: Tensor, rows: Tensor) -> Iterator[Candidate]:
        """Remember the best points; yield one that is inside, or nearly, and deeper than before."""
        true = self.goal.worst(rows[0])
        unsafe = self.goal.inside(rows[0])
        worst = torch.where(unsafe, true, self.goal.worst(rows[1]))
        value, index = worst.min(0)
        better = value < self.margins
        self.margins = torch.where(better, value, self.margins)
        self.best = torch.where(better[:, None], x.detach()[index], self.best)
        inside = unsafe | (true <= _NEAR * self.size)
        if not bool(inside.any()):
            return
        promise = torch.where(inside, worst, math.inf)
        place = int(promise.argmin())
        point, clause = divmod(place, worst.shape[1])
        margin = float(worst[point, clause])
        if margin < self.shown - _DEEPER * abs(self.shown if math.isfinite(self.shown) else 0.0):
            self.shown = margin
            yield Candidate(x[point].detach().cpu().numpy().copy(), margin, clause, self.example)

    def _variety(self, x: Tensor, clause: Tensor) -> Iterator[Candidate]:
        """Unsafe points all the way from shallow to deep.

        Asked for when the deepest ones were refused: then rounding moves the outputs, and depth
        says little about which point is truly unsafe.
        """
        if not self._time_for(len(x)):
            return
        with torch.no_grad():
            y, before = self.model.run(self.space.split(x[: self._chunk()]))
            true = self.goal.worst(self._rows(x[: self._chunk()], y, before)[0])
        value = true.gather(1, clause[: len(true), None])[:, 0]
        unsafe = (value <= 0).nonzero()[:, 0]
        unsafe = unsafe[value[unsafe].argsort(descending=True, stable=True)]
        places = torch.linspace(0, len(unsafe) - 1, min(_VARIETY, len(unsafe))).round().long()
        for i in unsafe[places.to(unsafe.device)].tolist():
            point = x[i].detach().cpu().numpy().copy()
            yield Candidate(point, float(value[i]), int(clause[i]), self.example)

    def _candidate(self, clause: int) -> Candidate:
        x = self.best[clause].detach().cpu().numpy().copy()
        return Candidate(x, float(self.margins[clause]), clause, self.example)

    # -- time and chance ----------------------------------------------------------------------

    def _time_for(self, points: int) -> bool:
        return time.monotonic() + self.cost * points < self.plan.deadline

    def _measure(self, started: float, points: int) -> None:
        self.cost = (time.monotonic() - started) / max(1, points)

    def _seed(self, part: int) -> int:
        return (self.plan.seed * _ODD + self.example * 1009 + part) % 2**62


def _shares(count: int, clauses: int) -> Tensor:
    """For each of ``count`` points the rank of the clause it aims at: near ones get more.

    Every second pair aims at the nearest clauses in turn, the others go round all of them.
    """
    nearest = max(1, min(clauses, count // 8))
    pair = torch.arange(count) // 2
    return torch.where(pair % 2 == 0, (pair // 2) % nearest, (pair // 2) % clauses)
