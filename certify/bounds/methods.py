"""`bound`: bounds of a network's output, or of rows of it, by any method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from certify.bounds.alpha import Alpha, optimise
from certify.bounds.ball import balls
from certify.bounds.budget import DEFAULT_MEMORY, Limits, row_chunks
from certify.bounds.crown import Plan, Slopes, State, interval_row_bounds, row_bounds, tighten
from certify.bounds.dual import Dual, Form, dual_bounds, optimise_dual
from certify.bounds.forward import forward_rows, forward_state
from certify.bounds.program import Program, prepare
from certify.bounds.semidefinite import semidefinite_bounds, semidefinite_multipliers
from certify.bounds.triangle import triangle_multipliers
from certify.core.errors import BadInput, UsageError
from certify.core.graph import Graph
from certify.core.region import Product, Region, as_inputs
from certify.core.semantics import Semantics
from certify.ops.record import Interval


@dataclass(frozen=True)
class Settings:
    """How to compute.

    Attributes:
        semantics: ``"real"``: sound in real arithmetic, float64, all rounding accounted for;
            ``"float32"``: sound for every float32 evaluation order as well; ``"search"``: plain
            floats in the region's precision, for training and searching, proves nothing.
        device: ``"cpu"``, ``"cuda"`` or a torch device.
        memory: bytes that coefficient tensors may take.
        alpha: settings of the slope optimiser.
    """

    semantics: str = "real"
    device: str | torch.device = "cpu"
    memory: int = DEFAULT_MEMORY
    alpha: Alpha = field(default_factory=Alpha)


@dataclass(frozen=True, eq=False)
class Bounds:
    """Bounds of outputs, ``(B, *output)``, or of rows, ``(B, R)``.

    Attributes:
        nodes: bounds of the intermediate results asked for, by node name.
    """

    lower: Tensor
    upper: Tensor
    nodes: dict[str, Interval] = field(default_factory=dict)


RowMap = Mapping[int, Tensor]  # coefficients (B or 1, R, *shape) by step index
Done = Callable[[Tensor], bool]
Ascend = Callable[["State", RowMap, "Alpha", "Done | None"], "Slopes"]
_DUAL_STEPS = 8  # of the dual for each of alpha's, which cost more and gain more


@dataclass(frozen=True)
class Method:
    """One way to bound rows.

    Attributes:
        refine: intermediate bounds by backward passes (CROWN), not by intervals alone.
        passes: what bounds the rows, the best of: ``"interval"``, ``"backward"``, ``"forward"``,
            ``"alpha"``, and those of `MULTIPLIERS`.
        optimise: slopes of the backward passes for intermediate bounds too.
        forward: run the forward sweep (search semantics only).
        small: for small networks: a solver finds what to state.
    """

    name: str
    summary: str
    refine: bool
    passes: tuple[str, ...]
    optimise: bool = False
    forward: bool = False
    small: bool = False


METHODS = {
    m.name: m
    for m in (
        Method("ibp", "interval bound propagation (Gowal et al. 2018)", False, ("interval",)),
        Method(
            "crown-ibp",
            "one backward pass over interval bounds (Zhang et al. 2020)",
            False,
            ("interval", "backward"),
        ),
        Method(
            "crown",
            "backward passes for every ambiguous neuron (Zhang et al. 2018)",
            True,
            ("interval", "backward"),
        ),
        Method(
            "forward",
            "two lines in the inputs for every neuron (Xu et al. 2020)",
            False,
            ("interval", "forward"),
            forward=True,
        ),
        Method(
            "alpha",
            "CROWN with slopes optimised per row (Xu et al. 2021)",
            True,
            ("interval", "alpha"),
            optimise=True,
        ),
        Method(
            "dual",
            "Lagrangian dual, ascent from CROWN (Dvijotham et al. 2018)",
            True,
            ("interval", "backward", "dual"),
        ),
        Method(
            "decomposition",
            "Lagrangian decomposition, ascent from CROWN (Bunel et al. 2020)",
            True,
            ("interval", "backward", "decomposition"),
        ),
        Method(
            "sdp-crown",
            "alpha, then neurons coupled by a ball, for L2 balls (Chiu et al. 2025)",
            True,
            ("interval", "backward", "sdp-crown"),
            optimise=True,
        ),
        Method(
            "lp",
            "linear programme over the relaxations, for small networks (Ehlers 2017)",
            True,
            ("interval", "backward", "lp"),
            small=True,
        ),
        Method(
            "sdp",
            "semidefinite programme, for very small networks (Raghunathan et al. 2018)",
            True,
            ("interval", "backward", "sdp"),
            small=True,
        ),
    )
}


class Multipliers(NamedTuple):
    """A pass that finds multipliers, and what evaluates any such multipliers as a bound."""

    find: Ascend
    bounds: Callable[[State, RowMap, Slopes], Tensor]


def _ascended(mismatch: bool) -> Multipliers:
    def ascend(state: State, rows: RowMap, alpha: Alpha, done: Done | None) -> Slopes:
        return optimise_dual(state, rows, _dual(alpha), Form(mismatch), done)[1]

    return Multipliers(ascend, dual_bounds)


def _dual(alpha: Alpha) -> Dual:
    return Dual(iterations=_DUAL_STEPS * alpha.iterations)


def _programmed(state: State, rows: RowMap, alpha: Alpha, done: Done | None) -> Slopes:
    return triangle_multipliers(state, rows)


def _semidefinite(state: State, rows: RowMap, alpha: Alpha, done: Done | None) -> Slopes:
    return semidefinite_multipliers(state, rows)


def _in_balls(state: State, rows: RowMap, alpha: Alpha, done: Done | None) -> Slopes:
    slopes = optimise(state, rows, alpha, done)[1]
    settings = replace(_dual(alpha), rate=0.2, last=0.003, soft=0.0)  # parabolas are soft enough
    return optimise_dual(state, rows, settings, Form(balls=balls(state)), done, slopes)[1]


def _ball_bounds(state: State, rows: RowMap, multipliers: Slopes) -> Tensor:
    return dual_bounds(state, rows, multipliers, balls(state))


MULTIPLIERS = {
    "dual": _ascended(mismatch=True),
    "decomposition": _ascended(mismatch=False),
    "sdp-crown": Multipliers(_in_balls, _ball_bounds),
    "lp": Multipliers(_programmed, dual_bounds),
    "sdp": Multipliers(_semidefinite, semidefinite_bounds),
}
"""Passes that find multipliers of a dual, by name."""


def method_named(name: str) -> Method:
    """The method called ``name``; ``"auto"`` is the tightest single one.

    Raises:
        UsageError: no such method; lists those there are.
    """
    if name == "auto":
        return METHODS["alpha"]
    if name not in METHODS:
        raise UsageError(f"there is no method {name!r}; choose one of auto, {', '.join(METHODS)}")
    return METHODS[name]


def analyse(
    program: Program,
    region: Region,
    method: Method,
    semantics: Semantics,
    limits: Limits,
    alpha: Alpha,
) -> State:
    """Bounds of every step by a method; what `lower_rows` starts from."""
    if method.forward:
        if semantics is Semantics.FLOAT32:
            raise UsageError(
                "method 'forward' speaks of real arithmetic only; use 'crown' for float32"
            )
        return forward_state(program, region, semantics, limits)
    plan = Plan(refine=method.refine, alpha=alpha.inner if method.optimise else None)
    return tighten(program, region, plan, semantics, limits)


def lower_rows(
    state: State, rows: RowMap, method: Method, alpha: Alpha, done: Done | None = None
) -> tuple[Tensor, Slopes | None]:
    """The best lower bound ``(B, R)`` of rows a method gives, and its slopes where optimised."""
    best = interval_row_bounds(state, rows)
    slopes: Slopes | None = None
    for name in method.passes:
        if name == "backward":
            best = torch.fmax(best, row_bounds(state, rows))
        elif name == "forward":
            best = torch.fmax(best, forward_rows(state, rows))
        elif name == "alpha":
            found, slopes = optimise(state, rows, alpha, done)
            if state.semantics.rigorous or torch.is_grad_enabled():
                found = row_bounds(state, rows, slopes)  # the optimiser neither rounds nor records
            best = torch.fmax(best, found)
        elif name in MULTIPLIERS:
            slopes = MULTIPLIERS[name].find(state, rows, alpha, done)
            best = torch.fmax(best, MULTIPLIERS[name].bounds(state, rows, slopes))
    return best, slopes


def rows_again(
    state: State, rows: RowMap, method: Method, slopes: Slopes | None = None
) -> Tensor:
    """Lower bounds ``(B, R)`` of rows with what `lower_rows` found, in this state's semantics."""
    best = interval_row_bounds(state, rows)
    if method.passes == ("interval",):
        return best
    if slopes is None or not set(method.passes) & set(MULTIPLIERS):
        return torch.fmax(best, row_bounds(state, rows, slopes))
    best = torch.fmax(best, row_bounds(state, rows))
    for name in set(method.passes) & set(MULTIPLIERS):
        best = torch.fmax(best, MULTIPLIERS[name].bounds(state, rows, slopes))
    return best


