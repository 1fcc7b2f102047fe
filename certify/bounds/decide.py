"""Does a method prove a specification? Searched fast, then proved with all rounding charged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from certify.bounds.alpha import Alpha
from certify.bounds.budget import Limits
from certify.bounds.crown import (
    Plan,
    Recipe,
    Slopes,
    State,
    UnitPass,
    tighten,
)
from certify.bounds.methods import METHODS, Method, analyse, lower_rows, rows_again
from certify.bounds.program import Program, Step, prepare
from certify.bounds.rounding import step_error
from certify.bounds.selftest import check_arithmetic
from certify.core.graph import Graph
from certify.core.region import Region
from certify.core.semantics import Semantics
from certify.core.spec import Rows
from certify.ops.record import Interval

_SMALL = 4096  # elements of all tensors: below, searching in float32 first saves nothing
_NEAR = 1e-4  # share of the margins' size within which a float32 bound may be on the wrong side


@dataclass(frozen=True, eq=False)
class Question:
    """Rows to refute for a batch of examples.

    Attributes:
        region: batched, B examples, fitted to the graph's inputs.
        rows: as `Spec.rows` gives them; ``y`` may differ per example.
        bound: thresholds ``(B, R)``.
    """

    region: Region
    rows: Rows
    bound: np.ndarray

    def subset(self, mask: np.ndarray) -> Question:
        """The examples where ``mask (B,)`` is true."""
        if mask.all():
            return self
        index = np.flatnonzero(mask)
        y = self.rows.y if len(self.rows.y) == 1 else self.rows.y[index]
        x = self.rows.x if self.rows.x is None or len(self.rows.x) == 1 else self.rows.x[index]
        return Question(self.region.rows(index), self.rows._replace(y=y, x=x), self.bound[index])


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was needed to prove rows, so that it can be done again.

    Attributes:
        method: name of the method.
        recipe: backward passes behind the intermediate bounds, by step index; None for the
            method's own choice.
        slopes: optimised slopes of the last pass, by step index, or None.
    """

    method: str
    recipe: Recipe | None = None
    slopes: Slopes | None = None


@dataclass(frozen=True, eq=False)
class Decision:
    """Attributes:
    margins: lower bounds of each row minus its threshold, ``(B, R)``; positive refutes.
    proved: ``(B,)``; true only where the margins are rigorous and decide the specification.
    evidence: what the margins rest on.
    bounds: sound intervals per step that were found on the way, for whoever goes on from here.
    """

    margins: np.ndarray
    proved: np.ndarray
    evidence: Evidence
    bounds: Sequence[Interval | None] = ()

    def bounds_of(self, example: int) -> list[Interval | None]:
        """The intervals of one example, each with a batch axis of 1."""
        here = slice(example, example + 1)
        return [
            box
            if box is None or len(box.lower) == 1
            else Interval(box.lower[here], box.upper[here])
            for box in self.bounds
        ]


@dataclass(frozen=True)
class Means:
    """How to decide: semantics of the proof, device, limits, optimiser."""

    semantics: Semantics = Semantics.REAL
    device: str = "cpu"
    limits: Limits = Limits()
    alpha: Alpha = Alpha()


def decide(graph: Graph, question: Question, method: str, means: Means) -> Decision:
    """Try to refute all rows of a question by one method.

    Intermediate bounds are found in float32 with its rounding accounted for, so that they need not
    be found again; slopes are chosen in plain floats; the deciding pass runs in float64. What that
    leaves just short of a proof is tried once more with everything in float64.

    Raises:
        OutOfTime: the deadline passed.
        BrokenArithmetic: this machine's arithmetic cannot carry a proof.
    """
    chosen = METHODS[method]
    with torch.no_grad():
        program = prepare(graph, torch.float32, means.device)
        if sum(math.prod(n.shape) for n in graph.nodes) <= _SMALL or not program.exact:
            return _prove(graph, question, Evidence(method), means)
        check_arithmetic(means.device)
        state = analyse(
            program, question.region, chosen, means.semantics, means.limits, means.alpha
        )
        margins, slopes = _search(state, question, chosen, means)
        evidence = Evidence(method, dict(state.recipe), slopes)
        proved = np.zeros(len(margins), dtype=bool)
        for attempt in (_finish, _from_scratch):
            hopeful = ~proved & _promising(question.rows, margins)
            if hopeful.any():
                found = attempt(
                    graph,
                    question.subset(hopeful),
                    _select(evidence, hopeful),
                    _subset_bounds(state, hopeful),
                    means,
                )
                margins[hopeful] = np.where(found.proved[:, None], found.margins, margins[hopeful])
                proved[hopeful] = found.proved
        return Decision(margins, proved, evidence, state.bounds)


def _promising(rows: Rows, margins: np.ndarray) -> np.ndarray:
    """Examples ``(B,)`` that plain float32 margins prove, or nearly."""
    scale = np.abs(np.where(np.isfinite(margins), margins, 0.0)).max(axis=1, keepdims=True)
    return rows.refuted(margins + _NEAR * scale)


def _subset_bounds(state: State, mask: np.ndarray) -> list[Interval | None]:
    if mask.all():
        return list(state.bounds)
    index = torch.from_numpy(np.flatnonzero(mask)).to(state.program.device)

    def cut(box: Interval | None) -> Interval | None:
        if box is None or len(box.lower) == 1:
            return box
        return Interval(box.lower[index], box.upper[index])

    return [cut(box) for box in state.bounds]


