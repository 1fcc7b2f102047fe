"""Evidence of searches: written, read, taken up again; and never a false claim by a forged tree."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from certify import recheck
from certify.bounds.budget import Limits
from certify.core.certificate import Certificate, Verdict, load_certificate
from certify.core.errors import BadInput
from certify.core.graph import Graph
from certify.core.region import Box, as_inputs
from certify.core.spec import Row, Spec
from certify.core.split_tree import LEAF, LeafSlopes, SplitTree
from certify.recheck import check
from certify.search.input_split import split_inputs
from certify.search.leaves import prove_tree, prove_trees
from certify.search.neuron_split import engine
from certify.search.neuron_split.ascent import improved
from certify.search.neuron_split.domains import Domains
from certify.search.neuron_split.engine import split_neurons
from certify.search.neuron_split.root import Root
from certify.search.problem import Findings, Problem
from certify.verify import verify
from tests.nets import grow, mlp
from tests.test_exact_answers import CHAINS, box
from tests.test_neuron_split import least, run

Search = Callable[[Problem], Findings]
SEARCHES: dict[str, Search] = {"neuron": split_neurons, "input": split_inputs}


@cache
def _graph() -> Graph:
    return grow(CHAINS["three layers"], seed=0)


ENDS = box(0, 0.7)


@cache
def _spec(slack: float) -> Spec:
    """Three clauses; the first, of one row, holds with exactly this slack, the others hold."""
    row = np.random.default_rng(0).normal(size=2)
    value, _ = least(_graph(), ENDS, row)
    every = run(_graph(), np.random.default_rng(1).uniform(*ENDS, size=(4000, 5)))
    low = every.min(axis=0) - 0.05 * np.ptp(every, axis=0)
    both = [Row(np.array([1.0, 0.0]), float(low[0])), Row(np.array([0.0, 1.0]), float(low[1]))]
    far = [Row(np.array([1.0, 0.0]), float(low[0]) - 50)]
    return Spec.unsafe([[Row(row, value - slack)], both, far], 2)


def _problem(spec: Spec, seconds: float = 10.0) -> Problem:
    region = as_inputs(Box(*ENDS), [(5,)])[0]
    limits = Limits(deadline=time.monotonic() + seconds)
    return Problem(_graph(), region, spec.rows(), limits=limits)


@cache
def _found(name: str, slack: float = 2e-3) -> Findings:
    found = SEARCHES[name](_problem(_spec(slack)))
    assert found.verdict is Verdict.HOLDS, found.reason
    return found


def _certificate(trees: tuple[SplitTree, ...], slack: float = 2e-3) -> Certificate:
    """A certificate of the claim with these trees as evidence."""
    made = verify(_graph(), Box(*ENDS), Spec.unsafe([[Row([1.0, 0.0], -1e3)]], 2), 10.0)
    case = replace(made.claim.cases[0], spec=_spec(slack))
    claim = replace(made.claim, cases=(case,))
    evidence = replace(made.evidence[0], method="search", margins=None, slopes={}, trees=(trees,))
    provenance = replace(made.provenance, seconds=0.2)
    return replace(made, claim=claim, evidence=(evidence,), provenance=provenance, margin=None)


@pytest.mark.oracle
@pytest.mark.parametrize("name", SEARCHES)
def test_a_proof_brings_one_tree_per_clause(name: str) -> None:
    found = _found(name)
    assert len(found.trees) == 3 and {t.method for t in found.trees} == {name}
    assert found.trees[0].leaves > 1 and found.trees[2].leaves == 1
    if name == "neuron":
        assert found.trees[1].weights.shape == (found.trees[1].leaves, 2)
        assert all(t.slopes for t in found.trees)


@pytest.mark.oracle
@pytest.mark.parametrize("name", SEARCHES)
def test_leaves_are_proved_again_with_little_work(name: str) -> None:
    found = _found(name)
    asked = _problem(_spec(2e-3))
    again = prove_trees(asked, found.trees)
    assert again.verdict is Verdict.HOLDS and again.margin >= 0
    if name == "neuron":
        assert again.leaves < found.leaves
    for clause, tree in enumerate(found.trees):
        proved, margin = prove_tree(_problem(_spec(2e-3)), clause, tree)
        assert proved and margin >= 0


@pytest.mark.oracle
def test_stored_slopes_and_multipliers_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most leaves need nothing but what is stored for them: no gradient steps, no splits."""
    anew: list[int] = []

    def counted(root: Root, domains: Domains, *rest: Any) -> tuple[Domains, Tensor]:
        anew.append(len(domains))
        return improved(root, domains, *rest)

    monkeypatch.setattr(engine, "improved", counted)
    tree, counts = _found("neuron").trees[0], []
    for kept in (tree, replace(tree.without_slopes(), multipliers=np.zeros(0, np.float32))):
        anew.clear()
        assert prove_tree(_problem(_spec(2e-3)), 0, kept)[0]
        counts.append(sum(anew))
    assert counts[0] < 0.5 * tree.leaves
    assert counts[0] < counts[1]


