"""Bounds for training: the engine in plain floats, on the model's live parameters.

No rounding is accounted for: a training loss proves nothing. The graph is exported once and reused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from certify.bounds.budget import DEFAULT_MEMORY, Limits
from certify.bounds.crown import Plan, State, interval_row_bounds, row_bounds, tighten
from certify.bounds.evaluate import run
from certify.bounds.interval import interval_step
from certify.bounds.program import Program, Step, prepare
from certify.core.errors import BadInput
from certify.core.graph import Graph
from certify.core.region import Region
from certify.core.semantics import Semantics
from certify.importers.torch_graph import from_torch
from certify.importers.torch_module import check_current
from certify.ops.record import Interval

_ELIDED = 2**22  # coefficients up to which margins are bounded, and not differences of bounds


class Bounder:
    """The graph of a module, exported when first needed.

    Raises:
        BadInput: the module cannot be imported, or its graph changed since it was.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._graph: Graph | None = None
        self._shape: tuple[int, ...] = ()

    def graph(self, x: Tensor) -> Graph:
        """For inputs like ``x (B, *shape)``."""
        shape = tuple(x.shape[1:])
        if self._graph is None or shape != self._shape:
            self._graph, self._shape = from_torch(self.model, x[:1].detach()), shape
            if self._graph.source["frozen"]:
                names = ", ".join(list(self._graph.source["frozen"])[:3])
                raise BadInput(f"the model computes weights ({names}) from its parameters, which "
                               f"the "
                               "graph holds fixed: gradients would be lost; use plain parameters")
        else:
            check_current(self._graph)
        return self._graph

    def program(self, x: Tensor, statistics: Mapping[str, Tensor]) -> Program:
        """Ready to run; batch norms use ``statistics`` (by state name) where they are given."""
        graph = self.graph(x)
        if statistics:
            live = graph.source["live"]
            constants = {name: statistics.get(live.get(name, ""), value)
                         for name, value in graph.constants.items()}
            graph = replace(graph, constants=MappingProxyType(constants))
        return prepare(graph, x.dtype, x.device)


def logits(program: Program, x: Tensor) -> Tensor:
    """The model's answers ``(B, classes)`` at ``x (B, *shape)``, by the graph."""
    shape = program.shape(program.inputs[0])
    return run(program, (x.reshape(len(x), *shape),))[program.output].reshape(len(x), -1)


@dataclass(frozen=True, eq=False)
class Analysis:
    """Interval (or tighter) bounds of every step on one region, and bounds of margins from them.

    Attributes:
        state: what the engine knows.
        y: labels ``(B,)``.
    """

    state: State
    y: Tensor

    @cached_property
    def rows(self) -> Tensor:
        """``e_y - e_j`` for every other class j, ``(B, classes - 1, *output)``."""
        shape = self.state.program.shape(self.state.program.output)
        return margin_rows(self.y, math.prod(shape), self._like).reshape(len(self.y), -1, *shape)

    @property
    def _like(self) -> Tensor:
        return self.state.box(self.state.program.inputs[0]).lower

    @cached_property
    def interval(self) -> Tensor:
        """Lower bounds of the margins ``(B, classes - 1)`` by intervals, last layer elided."""
        return interval_row_bounds(self.state, {self.state.program.output: self.rows})

    def linear(self, slopes: Any = None) -> Tensor:
        """Lower bounds of the margins by a backward pass."""
        return row_bounds(self.state, {self.state.program.output: self.rows}, slopes)

    def fused(self, beta: float) -> Tensor:
        """Upper bound of the robust cross-entropy, ``(B,)``, from one backward row per example.

        Loss fusion (Xu et al. 2020, section 3.3): ``log sum_j exp(z_j - z_y)``, the exponential
        under its chord on the interval bounds; their sum is one linear function. ``beta`` mixes its
        backward bound with its interval bound.
        """
        low, high = self._differences()
        top = high.detach().amax(1, keepdim=True).clamp_min(0.0)
        slope, offset = _chord(low - top, high - top)
        at = {self.state.program.output: self._weighted(slope)}
        # the row is a sum of margins z_y - z_j: its lower bound is an upper bound of differences
        bound = beta * row_bounds(self.state, at)[:, 0] if beta > 0 else 0.0
        if beta < 1:
            bound = bound + (1 - beta) * interval_row_bounds(self.state, at)[:, 0]
        total = offset.sum(1) - (slope * top).sum(1) - bound
        rest = torch.exp(-top[:, 0])  # exp(z_y - z_y)
        found: Tensor = torch.log((total + rest).clamp_min(rest)) + top[:, 0]
        return found

    def _differences(self) -> tuple[Tensor, Tensor]:
        """Bounds of ``z_j - z_y``; for many classes from the bounds of each, which takes less."""
        output = self.state.program.output
        box = self.state.box(output)
        widest = max(math.prod(s) for s in self._feeding(output))
        if box.lower.numel() * widest <= _ELIDED:
            both = interval_row_bounds(self.state, {output: self.rows}, mirrored=True)
            margin, difference = both.chunk(2, 1)
            return difference, -margin
        lower, upper = box.lower.flatten(1), box.upper.flatten(1)
        own = self.y.unsqueeze(1)
        others = other_classes(self.y, lower.shape[1])
        low = lower.gather(1, others) - upper.gather(1, own)
        high = upper.gather(1, others) - lower.gather(1, own)
        return low, high

    def _weighted(self, weight: Tensor) -> Tensor:
        """``sum_j weight_j (e_y - e_j)`` as one row ``(B, 1, *output)``."""
        shape = self.state.program.shape(self.state.program.output)
        row = weight.new_zeros(len(self.y), math.prod(shape))
        row = row.scatter(1, self.y.unsqueeze(1), weight.sum(1, keepdim=True))
        row = row.scatter(1, other_classes(self.y, row.shape[1]), -weight)
        return row.reshape(len(row), 1, *shape)

    def _feeding(self, index: int) -> list[tuple[int, ...]]:
        step = self.state.program.steps[index]
        return [self.state.program.shape(i) for i in step.variables] if step else [(1,)]

    def activations(self) -> list[tuple[Step, Interval]]:
        """Every nonlinear step of one operand, with the bounds of that operand."""
        found = []
        for step in self.state.program.steps:
            if step is not None and not step.affine and len(step.variables) == 1:
                found.append((step, self.state.box(step.variables[0])))
        return found