def _finish(
    graph: Graph, question: Question, evidence: Evidence, known: list[Interval | None], means: Means
) -> Decision:
    """The deciding pass in float64, on sound intermediate bounds."""
    program = prepare(graph, torch.float64, means.device)
    if METHODS[evidence.method].passes == ("interval",):
        return _evaluate(_known_state(program, question, known, means), question, evidence)
    plan = Plan(refine=False, known=known)
    state = tighten(program, question.region, plan, means.semantics, means.limits)
    return _evaluate(state, question, evidence)


def _known_state(
    program: Program, question: Question, known: list[Interval | None], means: Means
) -> State:
    """Known bounds as a state, with the rounding errors of the last affine steps alone: rows are
    pulled back no further when intervals decide. Rows may name inputs too."""
    bounds: list[Interval | None] = [None] * len(known)
    state = State(program, question.region, means.semantics, means.limits, bounds)
    pending, affine = [program.output, *program.inputs], list[Step]()
    while pending:
        index = pending.pop()
        step, box = program.steps[index], known[index]
        if box is None:
            raise TypeError(f"step {index} has no bounds")
        if bounds[index] is None:
            bounds[index] = Interval(box.lower.double(), box.upper.double())
            if step is not None and step.affine:
                affine.append(step)
                pending += step.variables
    for step in affine:
        error = step_error(step, bounds, means.semantics)
        if error is not None:
            state.errors[step.index] = error
    return state


def _from_scratch(
    graph: Graph, question: Question, evidence: Evidence, known: list[Interval | None], means: Means
) -> Decision:
    """Everything in float64."""
    return _prove(graph, question, evidence, means)


def _evaluate(state: State, question: Question, evidence: Evidence) -> Decision:
    """Margins of the rows over a state's bounds, with the evidence's slopes."""
    rows = _row_map(state.program, question)
    values = rows_again(state, rows, METHODS[evidence.method], _double_slopes(evidence.slopes))
    # The sign of a difference of two floats is exact: no rounding to account for here.
    margins = values.cpu().numpy().astype(np.float64) - question.bound
    return Decision(margins, question.rows.refuted(margins), evidence, state.bounds)


def _search(
    state: State, question: Question, method: Method, means: Means
) -> tuple[np.ndarray, Slopes | None]:
    """Margins in plain floats, and the slopes that reach them."""
    bound = torch.as_tensor(question.bound, device=means.device)

    def done(best: Tensor) -> bool:
        margins = (best.double() - bound).cpu().numpy()
        scale = np.abs(np.where(np.isfinite(margins), margins, 0.0)).max(axis=1, keepdims=True)
        return bool(question.rows.refuted(margins - 2 * _NEAR * scale).all())

    searching = state.searching()
    values, slopes = lower_rows(
        searching, _row_map(state.program, question), method, means.alpha, done
    )
    return (values.double() - bound).cpu().numpy(), slopes


def _prove(graph: Graph, question: Question, evidence: Evidence, means: Means) -> Decision:
    check_arithmetic(means.device)
    program = prepare(graph, torch.float64, means.device)
    method = METHODS[evidence.method]
    if evidence.recipe is not None:
        plan = Plan(recipe=_double(evidence.recipe))
        state = tighten(program, question.region, plan, means.semantics, means.limits)
        return _evaluate(state, question, evidence)
    state = analyse(program, question.region, method, means.semantics, means.limits, means.alpha)
    _, slopes = _search(state, question, method, means)
    return _evaluate(state, question, Evidence(evidence.method, dict(state.recipe), slopes))


def _row_map(program: Program, question: Question) -> dict[int, Tensor]:
    """Coefficients ``(B, R, *shape)`` by step: of the output, and of inputs that rows name."""
    B, R = question.bound.shape
    y = torch.as_tensor(np.ascontiguousarray(question.rows.y)).to(
        dtype=program.dtype, device=program.device
    )
    found = {program.output: y.expand(B, -1, -1).reshape(B, R, *program.shape(program.output))}
    if question.rows.x is not None:
        sizes = [math.prod(program.shape(i)) for i in program.inputs]
        x = (
            torch.as_tensor(np.ascontiguousarray(question.rows.x))
            .to(dtype=program.dtype, device=program.device)
            .expand(B, -1, -1)
        )
        for index, part in zip(program.inputs, torch.split(x, sizes, dim=-1), strict=True):
            found[index] = part.reshape(B, R, *program.shape(index))
    return found


def _select(evidence: Evidence, mask: np.ndarray) -> Evidence:
    if mask.all() or evidence.recipe is None:
        return evidence
    index = torch.from_numpy(np.flatnonzero(mask))
    recipe = {
        i: [
            UnitPass(
                _only(u.index, index),
                _pick(u.slopes, index),
                None if u.idle is None else _only(u.idle, index),
            )
            for u in units
        ]
        for i, units in evidence.recipe.items()
    }
    return replace(evidence, recipe=recipe, slopes=_pick(evidence.slopes, index))


def _pick(slopes: Slopes | None, index: Tensor) -> Slopes | None:
    if slopes is None:
        return None
    return {i: tuple(_only(t, index) for t in group) for i, group in slopes.items()}


def _only(t: Tensor, index: Tensor) -> Tensor:
    """The examples ``index`` of a tensor that has them along its first axis."""
    return t[index] if len(t) > 1 else t


def _double(recipe: Recipe) -> dict[int, list[UnitPass]]:
    return {
        i: [replace(u, slopes=_double_slopes(u.slopes)) for u in units]
        for i, units in recipe.items()
    }


def _double_slopes(slopes: Slopes | None) -> Slopes | None:
    if slopes is None:
        return None
    return {i: tuple(t.double() for t in group) for i, group in slopes.items()}