@pytest.mark.oracle
@pytest.mark.parametrize("name", SEARCHES)
def test_a_certificate_with_trees_is_saved_loaded_and_accepted(name: str, tmp_path: Path) -> None:
    made = _certificate(_found(name).trees)
    made.save(tmp_path / "c.json")
    again = load_certificate(tmp_path / "c.json")
    assert again.text() == made.text()
    for ours, theirs in zip(made.evidence[0].trees[0], again.evidence[0].trees[0], strict=True):
        assert (ours.step == theirs.step).all() and (ours.point == theirs.point).all()
        assert (ours.multipliers == theirs.multipliers).all()
        assert len(ours.slopes) == len(theirs.slopes)
    report = check(again, _graph())
    assert report.accepted, report.reason


def test_a_search_writes_its_trees_into_the_certificate(tmp_path: Path) -> None:
    graph = grow(mlp((12, 12, 3)), seed=1, shape=(30,))
    centre = np.random.default_rng(0).uniform(-1, 1, size=30)
    ends, row = (centre - 0.2, centre + 0.2), np.array([1.0, -1.0, 0.5])
    value, _ = least(graph, ends, row)
    spec = Spec.unsafe([[Row(row, value - 1e-3)], [Row(row, value - 100.0)]], 3)
    made = verify(graph, Box(*ends), spec, 20.0, attack=False)
    assert made.verdict is Verdict.HOLDS and made.provenance.method == "search", made
    (trees,) = made.evidence[0].trees
    assert [t.leaves > 1 for t in trees] == [True, False]
    made.save(tmp_path / "c.json")
    report = check(load_certificate(tmp_path / "c.json"), graph)
    assert report.accepted, report.reason


# -- forged trees ---------------------------------------------------------------------------------


def _first_split(tree: SplitTree) -> int:
    return int(np.flatnonzero(tree.step != LEAF)[0])


def _changed(tree: SplitTree, name: str, value: float) -> SplitTree:
    array = getattr(tree, name).copy()
    array[_first_split(tree)] = value
    return replace(tree, **{name: array})


@pytest.mark.oracle
@pytest.mark.parametrize("name", SEARCHES)
def test_trees_that_fit_no_network_are_rejected(name: str) -> None:
    tree, *rest = _found(name).trees
    changes = [("step", 99), ("element", 999), ("step", 2**30), ("element", 2**31 - 1)]
    wrong = [(_changed(tree, *change), *rest) for change in changes]
    wrong += [(tree,), (tree, *rest, tree), (replace(tree, method="magic"), *rest)]
    wrong += [(replace(tree, method="input" if name == "neuron" else "neuron"), *rest)]
    if name == "neuron":
        wrong += [(_changed(tree, "point", 0.1), *rest), (_changed(tree, "step", 1), *rest)]
        weights = np.ones((tree.leaves, 2), np.float32)
        wrong += [(replace(tree, weights=weights), *rest)]
    for trees in wrong:
        with pytest.raises(BadInput):
            prove_trees(_problem(_spec(2e-3)), trees)
        report = check(_certificate(trees), _graph())
        assert not report.accepted and "split" in report.reason


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", -3),
        ("element", -1),
        ("point", np.nan),
        ("point", np.inf),
        ("multipliers", np.nan),
        ("multipliers", -1.0),
        ("multipliers", np.inf),
    ],
)
def test_numbers_that_mean_nothing_are_refused(name: str, value: float) -> None:
    tree = _found("neuron").trees[0]
    with pytest.raises(BadInput, match="split tree"):
        _changed(tree, name, value)


