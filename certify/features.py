"""Which neurons of the last hidden layer a proof rests on (Banerjee et al. 2023, SuPFEx).

Behind the last nonlinearity a network is affine, so a margin is a sum of one term per neuron of
that layer, its *features*, and a constant. A method of bounds gives every feature an interval over
the region; a proof from these intervals is a proof by their sum. A set of features is *sufficient*
when the sum still proves the specification after every other feature's interval was replaced by
{0}. So this is what is claimed: the network whose last layer sees 0 in place of the features
outside the set satisfies the specification on the whole region, in real arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from certify.core.errors import BadInput, Unsupported
from certify.core.outward import UNDERFLOW, add_down, dot_error
from certify.core.spec import Rows, Spec

if TYPE_CHECKING:
    from certify.bounds.program import Program
    from certify.core.graph import Graph
    from certify.core.region import Region
    from certify.ops.record import Interval

Floats = NDArray[np.float64]
_MASKS = 2**22  # elements of all the sets that are looked at together


@dataclass(frozen=True, eq=False)
class ProofFeatures:
    """What a proof rests on; n features.

    Attributes:
        node: the graph's node whose elements are the features.
        method: that gave the intervals.
        proved: whether the intervals of all features together prove the specification; if not,
            ``kept`` is empty.
        kept: ``(k,)`` features of a minimal sufficient set, by falling priority: without any one of
            them, the intervals of the others no longer prove the specification by this check.
        lower, upper: ``(n,)`` intervals of the features.
        priority: ``(n,)`` the most that a feature can add to or take from any row.
        margin: proved lower bound of the smallest deciding row, with the kept features alone;
            with all of them where not ``proved``.
        full_margin: the same with all features.
        checks: sets that were looked at.
    """

    node: str
    method: str
    proved: bool
    kept: NDArray[np.int64]
    lower: Floats
    upper: Floats
    priority: Floats
    margin: float
    full_margin: float
    checks: int


@dataclass(frozen=True, eq=False)
class LastLayer:
    """Rows of a specification as functions of the features, rounded outward.

    Attributes:
        least: ``(n, R)`` lower bounds of each feature's term over its interval.
        constant: ``(R,)`` lower bounds of the rest, thresholds subtracted.
        rows: the rows themselves.
    """

    least: Floats
    constant: Floats
    rows: Rows

    def margins(self, sets: NDArray[np.bool_]) -> Floats:
        """Lower bounds ``(N, R)`` of the rows for sets ``(N, n)``; other features are {0}."""
        known = np.isfinite(self.least)
        terms = np.where(known, self.least, 0.0)
        chosen = sets.astype(np.float64)
        total = chosen @ terms
        lost = dot_error(len(terms)) * (chosen @ np.abs(terms)) + UNDERFLOW * (1 + len(terms))
        found = add_down(add_down(total, -lost), np.broadcast_to(self.constant, total.shape))
        blind = chosen @ (~known).astype(np.float64) > 0
        return np.where(blind | np.isnan(found), -np.inf, found)

    def proves(self, sets: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which sets ``(N, n)`` are sufficient."""
        return self.rows.refuted(self.margins(sets))

    def margin(self, one: NDArray[np.bool_]) -> float:
        """The smallest margin of a clause's best row, for one set ``(n,)``."""
        return float(self.rows.clause_margins(self.margins(one[None])).min())


