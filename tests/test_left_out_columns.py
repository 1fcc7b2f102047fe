"""Rows without the columns of dead neurons, and strided transposed convolutions by other means."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import certify
from certify.bounds.budget import Limits
from certify.bounds.columns import ColumnRows, Columns
from certify.bounds.crown import Plan, State, row_bounds, tighten
from certify.bounds.methods import fit
from certify.bounds.program import prepare
from certify.bounds.rounding import Semantics
from certify.core.region import Box
from certify.ops import conv, phases
from certify.ops.windows import Window


def _state(semantics: str, dtype: torch.dtype, batch: int) -> State:
    """Two hidden layers, a third of whose neurons are dead on the whole box."""
    torch.manual_seed(3)
    layers = [torch.nn.Linear(a, b) for a, b in ((6, 24), (24, 20), (20, 4))]
    with torch.no_grad():
        for layer in layers[:2]:
            layer.bias[::3] = -50.0
    net = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    graph = certify.from_torch(net, torch.zeros(1, 6))
    centre = np.random.default_rng(1).uniform(-1, 1, (batch, 6))
    region = fit(Box(centre - 0.3, centre + 0.3), graph)
    with torch.no_grad():
        return tighten(prepare(graph, dtype), region, Plan(), Semantics(semantics), Limits())


@pytest.mark.parametrize("semantics", ["search", "real", "float32"])
@pytest.mark.parametrize("batch", [1, 3])
def test_dead_neurons_change_no_bound(semantics: str, batch: int) -> None:
    state = _state(semantics, torch.float64, batch)
    program = state.program
    out = program.output
    rows = {
        out: torch.eye(4, dtype=torch.float64)
        .expand(batch, 4, 4)
        .reshape(batch, 4, *program.shape(out))
    }
    relus = [s.index for s in program.steps if s is not None and s.op.name == "relu"]
    alive = [state.columns.alive(i) for i in relus]
    assert all(a is not None and 0 < len(a) < 20 for a in alive)
    with torch.no_grad():
        short = row_bounds(state, rows, mirrored=True)
        sweep = state.sweep(rows)
        sweep.columns, sweep.mirrored = None, True
        sweep.run(state.relax)
        full = sweep.minimum(state.region, program.inputs)
    assert torch.allclose(short, full, rtol=1e-12, atol=1e-12)


def test_columns_follow_the_bounds() -> None:
    state = _state("real", torch.float64, 1)
    index = next(s.index for s in state.program.steps if s is not None and s.op.name == "relu")
    before, box = state.columns.alive(index), state.box(index)
    assert before is not None and bool((box.upper.flatten()[before] > 0).any())
    state.bounds[index] = type(box)(box.lower - 1, box.upper)
    assert state.columns.alive(index) is None
    assert Columns([type(box)(0 * box.lower, 0 * box.upper)]).alive(0).tolist() == [0]


def test_dense_and_mirrored_rows() -> None:
    rows = ColumnRows(torch.tensor([[[1.0, -2.0]]]), torch.tensor([3, 1]), (2, 2))
    assert rows.dense().tolist() == [[[[0, -2], [0, 1]]]]
    assert rows.mirrored().dense()[0, 1].tolist() == [[0, 2], [0, -1]]
    taken = rows.take(torch.arange(4.0).reshape(1, 2, 2))
    assert taken is not None and taken.tolist() == [[3, 1]]


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_strided_transpose_is_the_adjoint(kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "_MANY", 1)
    monkeypatch.setattr(conv, "_MANY", 1)
    torch.manual_seed(kernel)
    paddings = ((0, 0), (1, 1), (2, 1), (0, 2), (3, 3))
    for strides, begins, ends in itertools.product(((2, 2), (3, 3), (2, 1)), paddings, paddings):
        window = Window(strides, begins, ends, (1, 1))
        x = torch.randn(3, 2, 6, 7, requires_grad=True)
        weight = torch.randn(4, 2, kernel, kernel)
        y = conv.run_conv(x, weight, None, window, 1)
        A = torch.randn_like(y)
        (expected,) = torch.autograd.grad(y, x, A)
        found = conv.run_conv_transpose(A, weight, window, 1, (6, 7))
        assert torch.allclose(found, expected, atol=1e-4), (strides, begins, ends)
