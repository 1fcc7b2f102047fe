"""Questions about substitutions are decided, and by the right answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import certify
from certify.bounds.evaluate import evaluate
from certify.core.graph import Graph
from certify.core.region import Substitutions
from certify.core.region_substitutions import every_member

LENGTH, WIDTH = 7, 3


class Reader(nn.Module):
    """A convolution, the maximum over time, two logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv1d(WIDTH, 8, 3), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.conv(x.transpose(-1, -2))).amax(-1))


def network(seed: int) -> Graph:
    torch.manual_seed(seed)
    return certify.from_torch(Reader().eval(), torch.zeros(1, LENGTH, WIDTH))


def region(seed: int, budget: int, candidates: int = 2) -> Substitutions:
    rng = np.random.default_rng(seed)
    center = rng.normal(size=(LENGTH, WIDTH)).astype(np.float32)
    others = rng.normal(size=(LENGTH, candidates, WIDTH)).astype(np.float32)
    others[rng.integers(LENGTH)] = center[0]  # a position whose candidates are all the same
    others[1, 0] = center[1]  # and one that is the centre's own
    return Substitutions(center, others, budget)


def truth(graph: Graph, place: Substitutions) -> np.ndarray:
    """``Y_0 - Y_1`` of every member, in float64."""
    members = np.stack(list(every_member(place.batched((1, LENGTH, WIDTH)))))
    with torch.no_grad():
        y = evaluate(graph, torch.from_numpy(members).reshape(-1, *graph.input_shapes[0]))
    y = y.flatten(1)
    return (y[:, 0] - y[:, 1]).numpy()


@pytest.mark.parametrize("attack", [True, False])
@pytest.mark.parametrize("budget", [0, 1, 2, 3, 7])
def test_close_thresholds_are_decided_on_the_right_side(budget: int, attack: bool) -> None:
    for seed in range(4):
        graph, place = network(seed), region(seed, budget)
        least = float(truth(graph, place).min())
        for room, holds in ((1e-4, True), (-1e-4, False)):
            spec = certify.Spec.linear(np.array([[1.0, -1.0]]), least - room)
            found = certify.verify(graph, place, spec, timeout=60.0, attack=attack)
            wanted = "HOLDS" if holds else "VIOLATED" if attack else "UNKNOWN"
            assert found.verdict.name == wanted, (seed, room, found.reason)
            assert certify.check(found, graph)
            if found.counterexample is not None:
                assert place.batched((1, LENGTH, WIDTH)).contains(
                    found.counterexample.inputs[0][None]).all()


def test_specifications_of_several_clauses_and_rows() -> None:
    graph, place = network(1), region(1, 2)
    values = truth(graph, place)
    low, high = float(values.min()), float(values.max())
    inside = [[certify.core.spec.Row({0: 1.0, 1: -1.0}, low - 1e-4)],
              [certify.core.spec.Row({0: -1.0, 1: 1.0}, -high - 1e-4)]]
    found = certify.verify(graph, place, certify.Spec.unsafe(inside, 2), attack=False)
    assert found.verdict is certify.Verdict.HOLDS
    inside[1] = [certify.core.spec.Row({0: -1.0, 1: 1.0}, -high + 1e-4)]
    found = certify.verify(graph, place, certify.Spec.unsafe(inside, 2))
    assert found.verdict is certify.Verdict.VIOLATED


def test_time_runs_out_without_an_answer() -> None:
    torch.manual_seed(0)
    length = 60

    class Long(Reader):
        pass

    graph = certify.from_torch(Long().eval(), torch.zeros(1, length, WIDTH))
    rng = np.random.default_rng(0)
    place = Substitutions(rng.normal(size=(length, WIDTH)), rng.normal(size=(length, 5, WIDTH)), 20)
    with torch.no_grad():
        loose = float(certify.bound(graph, place, "crown-ibp",
                                    np.array([[1.0, -1.0]])).lower)
    spec = certify.Spec.linear(np.array([[1.0, -1.0]]), 0.5 * loose)
    found = certify.verify(graph, place, spec, timeout=1.5, attack=False)
    assert found.verdict in (certify.Verdict.TIMEOUT, certify.Verdict.UNKNOWN)