def proof_features(
    network: Graph, region: Region, spec: Spec, method: str = "crown", **settings: Any
) -> ProofFeatures:
    """A minimal sufficient set of features of a proof, see the module's text.

    Features are taken away from the bottom of the order of priorities, half of what is left at a
    time; then one by one, until none can be.

    Args:
        network: from `certify.load` or `certify.from_torch`.
        region: one example.
        spec: of one example, about outputs alone.
        method: ``ibp``, ``crown-ibp``, ``crown``, ``alpha`` or ``auto``.
        settings: fields of `certify.bounds.methods.Settings`; only real semantics.

    Raises:
        BadInput: region or specification do not fit.
        Unsupported: no affine layer follows the last nonlinearity, or it reads several nodes.
        UsageError: an unknown method.
    """
    import torch

    from certify.bounds.methods import bound, fit
    from certify.bounds.program import prepare
    from certify.bounds.selftest import check_arithmetic

    if settings.get("semantics", "real") != "real":
        raise BadInput("proof features speak of real arithmetic; leave semantics out")
    whole = fit(region, network)
    _check(network, whole, spec)
    device = settings.get("device", "cpu")
    check_arithmetic(device)
    program = prepare(network, torch.float64, device)
    place = _features(program)
    name = network.nodes[place].name
    with torch.no_grad():
        box = bound(network, whole, method, nodes=[name], **settings).nodes[name]
        last, priority = last_layer(program, place, box, spec)
    lower, upper = (e.reshape(-1).cpu().numpy() for e in box)
    every = np.ones(len(lower), dtype=bool)
    full = last.margin(every)
    if not last.proves(every[None])[0]:
        return ProofFeatures(name, method, False, np.zeros(0, np.int64), lower, upper, priority,
                             full, full, 1)
    chosen, checks = smallest(last, priority)
    order = np.argsort(-priority, kind="stable")
    return ProofFeatures(name, method, True, order[chosen[order]], lower, upper, priority,
                         last.margin(chosen), full, checks + 1)


def smallest(last: LastLayer, priority: Floats) -> tuple[NDArray[np.bool_], int]:
    """A minimal sufficient set ``(n,)`` and how many sets were looked at.

    Args:
        last: all of its features together are sufficient.
    """
    order, checks = np.argsort(-priority, kind="stable"), 0
    chosen = np.ones(len(order), dtype=bool)
    start, stop = 0, len(order)  # order[start:stop] is undecided, what is before stays
    while start < stop:
        middle = (start + stop) // 2
        fewer = chosen.copy()
        fewer[order[middle:stop]] = False
        checks += 1
        if last.proves(fewer[None])[0]:
            chosen, stop = fewer, middle
        elif stop - start == 1:
            break
        else:
            start = middle
    return _one_by_one(last, chosen, order, checks)


def _one_by_one(
    last: LastLayer, chosen: NDArray[np.bool_], order: NDArray[np.int64], checks: int
) -> tuple[NDArray[np.bool_], int]:
    """Take away what can be taken away, lowest priority first, until nothing can."""
    while chosen.any():
        rising = order[::-1][chosen[order[::-1]]]
        can, looked = _without(last, chosen, rising[:, None])
        checks += looked
        spare = rising[can]
        if not len(spare):
            break
        # Longer and longer beginnings of what can go alone; the first one can.
        ahead = np.where(np.tri(len(spare), dtype=bool), spare, spare[0])
        together, looked = _without(last, chosen, ahead)
        checks += looked
        chosen = chosen.copy()
        chosen[spare[: 1 + int(np.flatnonzero(together).max(initial=0))]] = False
    return chosen, checks


