"""Sub-problems of a search over neurons: proved margins against samples, with faults planted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from certify.bounds import evaluate
from certify.bounds.budget import Limits
from certify.core.spec import Row, Spec
from certify.search.neuron_split import bounding
from certify.search.neuron_split.bounding import proved
from certify.search.neuron_split.branching import Offers
from certify.search.neuron_split.children import halves
from certify.search.neuron_split.domains import Domains
from certify.search.neuron_split.root import Root, prepare_root
from tests.nets import grow
from tests.test_exact_answers import CHAINS, box
from tests.test_neuron_split import EVERY, problem, single


def random_domains(root: Root, x: np.ndarray, rng: np.random.Generator, depth: int) -> Domains:
    """Sub-problems around points: splits of random elements, everything else random too."""
    values = evaluate.run(root.fast, _inputs(root, x))
    count = len(x)
    steps = rng.choice(np.array(root.operands), size=(count, depth))
    element, point, side = (np.zeros((count, depth), dtype=t) for t in (np.int64, float, np.int64))
    for i in range(count):
        for k in range(depth):
            flat = values[steps[i, k]][i].flatten()
            element[i, k] = rng.integers(len(flat))
            side[i, k] = rng.choice([-1, 1])
            away = np.float32(abs(rng.normal()) * 0.1)
            at = float(np.float32(float(flat[element[i, k]]) - float(side[i, k] * away)))
            point[i, k] = at
    count_rows = root.clauses.used.shape[1]

    def tensor(array: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(array))

    return Domains(
        tensor(rng.integers(len(root.clauses), size=count)),
        tensor(rng.uniform(0, 1, size=(count, count_rows)).astype(np.float32)),
        tensor(steps.astype(np.int64)),
        tensor(element),
        tensor(point),
        tensor(side),
        tensor(rng.exponential(0.5, size=(count, depth)).astype(np.float32)),
        torch.ones(count, depth),
        tensor(rng.uniform(-1, 2, size=(count, root.layout.size)).astype(np.float32)),
        torch.full((count,), -np.inf, dtype=torch.float64),
        torch.zeros(count, dtype=torch.int64),
        torch.full((count,), depth),
    )


def _inputs(root: Root, x: np.ndarray) -> tuple[torch.Tensor, ...]:
    return (torch.from_numpy(x).to(root.fast.dtype).reshape(-1, *root.fast.shape(0)),)


def check_margins(body: str, seed: int, rounds: int = 2) -> int:
    """Proved margins against samples inside each sub-problem; how many samples there were."""
    rng = np.random.default_rng(seed)
    graph, ends = grow(EVERY[body], (3,), seed=seed), (np.full(3, -0.5), np.full(3, 0.5))
    spec = Spec.unsafe(
        [[Row(r, 0.1) for r in rng.normal(size=(2, 3))], [Row(rng.normal(size=3), -0.2)]], 3
    )
    root = prepare_root(problem(graph, ends, spec), Limits())
    x = rng.uniform(-0.5, 0.5, size=(4000, 3)).astype(np.float32).astype(np.float64)
    values = [v.flatten(1).numpy() for v in evaluate.run(root.exact, (torch.from_numpy(x),))]
    seen = 0
    for depth in range(rounds + 1):
        domains = random_domains(root, x[:12], rng, depth)
        margins = proved(root, domains).numpy()
        for i in range(len(domains)):
            inside = np.ones(len(x), dtype=bool)
            for k in range(depth):
                z = values[int(domains.step[i, k])][:, int(domains.element[i, k])]
                inside &= (z - float(domains.point[i, k])) * int(domains.side[i, k]) >= 0
            clause = int(domains.clause[i])
            used = root.clauses.used[clause].numpy()
            weight = domains.weight[i].double().numpy() * used
            g = values[root.exact.output] @ root.clauses.y[clause].numpy().T
            g = ((g - root.clauses.bound[clause].numpy()) @ weight) / weight.sum()
            seen += int(inside.sum())
            if inside.any():
                assert margins[i] <= g[inside].min() + 1e-12, (body, seed, depth, i)
    return seen


@pytest.mark.parametrize("body", EVERY)
def test_no_margin_is_above_a_sample_of_its_sub_problem(body: str) -> None:
    assert check_margins(body, seed=11) > 1000


def test_a_multiplier_of_the_wrong_sign_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = bounding.split_rows

    def wrong(program: Any, domains: Domains, beta: torch.Tensor, rows: Any) -> Any:
        return real(program, replace(domains, side=-domains.side), beta, rows)

    monkeypatch.setattr(bounding, "split_rows", wrong)
    with pytest.raises(AssertionError):
        for seed in range(3):
            check_margins("mlp", seed)


def test_a_missing_constant_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounding, "split_constants", lambda p, d, beta: torch.zeros_like(beta))
    with pytest.raises(AssertionError):
        for seed in range(4):
            check_margins("mlp", seed)


def test_a_clip_on_the_wrong_side_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = bounding._clipped

    def wrong(interval: Any, domains: Domains, index: int) -> Any:
        return real(interval, replace(domains, side=-domains.side), index)

    monkeypatch.setattr(bounding, "_clipped", wrong)
    with pytest.raises(AssertionError):
        for seed in range(3):
            check_margins("mlp", seed)


def test_halves_keep_the_parents_plane_or_better() -> None:
    """Both children hold the split, and no point of the parent is in neither."""
    graph = grow(CHAINS["two layers"], seed=0)
    root = prepare_root(problem(graph, box(0, 0.6), single(np.ones(3), 0.0, 3)), Limits())
    parent = random_domains(root, np.zeros((3, 5)), np.random.default_rng(0), 1)
    offer = Offers(
        *(torch.tensor([[v]] * 3) for v in (root.operands[0], 2)),
        torch.full((3, 1), 0.25),
        *(torch.ones(3, 1) for _ in range(3)),
    )
    both = halves(root, parent, offer)
    assert both.side[:, 1].tolist() == [-1] * 3 + [1] * 3
    assert (both.point[:, 1] == 0.25).all() and (both.element[:, 1] == 2).all()
    assert (both.depth == 2).all() and (both.step[:, 0] == parent.step[:, 0].repeat(2)).all()