def analyse(program: Program, region: Region, y: Tensor, refine: bool = False) -> Analysis:
    """Bounds of every step on a region, intervals or (``refine``) by backward passes."""
    shape = program.shape(program.inputs[0])
    plan = Plan(refine=refine)
    state = tighten(program, region.batched(shape), plan, Semantics.SEARCH, Limits(DEFAULT_MEMORY))
    return Analysis(state, y)


def shrunk(program: Program, region: Region, y: Tensor, factor: float) -> Analysis:
    """As `analyse` by intervals, upper ends before unstable ReLUs times ``factor``: not a bound.

    Mueller et al. 2023, section 4 ("ReLU shrinking").
    """
    lower, upper = region.bounding_box()
    bounds: list[Interval | None] = []
    for step in program.steps:
        if step is None:
            bounds.append(Interval(lower, upper))
            continue
        given = list(bounds)
        if step.op.name == "relu":
            [source] = step.variables
            given[source] = _shrunk_box(bounds[source], factor)
        bounds.append(interval_step(step, given, Semantics.SEARCH)[0])
    state = State(program, region, Semantics.SEARCH, Limits(DEFAULT_MEMORY), bounds)
    return Analysis(state, y)


def _shrunk_box(box: Interval | None, factor: float) -> Interval | None:
    if box is None:
        return None
    unstable = (box.lower < 0) & (box.upper > 0)
    return Interval(box.lower, torch.where(unstable, box.upper * factor, box.upper))


def other_classes(y: Tensor, classes: int) -> Tensor:
    """``(B, classes - 1)``: all classes but the own one, ascending."""
    every = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    return every + (every >= y.unsqueeze(1)).long()


def margin_rows(y: Tensor, classes: int, like: Tensor) -> Tensor:
    """``(B, classes - 1, classes)``: one in the column of the own class, minus one in another."""
    rows = like.new_zeros(len(y), classes - 1, classes)
    rows.scatter_(2, y.view(-1, 1, 1).expand(-1, classes - 1, 1), 1.0)
    rows.scatter_(2, other_classes(y, classes).unsqueeze(-1), -1.0)
    return rows


def robust_cross_entropy(margins: Tensor) -> Tensor:
    """``log(1 + sum_j exp(-margin_j))`` per example, from margins ``(B, classes - 1)``."""
    return torch.logsumexp(nn.functional.pad(-margins, (1, 0)), 1)


def margins_of(answers: Tensor, y: Tensor) -> Tensor:
    """``z_y - z_j``, ``(B, classes - 1)``, of logits ``(B, classes)``."""
    others = other_classes(y, answers.shape[1])
    return answers.gather(1, y.unsqueeze(1)) - answers.gather(1, others)


def _chord(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and offset of the exponential's chord on ``[low, high]``.

    Where that is too narrow for a quotient, a flatter line through the upper end, above it all.
    """
    width = high - low
    narrow = width < 1e-4
    ends = torch.exp(low), torch.exp(high)
    slope = torch.where(narrow, ends[0], (ends[1] - ends[0]) / width.where(~narrow, 1.0))
    return slope, ends[1] - slope * high