def bound(
    network: Graph,
    region: Region,
    method: str = "crown",
    rows: Any = None,
    *,
    nodes: Iterable[str] = (),
    settings: Settings | None = None,
    **changes: Any,
) -> Bounds:
    """Bounds of a network over a region.

    Args:
        network: from `certify.load` or `certify.from_torch`.
        region: one region per model input (`Product`), or one; with or without a batch axis.
        method: one of `METHODS`, such as ``ibp``, ``crown`` or ``alpha``; or ``auto``.
        rows: coefficients ``(R, *output)``, ``(R, n)`` or ``(B, R, *output)``; bounds are then of
            these linear functions of the output, which is tighter than combining output bounds.
        nodes: names of intermediate results to bound too.
        settings: see `Settings`; single fields may be given by name.

    Returns:
        Bounds of shape ``(B, *output)``, or ``(B, R)`` with rows; float64 unless
        ``semantics="search"``. Differentiable in the region and in live parameters.

    Raises:
        BadInput: region, rows or node names that do not fit the network.
        UsageError: an unknown method or semantics.
    """
    chosen = method_named(method)
    settings = replace(settings or Settings(), **changes)
    semantics = semantics_named(settings.semantics)
    region = fit(region, network)
    dtype = torch.float64 if semantics.rigorous else _dtype(region)
    program = prepare(network, dtype, settings.device)
    state = analyse(program, region, chosen, semantics, Limits(settings.memory), settings.alpha)
    C, shape = _rows(program, rows)
    low, high = _both_sides(state, C, chosen, settings)
    named = {name: _node(program, state, name) for name in nodes}
    return Bounds(low.reshape(-1, *shape), high.reshape(-1, *shape), named)