def _without(
    last: LastLayer, chosen: NDArray[np.bool_], gone: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], int]:
    """Whether sets without the features in each row of ``gone`` are sufficient."""
    size = max(1, _MASKS // max(1, len(chosen)))
    found = []
    for part in (gone[i : i + size] for i in range(0, len(gone), size)):
        sets = np.repeat(chosen[None], len(part), axis=0)
        np.put_along_axis(sets, part, False, axis=1)
        found.append(last.proves(sets))
    return np.concatenate(found), len(gone)


def last_layer(
    program: Program, place: int, box: Interval, spec: Spec
) -> tuple[LastLayer, Floats]:
    """The rows as functions of the features, and each feature's priority ``(n,)``.

    Args:
        program: in float64.
        place: step of the features.
        box: their intervals ``(1, *shape)``.
    """
    import torch

    from certify.search.gradients import contracted

    rows = spec.rows()
    y = torch.from_numpy(rows.y[0]).to(program.device)
    size = box.lower.numel()
    slope, rest = _affine_tail(program, place, size)
    a = contracted(y, slope)
    constant = contracted(y, rest).lower[0].cpu().numpy()
    low, high = box.lower.reshape(-1, 1), box.upper.reshape(-1, 1)
    corners = torch.stack([c * v for c in a for v in (low, high)])
    lost = 2.0**-51 * corners.abs().amax(0) + UNDERFLOW
    least = torch.nan_to_num(corners.amin(0) - lost, nan=-torch.inf, posinf=-torch.inf)
    most = (corners.abs().amax(0) + lost).amax(1)
    priority = torch.nan_to_num(most, nan=torch.inf).cpu().numpy()
    threshold = np.asarray(rows.bound, dtype=np.float64).reshape(-1)
    return LastLayer(least.cpu().numpy(), add_down(constant, -threshold), rows), priority


def _affine_tail(program: Program, place: int, size: int) -> tuple[Interval, Interval]:
    """Output per unit of each feature ``(n, outputs)``, and output at 0 ``(1, outputs)``."""
    import torch

    from certify.bounds.interval import interval_step
    from certify.core.semantics import Semantics
    from certify.ops.record import Interval
    from certify.search.gradients import linear_part

    shape = program.shape(place)
    unit = torch.eye(size, dtype=program.dtype, device=program.device).reshape(size, *shape)
    zero = torch.zeros_like(unit[:1])
    slopes: list[Interval | None] = [None] * len(program.steps)
    values = list(slopes)
    slopes[place], values[place] = Interval(unit, unit), Interval(zero, zero)
    for step in program.steps[place + 1 :]:
        if step is None or not step.affine or any(slopes[i] is None for i in step.variables):
            continue
        slopes[step.index] = linear_part(step, slopes)
        values[step.index] = interval_step(step, values, Semantics.REAL)[0]
    found = [of[program.output] for of in (slopes, values)]
    flat = [Interval(*(e.reshape(len(e), -1) for e in box)) for box in found if box is not None]
    return flat[0], flat[1]


def _features(program: Program) -> int:
    """The one nonlinear step behind which everything is affine."""
    pending, front = [program.output], set[int]()
    seen = set(pending)
    while pending:
        index = pending.pop()
        step = program.steps[index]
        if step is None or not step.affine:
            front.add(index)
            continue
        pending += [i for i in step.variables if i not in seen]
        seen |= set(step.variables)
    names = ", ".join(sorted(program.graph.nodes[i].name for i in front))
    if front == {program.output}:
        raise Unsupported(f"the output {names} is itself nonlinear: there is no last affine layer")
    if len(front) > 1:
        raise Unsupported(f"the last affine layer reads several nodes: {names}")
    (place,) = front
    if program.steps[place] is None:
        raise Unsupported("the network is affine: it has no hidden layer")
    return place


def _check(network: Graph, region: Region, spec: Spec) -> None:
    if region.batch != 1 or spec.batch != 1:
        raise BadInput("proof features are of one example; give a region and a spec of batch 1")
    size = int(np.prod(network.output_shape, dtype=np.int64))
    if spec.num_outputs != size:
        raise BadInput(f"the specification is about {spec.num_outputs} outputs, the network has "
                       f"{size}")
    if spec.num_inputs is not None:
        raise BadInput("proof features want a specification about outputs alone")


def feature_gradients(
    network: Graph, region: Region, node: str, kept: Any, *, samples: int = 32, seed: int = 0
) -> Floats:
    """Gradients of features, averaged over points of the region (as SmoothGrad does).

    For pictures: these are plain floats and prove nothing.

    Args:
        network: with one input.
        node: the features' node.
        kept: ``(k,)`` features.
        samples: points, half of them extreme.

    Returns:
        ``(k, *input shape)``.

    Raises:
        BadInput: several inputs, several examples, or no such node or feature.
    """
    import torch

    from certify.bounds.evaluate import run
    from certify.bounds.methods import fit
    from certify.bounds.program import prepare

    whole = fit(region, network)
    if len(network.input_shapes) != 1 or whole.batch != 1 or samples < 1:
        raise BadInput("gradients of features want one input, one example and a sample")
    program = prepare(network, torch.float64)
    network.node(node)
    generator = torch.Generator().manual_seed(seed)
    points = torch.as_tensor(whole.sample(samples, generator))[0].double().detach()
    points.requires_grad_()
    wanted = torch.as_tensor(np.asarray(kept, dtype=np.int64))
    with torch.enable_grad():
        values = run(program, (points,))[program.index[node]].reshape(samples, -1)
        if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < values.shape[1]:
            raise BadInput(f"features must be from 0 to {values.shape[1] - 1}")
        total = values[:, wanted].sum(0)
        each = torch.eye(len(wanted), dtype=total.dtype)
        if not len(wanted):
            return np.zeros((0, *points.shape[1:]))
        (found,) = torch.autograd.grad(total, points, each, is_grads_batched=True)
    return np.asarray(found.mean(1).cpu().numpy())
