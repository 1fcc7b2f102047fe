"""The same function written differently must get the same bounds and the same verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from certify.bounds.alpha import Alpha
from certify.bounds.methods import METHODS, bound
from certify.core.graph import Graph
from certify.core.region import Box, Region
from certify.core.spec import Row, Spec
from certify.ops.builder import Builder, Value
from certify.verify import verify
from tests.exact_nets import exact_values
from tests.nets import BODIES, dense, flat, grow, single, weights

STEADY = Alpha(iterations=1, unit_iterations=1)
LOW, HIGH = np.array([-0.3, 0.1, -0.8, 0.0, 0.4]), np.array([0.2, 0.5, -0.1, 0.6, 0.9])


@dataclass(frozen=True)
class Layers:
    """Two hidden layers; a rewriting changes these or how they are written down."""

    w: tuple[np.ndarray, ...]
    b: tuple[np.ndarray, ...]

    @classmethod
    def drawn(cls, seed: int) -> Layers:
        rng = np.random.default_rng(seed)
        sizes = (5, 6, 6, 3)
        pairs = [
            (weights(rng, m, n), single(0.3 * rng.normal(size=m)))
            for n, m in zip(sizes[:-1], sizes[1:], strict=True)
        ]
        return cls(tuple(w for w, _ in pairs), tuple(b for _, b in pairs))


Write = Callable[[Builder, Value, Layers], Value]


def plain(b: Builder, x: Value, net: Layers) -> Value:
    for k, (w, c) in enumerate(zip(net.w, net.b, strict=True)):
        x = dense(b, b.add("relu", x) if k else x, w, c)
    return x


def split_gemm(b: Builder, x: Value, net: Layers) -> Value:
    for k, (w, c) in enumerate(zip(net.w, net.b, strict=True)):
        x = b.add("relu", x) if k else x
        x = b.add("add", dense(b, x, w), b.constant(c))
    return x


def sliced_and_joined(b: Builder, x: Value, net: Layers) -> Value:
    def detour(z: Value) -> Value:
        n = z.shape[-1]
        parts = [
            b.add("slice", z, axes=(-1,), starts=(s,), ends=(e,), steps=(1,))
            for s, e in ((0, 2), (2, n))
        ]
        wide = b.add("reshape", b.add("concat", *parts, axis=-1), shape=(1, n, 1))
        return b.add("reshape", b.add("transpose", wide, perm=(-1, -2, -3)), shape=(n,))

    for k, (w, c) in enumerate(zip(net.w, net.b, strict=True)):
        x = dense(b, detour(b.add("relu", detour(x))) if k else x, w, c)
    return x


def clipped_at_zero(b: Builder, x: Value, net: Layers) -> Value:
    for k, (w, c) in enumerate(zip(net.w, net.b, strict=True)):
        x = dense(b, b.add("clip", x, min=0.0, max=float("inf")) if k else x, w, c)
    return x


def maximum_with_zero(b: Builder, x: Value, net: Layers) -> Value:
    for k, (w, c) in enumerate(zip(net.w, net.b, strict=True)):
        x = dense(b, b.add("maximum", x, b.constant(np.zeros(1))) if k else x, w, c)
    return x


def leaky_of_zero(b: Builder, x: Value, net: Layers) -> Value:
    for k, (w, c) in enumerate(zip(net.w, net.b, strict=True)):
        x = dense(b, b.add("leaky_relu", x, alpha=0.0) if k else x, w, c)
    return x


def as_convolutions(b: Builder, x: Value, net: Layers) -> Value:
    x = b.add("reshape", x, shape=(1, 5, 1, 1))
    for k, (w, c) in enumerate(zip(net.w, net.b, strict=True)):
        x = b.add("relu", x) if k else x
        x = b.add("conv", x, b.constant(w[:, :, None, None]), b.constant(c), strides=(1, 1))
    return flat(b, x)


def as_product(b: Builder, x: Value, net: Layers) -> Value:
    for k, (w, c) in enumerate(zip(net.w, net.b, strict=True)):
        x = b.add("reshape", b.add("relu", x) if k else x, shape=(1, x.shape[-1]))
        x = b.add("add", b.add("matmul", x, b.constant(w.T.copy())), b.constant(c))
        x = b.add("reshape", x, shape=(x.shape[-1],))
    return x


MOVED = (split_gemm, sliced_and_joined, as_convolutions, as_product)
BENT = (leaky_of_zero, clipped_at_zero, maximum_with_zero)  # other operators with the same values
REWRITINGS: dict[str, Write] = {f.__name__: f for f in MOVED + BENT}


def permuted(net: Layers) -> Layers:
    p, q = np.random.default_rng(1).permutation(6), np.random.default_rng(2).permutation(6)
    return Layers(
        (net.w[0][p], net.w[1][q][:, p], net.w[2][:, q]), (net.b[0][p], net.b[1][q], net.b[2])
    )


def rescaled(net: Layers) -> Layers:
    s = np.ldexp(1.0, np.array([-9, 3, 0, 12, -2, 5]))
    return Layers((net.w[0] * s[:, None], net.w[1] / s, net.w[2]), (net.b[0] * s, *net.b[1:]))


def doubled(net: Layers) -> Layers:
    """The first hidden neuron twice, each with half of its effect."""
    second = np.concatenate([net.w[1], net.w[1][:, :1] / 2], 1)
    second[:, 0] /= 2
    return Layers(
        (np.concatenate([net.w[0], net.w[0][:1]]), second, net.w[2]),
        (np.append(net.b[0], net.b[0][0]), *net.b[1:]),
    )


CHANGES: dict[str, Callable[[Layers], Layers]] = {
    f.__name__: f for f in (permuted, rescaled, doubled)
}


def built(net: Layers, write: Write = plain) -> Graph:
    b = Builder()
    return b.finish(write(b, b.input("x", (5,)), net))


def found(
    graph: Graph, method: str, low: np.ndarray = LOW, high: np.ndarray = HIGH, **changes: Any
) -> torch.Tensor:
    """``(lower, upper)`` stacked."""
    settings = {"semantics": "real", "alpha": STEADY} | changes
    ends = (
        (torch.as_tensor(low), torch.as_tensor(high))
        if settings["semantics"] == "search"
        else (low, high)
    )
    result = bound(graph, Box(*ends), method, **settings)
    return torch.stack([result.lower[0], result.upper[0]])


def said(
    graph: Graph, region: Region, spec: Spec, seconds: float = 1.0, **options: Any
) -> str:
    """The verdict without the attack; a search that runs into its limit is as undecided."""
    name = verify(graph, region, spec, seconds, attack=False, **options).verdict.name
    return "UNKNOWN" if name == "TIMEOUT" else name


def answer(graph: Graph, spec: Spec, **options: Any) -> str:
    return said(graph, Box(LOW, HIGH), spec, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("write", MOVED, ids=lambda f: f.__name__)
def test_rewriting_changes_no_bound(write: Write, method: str) -> None:
    for seed in range(3):
        net = Layers.drawn(seed)
        other = found(built(net, write), method)
        torch.testing.assert_close(other, found(built(net), method), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("write", BENT, ids=lambda f: f.__name__)
def test_other_operators_for_the_same_bend_give_the_same_relaxation(write: Write) -> None:
    """Which elements deserve a backward pass of their own may differ; one pass may not."""
    for seed in range(3):
        net = Layers.drawn(seed)
        one, other = built(net), built(net, write)
        for method in ("ibp", "crown-ibp"):
            torch.testing.assert_close(
                found(other, method), found(one, method), rtol=1e-6, atol=1e-6
            )
        inner, outer = found(other, "crown"), found(one, "crown-ibp")
        assert bool((inner[0] >= outer[0] - 0.1).all() and (inner[1] <= outer[1] + 0.1).all())


# Not sdp-crown: it goes on from optimised slopes, where rounding chooses between equally good ones.
@pytest.mark.parametrize("method", [m for m in METHODS if m != "sdp-crown"])
@pytest.mark.parametrize("name", CHANGES)
def test_an_equivalent_network_has_the_same_bounds(name: str, method: str) -> None:
    for seed in range(3):
        net = Layers.drawn(seed)
        one, other = built(net), built(CHANGES[name](net))
        torch.testing.assert_close(found(other, method), found(one, method), rtol=1e-6, atol=1e-6)
        points = np.stack([LOW, HIGH])
        same = exact_values(one, points)[one.output] == exact_values(other, points)[other.output]
        assert bool(np.all(same))  # the rewriting itself is exact


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_powers_of_two_change_no_bit(method: str) -> None:
    """Scaling by powers of two is exact in binary, so no bit of a plain float bound may move."""
    for seed in range(3):
        net = Layers.drawn(seed)
        one, other = (found(built(n), method, semantics="search") for n in (net, rescaled(net)))
        assert torch.equal(one, other)


@pytest.mark.parametrize("body", BODIES)
def test_halves_of_a_box_are_not_worse_than_the_whole(body: str) -> None:
    graph = grow(BODIES[body], seed=1)
    for method in ("ibp", "crown"):
        whole = found(graph, method)
        for axis in range(5):
            middle = (LOW[axis] + HIGH[axis]) / 2
            left, right = HIGH.copy(), LOW.copy()
            left[axis] = right[axis] = middle
            halves = [found(graph, method, LOW, left), found(graph, method, right, HIGH)]
            inherited = [
                torch.stack([h[0].maximum(whole[0]), h[1].minimum(whole[1])]) for h in halves
            ]
            low = inherited[0][0].minimum(inherited[1][0])
            high = inherited[0][1].maximum(inherited[1][1])
            assert bool((low >= whole[0]).all() and (high <= whole[1]).all())
            if method == "ibp":  # inclusion isotone by itself
                slack = 1e-9 * (1 + whole.abs().max())
                assert all(
                    bool((h[0] >= whole[0] - slack).all() and (h[1] <= whole[1] + slack).all())
                    for h in halves
                )


@pytest.mark.parametrize("body", BODIES)
def test_smaller_boxes_end_at_the_networks_value(body: str) -> None:
    graph, middle = grow(BODIES[body], seed=3), (LOW + HIGH) / 2
    widths = [
        float((b[1] - b[0]).max())
        for r in (1e-1, 1e-4, 0.0)
        for b in [found(graph, "crown", middle - r, middle + r)]
    ]
    assert widths[0] > widths[1] > widths[2] and widths[1] < 0.1 * widths[0]
    assert widths[2] < 1e-9


@pytest.mark.parametrize("name", [*REWRITINGS, *CHANGES])
def test_rewriting_changes_no_verdict(name: str) -> None:
    for seed in range(2):
        net = Layers.drawn(seed)
        one = built(net)
        other = built(net, REWRITINGS[name]) if name in REWRITINGS else built(CHANGES[name](net))
        low = found(one, "crown")[0].numpy()
        for shift in (-0.1, 0.1):
            spec = Spec.linear(np.eye(3), low + shift)
            assert answer(one, spec, method="crown") == answer(other, spec, method="crown")


def test_order_and_grouping_of_clauses() -> None:
    """A union of pieces needs all refuted, an intersection any one row; the order is no matter."""
    graph = built(Layers.drawn(0))
    low, high = found(graph, "crown").numpy()
    reached = exact_values(graph, ((LOW + HIGH) / 2)[None])[graph.output][0].astype(float)
    gone = Row({0: 1.0}, float(low[0]) - 0.1)  # Y_0 <= below its bound: impossible
    here = Row({1: 1.0}, float(reached[1]) + 0.1)  # true in the middle of the box
    far = Row({2: -1.0}, float(-high[2]) - 0.1)  # Y_2 >= above its bound: impossible
    expected = {
        ((gone,), (far,)): "HOLDS",
        ((far,), (gone,)): "HOLDS",
        ((gone, here),): "HOLDS",
        ((here, gone),): "HOLDS",
        ((here, gone), (far, here)): "HOLDS",
        ((far, here), (here, gone)): "HOLDS",
        ((gone,), (here,)): "UNKNOWN",
        ((here,), (gone,)): "UNKNOWN",
        ((here, here), (far,)): "UNKNOWN",
        ((gone,), (far,), (here,)): "UNKNOWN",
        ((gone, far), (here,), (gone,)): "UNKNOWN",
    }
    for clauses, verdict in expected.items():
        assert answer(graph, Spec.unsafe(clauses, 3)) == verdict
    both = Spec.unsafe([[gone], [here]], 3)
    assert verify(graph, Box(LOW, HIGH), both).verdict.name == "VIOLATED"


def test_strict_and_closed_thresholds() -> None:
    """``x <= 0`` is met at 0, ``x < 0`` is not: exact arithmetic on a move of the input."""
    b = Builder()
    graph = b.finish(b.add("reshape", b.input("x", (1, 1)), shape=(1,)))
    region = Box(np.zeros(1), np.ones(1))
    for semantics in ("real", "float32"):
        closed, open_ = (
            said(
                graph, region, Spec.unsafe([[Row([1.0], 0.0, strict=s)]], 1), semantics=semantics
            )
            for s in (False, True)
        )
        assert closed == "UNKNOWN" and open_ in ("HOLDS", "UNKNOWN")
        touched = verify(graph, region, Spec.unsafe([[Row([1.0], 0.0)]], 1), semantics=semantics)
        assert touched.verdict.name == "VIOLATED"


def test_what_margins_decide() -> None:
    """Any row refutes its clause, all clauses must be; 0 refutes strict rows only, NaN none."""
    rows = [[Row([1.0], 0.0), Row([1.0], 1.0, strict=True)], [Row([-1.0], 0.0)]]
    spec = Spec.unsafe(rows, 1)
    nan = np.nan
    expected = {
        (1.0, -1.0, 1.0): True,
        (-1.0, 1.0, 1.0): True,
        (-1.0, 0.0, 1.0): True,
        (0.0, -1.0, 1.0): False,
        (1.0, 1.0, 0.0): False,
        (1.0, 1.0, -1.0): False,
        (-1.0, -1.0, 1.0): False,
        (nan, nan, 1.0): False,
        (1.0, 1.0, nan): False,
        (nan, 0.0, 1.0): True,
        (-1.0, nan, 1.0): False,
    }
    margins = np.array(list(expected))
    wanted = list(expected.values())
    assert spec.rows().refuted(margins).tolist() == wanted
    assert spec.decided(margins).tolist() == wanted
    assert spec.decided(torch.as_tensor(margins)).tolist() == wanted


def test_a_property_and_its_negation_never_both_hold() -> None:
    for seed in range(4):
        graph = built(Layers.drawn(seed))
        low, high = found(graph, "crown").numpy()
        for level in np.linspace(low[0] - 0.2, high[0] + 0.2, 5):
            above = answer(graph, Spec.unsafe([[Row({0: 1.0}, level)]], 3), seconds=0.3)
            below = answer(graph, Spec.unsafe([[Row({0: -1.0}, -level)]], 3), seconds=0.3)
            assert (above, below) != ("HOLDS", "HOLDS")
            assert above == "HOLDS" or level > low[0] and (below == "HOLDS" or level < high[0])


def test_examples_of_a_batch_are_all_decided() -> None:
    """One hopeless example among many must not hide."""
    graph = built(Layers.drawn(2))
    centre = np.random.default_rng(0).uniform(-0.5, 0.5, size=(4, 5))
    reached = exact_values(graph, centre)[graph.output].astype(float)
    region = Box(centre - 1e-3, centre + 1e-3)
    for bad in range(4):
        rows = np.stack([np.eye(3)] * 4)
        level = reached.min() - 1.0
        assert said(graph, region, Spec.linear(rows, level)) == "HOLDS"
        rows[bad, 1] *= -1.0
        level = -float(reached[bad, 1]) + 0.5
        wrong = Spec.linear(rows, np.array([reached.min() - 1.0, min(level, 0.0), -1e3]))
        holds = all((rows[i] @ reached[i] > wrong.rows().bound).all() for i in range(4))
        assert holds or said(graph, region, wrong) == "UNKNOWN"


def test_classification_of_every_example_by_its_own_label() -> None:
    graph = built(Layers.drawn(3))
    centre = np.random.default_rng(4).uniform(-0.9, 0.9, size=(6, 5))
    labels = exact_values(graph, centre)[graph.output].astype(float).argmax(1)
    region = Box(centre, centre)
    assert said(graph, region, Spec.classify(labels, 3)) == "HOLDS"
    for wrong in range(6):
        changed = labels.copy()
        changed[wrong] = (changed[wrong] + 1) % 3
        assert said(graph, region, Spec.classify(changed, 3)) == "UNKNOWN"