def test_arrays_that_do_not_fit_are_refused() -> None:
    step = np.array([2, LEAF, LEAF], np.int32)
    plain = SplitTree(step, np.zeros_like(step), np.zeros(3))
    slopes = LeafSlopes(2, 0, np.zeros(2, np.int32), np.zeros((3, 2), np.uint8))
    for change in (
        {"step": step.astype(np.float64)},
        {"weights": np.zeros((2, 3), np.float32)},
        {"weights": np.ones((3, 3), np.float32)},
        {"multipliers": np.zeros(2)},
        {"slopes": (slopes,)},
    ):
        with pytest.raises(BadInput):
            replace(plain, **change)
    with pytest.raises(BadInput):
        replace(slopes, share=np.zeros((3, 1), np.uint8))


@pytest.mark.oracle
@pytest.mark.parametrize("name", SEARCHES)
def test_a_wrong_tree_of_a_true_claim_is_only_slower(name: str) -> None:
    """Other points, other elements, other numbers: the claim is proved again all the same."""
    tree, *rest = _found(name, 2e-2).trees
    rng = np.random.default_rng(0)
    split = tree.step != LEAF
    point, element = tree.point.copy(), tree.element.copy()
    point[split] = rng.normal(size=int(split.sum())).astype(np.float32)
    element[split] = rng.integers(0, 5, size=int(split.sum()))
    wrong = [replace(tree, point=point), replace(tree, element=element)]
    if name == "neuron":
        beta = rng.exponential(size=len(tree.multipliers)).astype(np.float32)
        shares = [rng.integers(0, 256, s.share.shape).astype(np.uint8) for s in tree.slopes]
        slopes = tuple(replace(s, share=t) for s, t in zip(tree.slopes, shares, strict=True))
        wrong += [replace(tree, multipliers=beta), replace(tree, slopes=slopes)]
    for forged in wrong:
        asked = _problem(_spec(2e-2))
        assert prove_trees(asked, (forged, *rest)).verdict is Verdict.HOLDS


@pytest.mark.oracle
@pytest.mark.parametrize("name", SEARCHES)
def test_a_false_claim_is_not_proved_by_the_tree_of_a_true_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trees of nearly the same claim, honest and changed, under a claim that is violated."""
    trees = _found(name).trees
    for points in (0.0, -1e6, 1e6, 0.25):
        tree = trees[0]
        split = tree.step != LEAF
        forged = replace(tree, point=np.where(split & (points != 0.25), points, tree.point))
        asked = _problem(_spec(-1e-3), 0.5)
        found = prove_trees(asked, (forged, *trees[1:]))
        assert found.verdict is not Verdict.HOLDS
    single = SplitTree(np.array([LEAF], np.int32), np.array([LEAF], np.int32), np.ones(1))
    alone = replace(single, method=name)
    assert not prove_tree(_problem(_spec(-1e-3), 0.5), 0, alone)[0]
    monkeypatch.setattr(recheck, "_PATIENCE", 1.0)
    certificate = replace(_certificate(trees, -1e-3), margin=1e-3)
    assert not check(certificate, _graph()).accepted


@pytest.mark.oracle
def test_leaves_that_do_not_cover_would_prove_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: a reader that lost every second child proves what is false."""
    trees = _found("neuron").trees
    real = SplitTree.paths

    def lost(self: SplitTree) -> object:
        return ([min(node, ~node) for node in path] for path in real(self))

    small = _problem(_spec(-1e-3), 5.0)
    tree = replace(trees[0].without_slopes(), multipliers=np.zeros(0, np.float32))
    split = tree.step != LEAF
    forged = replace(tree, point=np.where(split, 1e6, tree.point))
    monkeypatch.setattr(SplitTree, "paths", lost)
    assert prove_tree(small, 0, forged)[0]
