"""Quick bounds in plain floats are the general ones, and so are their derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from certify.bounds.crown import State, row_bounds
from certify.core.semantics import Semantics
from certify.search.neuron_split.hinges import Hinges
from certify.search.neuron_split.root import Chooser, prepare_root
from tests.nets import BODIES, grow
from tests.test_neuron_split import problem, single


@pytest.mark.parametrize("body", ["residual", "convolutional"])
def test_values_and_derivatives_agree(body: str) -> None:
    shape = {"residual": (5,), "convolutional": (2,)}[body]
    graph = grow(BODIES[body], shape, seed=3)
    size = int(np.prod(graph.input_shapes[0]))
    outputs = int(np.prod(graph.output_shape))
    ends = np.full(size, -1.0), np.full(size, 1.0)
    asked = problem(graph, ends, single(np.eye(outputs)[0], 0.0, outputs), 30.0)
    root = prepare_root(asked, asked.limits)
    known = list(root.bounds[torch.float32])
    state = State(root.fast, asked.region, Semantics.SEARCH, asked.limits, known)
    chooser = Chooser(state, root.layout, 1)
    assert root.layout.size
    generator = torch.Generator().manual_seed(0)
    stored = torch.rand(1, root.layout.size, generator=generator).requires_grad_()
    row = torch.randn(1, 1, *root.fast.shape(root.fast.output), generator=generator)
    found = []
    for bounds in (Hinges(state).bounds, lambda r, s: row_bounds(state, r, s)):
        value = bounds({root.fast.output: row}, chooser(stored))
        found.append((value.detach(), *torch.autograd.grad(value.sum(), stored)))
    for quick, general in zip(*found, strict=True):
        assert float(general.abs().max()) > 0
        torch.testing.assert_close(quick, general, rtol=1e-4, atol=1e-5)