def semantics_named(name: str) -> Semantics:
    """The semantics called ``name``.

    Raises:
        UsageError: no such semantics.
    """
    try:
        return Semantics(name)
    except ValueError:
        raise UsageError(
            f"there is no semantics {name!r}; choose real, float32 or search"
        ) from None


def fit(region: Region, network: Graph) -> Region:
    """``region`` with a batch axis, matched to the network's inputs."""
    parts = as_inputs(region, list(network.input_shapes))
    return parts[0] if len(parts) == 1 else Product(parts)


def _dtype(region: Region) -> torch.dtype:
    lower, _ = region.bounding_box()
    first = lower[0] if isinstance(region, Product) else lower
    return first.dtype if isinstance(first, Tensor) else torch.float32


def _rows(program: Program, rows: Any) -> tuple[Tensor, tuple[int, ...]]:
    """Rows as ``(B or 1, R, *output)`` and the shape of one example's result."""
    shape = program.shape(program.output)
    size = math.prod(shape)
    if rows is None:
        eye = torch.eye(size, dtype=program.dtype, device=program.device)
        return eye.reshape(1, size, *shape), shape
    C = torch.as_tensor(rows).to(dtype=program.dtype, device=program.device)
    lead = C.dim() - len(shape)
    if lead >= 1 and tuple(C.shape[lead:]) == shape and lead <= 2:
        C = C.reshape(*(1,) * (2 - lead), *C.shape)
    elif C.dim() in (2, 3) and C.shape[-1] == size:
        C = C.reshape(*(1,) * (3 - C.dim()), *C.shape[:-1], *shape)
    else:
        raise BadInput(
            f"rows of shape {tuple(C.shape)} do not fit an output of shape {shape}; "
            f"use (R, {size}) or (R, *{shape})"
        )
    return C, (C.shape[1],)


def _both_sides(
    state: State, C: Tensor, method: Method, settings: Settings
) -> tuple[Tensor, Tensor]:
    program = state.program
    lower, upper = [], []
    B = state.box(program.inputs[0]).lower.shape[0]
    for part in row_chunks(program, program.output, B, C.shape[1], settings.memory):
        piece = C[:, part].expand(B, *C[:, part].shape[1:])
        rows = {program.output: torch.cat((piece, -piece), 1)}
        low, high = lower_rows(state, rows, method, settings.alpha)[0].chunk(2, 1)
        lower.append(low)
        upper.append(-high)
    return torch.cat(lower, 1), torch.cat(upper, 1)


def _node(program: Program, state: State, name: str) -> Interval:
    program.graph.node(name)
    return state.box(program.index[name])
