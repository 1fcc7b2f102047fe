"""Proof features: sufficient in exact arithmetic, minimal by brute force, drawn."""

from __future__ import annotations

import base64
import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import certify
from certify.bounds.evaluate import evaluate
from certify.bounds.evaluate import run as run_graph
from certify.bounds.program import prepare
from certify.core.errors import BadInput, Unsupported
from certify.core.graph import Graph
from certify.core.region import Box, Linf
from certify.core.spec import Row, Spec
from certify.features import LastLayer, feature_gradients, smallest
from certify.report.features import pictures
from tests.exact_nets import rational
from tests.nets import grow, mlp, residual
from tests.test_cli import run
from tests.test_two_roads import exported


def _question(seed: int, width: int = 9, eps: float = 0.05) -> tuple[Graph, Linf, Spec]:
    """A net, a small ball, and the class at its centre."""
    graph = grow(mlp((7, width, 3)), seed=seed)
    centre = np.random.default_rng(seed).uniform(-0.6, 0.6, size=5)
    y = evaluate(graph, torch.from_numpy(centre[None])).numpy()[0]
    return graph, Linf(centre, eps), Spec.classify(int(y.argmax()), 3)


def _exact_margins(graph: Graph, found: Any, spec: Spec, kept: Any) -> list[Fraction]:
    """Exact minima of the rows when the kept features have their intervals and the others {0}."""
    last = graph.by_name[graph.output]
    weight, bias = (rational(graph.constants[name]) for name in last.inputs[1:3])
    rows = spec.rows()
    y = rational(rows.y[0])
    terms, constant = y @ weight, y @ bias
    low, high = rational(found.lower), rational(found.upper)
    margins = []
    for r in range(len(y)):
        total = constant[r] - Fraction(float(rows.bound[r]))
        total += sum((min(terms[r, i] * low[i], terms[r, i] * high[i]) for i in kept), Fraction(0))
        margins.append(total)
    return margins


@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(8))
def test_the_set_is_sufficient_and_minimal_in_exact_arithmetic(seed: int) -> None:
    graph, region, spec = _question(seed)
    found = certify.proof_features(graph, region, spec)
    if not found.proved:
        assert min(_exact_margins(graph, found, spec, range(9))) <= 1e-9
        return
    kept = found.kept.tolist()
    exact = _exact_margins(graph, found, spec, kept)
    assert min(exact) > 0 and found.margin <= min(exact) + Fraction(1, 10**12)
    assert float(min(exact)) == pytest.approx(found.margin, rel=1e-9, abs=1e-12)
    for one in kept:  # none can be left out
        assert min(_exact_margins(graph, found, spec, [k for k in kept if k != one])) <= 1e-12
    sufficient = [set(s) for n in range(10) for s in itertools.combinations(range(9), n)
                  if min(_exact_margins(graph, found, spec, s)) > 0]
    assert set(kept) in sufficient
    assert not any(s == set(kept) - {k} for s in sufficient for k in kept)


def test_most_of_the_questions_are_proved() -> None:
    assert sum(certify.proof_features(*_question(s)).proved for s in range(8)) >= 5


@pytest.mark.parametrize("seed", range(4))
def test_the_network_without_the_other_features_keeps_its_class(seed: int) -> None:
    graph, region, spec = _question(seed, eps=0.01)
    found = certify.proof_features(graph, region, spec)
    assert found.proved
    points = region.batched((5,)).sample(300, torch.Generator().manual_seed(0))[0].double()
    last = graph.by_name[graph.output]
    hidden = run_graph(prepare(graph, torch.float64), (points,))
    place = [n.name for n in graph.nodes].index(found.node)
    h = hidden[place].numpy()
    assert ((h >= found.lower) & (h <= found.upper)).all()
    pruned = np.zeros_like(h)
    pruned[:, found.kept] = h[:, found.kept]
    weight, bias = (np.asarray(graph.constants[n]) for n in last.inputs[1:3])
    y = pruned @ weight.T + bias
    assert not spec.violated(None, y).any()


def _layer(least: Any, constant: Any, spec: Spec) -> LastLayer:
    return LastLayer(np.asarray(least, float), np.asarray(constant, float), spec.rows())


@pytest.mark.parametrize("seed", range(30))
def test_any_last_layer_gives_a_minimal_set(seed: int) -> None:
    """Terms of both signs: leaving one feature out may allow, or forbid, leaving out another."""
    rng = np.random.default_rng(seed)
    n, rows = int(rng.integers(1, 13)), int(rng.integers(1, 5))
    spec = Spec.linear(np.eye(rows), np.zeros(rows))
    least = np.round(rng.normal(size=(n, rows)) * 4) / 4
    last = _layer(least, -least.sum(0) + rng.integers(0, 3, size=rows) / 4 + 2.0**-10, spec)
    every = np.array(list(itertools.product([False, True], repeat=n)))
    good = last.proves(every)
    assert good[-1]
    chosen, checks = smallest(last, np.abs(least).max(axis=1))
    assert last.proves(chosen[None])[0] and checks >= 1
    less = np.repeat(chosen[None], n, axis=0)
    less[np.arange(n), np.arange(n)] = False
    assert not last.proves(less[chosen]).any()
    table = {tuple(s): g for s, g in zip(every.tolist(), good, strict=True)}
    assert table[tuple(chosen.tolist())]


def test_halving_needs_few_checks_where_one_feature_decides() -> None:
    spec = Spec.linear(np.eye(1), [0.0])
    least = np.full((4096, 1), 2.0**-20)
    least[7] = 1.0
    last = _layer(least, [-0.5], spec)
    chosen, checks = smallest(last, least[:, 0])
    assert np.flatnonzero(chosen).tolist() == [7] and checks < 20


def test_unbounded_and_useless_features() -> None:
    spec = Spec.linear(np.eye(1), [0.0])
    last = _layer([[-np.inf], [1.0], [0.0]], [-0.5], spec)
    sets = np.array([[1, 1, 1], [0, 1, 1], [0, 1, 0], [0, 0, 1]], dtype=bool)
    assert last.proves(sets).tolist() == [False, True, True, False]
    chosen, _ = smallest(_layer([[0.0], [0.0]], [1.0], spec), np.zeros(2))
    assert not chosen.any()  # the constant alone proves it


def test_clauses_of_several_rows() -> None:
    graph, region, _ = _question(1)
    box = certify.bound(graph, region, "ibp")
    low = box.lower.numpy().reshape(-1)
    high = box.upper.numpy().reshape(-1)
    never = Row({0: 1.0}, low[0] - 0.5)
    maybe = Row({1: 1.0}, high[1])
    for clause in ([never, maybe], [maybe, never]):
        assert certify.proof_features(graph, region, Spec.unsafe([clause], 3), "ibp").proved
    assert not certify.proof_features(graph, region, Spec.unsafe([[maybe]], 3), "ibp").proved


def test_tighter_methods_keep_proofs_and_priorities_are_the_definition() -> None:
    graph, region, spec = _question(2)
    found = {m: certify.proof_features(graph, region, spec, m) for m in ("ibp", "crown", "alpha")}
    margins = [found[m].full_margin for m in ("ibp", "crown", "alpha")]
    assert margins == sorted(margins)
    one = found["crown"]
    last = graph.by_name[graph.output]
    a = np.abs(spec.rows().y[0] @ np.asarray(graph.constants[last.inputs[1]]))
    wanted = a.max(axis=0) * np.maximum(np.abs(one.lower), np.abs(one.upper))
    assert np.allclose(one.priority, wanted, rtol=1e-9)
    assert (np.diff(one.priority[one.kept]) <= 0).all()


def test_what_has_no_last_affine_layer_is_refused() -> None:
    graph, region, spec = _question(0)
    linear = grow(mlp((3,)), seed=0)
    with pytest.raises(Unsupported, match="affine"):
        certify.proof_features(linear, region, spec)
    module = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Sigmoid())
    with pytest.raises(Unsupported, match="nonlinear"):
        certify.proof_features(certify.from_torch(module, torch.zeros(1, 5)), region, spec)
    with pytest.raises(BadInput, match="outputs alone"):
        certify.proof_features(
            graph, region, Spec.unsafe([[Row({0: 1.0}, x={0: 1.0})]], 3, 5))
    with pytest.raises(BadInput, match="one example"):
        certify.proof_features(graph, Box(np.zeros((2, 5)), np.ones((2, 5))), spec)
    with pytest.raises(BadInput, match="real"):
        certify.proof_features(graph, region, spec, semantics="float32")


def test_a_residual_network_and_the_same_answer_twice() -> None:
    graph = grow(residual, seed=1)
    low = certify.bound(graph, Linf(np.zeros(5), 0.01), "ibp").lower.numpy().reshape(-1)
    spec = Spec.linear(np.eye(3), low - 0.2)
    one, two = (certify.proof_features(graph, Linf(np.zeros(5), 0.01), spec) for _ in range(2))
    assert one.proved and (one.kept == two.kept).all() and one.checks == two.checks
    assert one.margin == two.margin


# -- gradients and pictures -----------------------------------------------------------------------


def _digits() -> tuple[Any, Linf]:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 20),
        torch.nn.ReLU(), torch.nn.Linear(20, 4)).eval()
    return module, Linf(torch.rand(1, 1, 8, 8).numpy(), 0.0005)


def test_gradients_are_the_mean_over_the_region() -> None:
    module, region = _digits()
    graph = certify.from_torch(module, torch.zeros(1, 1, 8, 8))
    label = int(module(torch.tensor(np.asarray(region.center)).float()).argmax())
    found = certify.proof_features(graph, region, Spec.classify(label, 4))
    assert found.proved and 0 < len(found.kept) <= 20
    got = feature_gradients(graph, region, found.node, found.kept, samples=8, seed=3)
    assert got.shape == (len(found.kept), 1, 1, 8, 8)
    points = region.batched((1, 1, 8, 8)).sample(8, torch.Generator().manual_seed(3))[0, :, 0]
    points = points.double().requires_grad_()
    hidden = module.double()[:5](points)
    for g, k in zip(got, found.kept.tolist(), strict=True):
        (wanted,) = torch.autograd.grad(hidden[:, k].sum(), points, retain_graph=True)
        assert np.allclose(g, wanted.mean(0).numpy(), atol=1e-9)
    with pytest.raises(BadInput, match="features must be"):
        feature_gradients(graph, region, found.node, [20])
    assert feature_gradients(graph, region, found.node, []).shape == (0, 1, 1, 8, 8)


def test_a_picture_is_valid_svg_with_valid_png_tiles() -> None:
    import zlib

    gradient = np.zeros((8, 1, 2, 3))
    gradient[:, 0, 0, 0], gradient[:, 0, 1, 2] = 2.0, -1.0
    text = pictures(gradient, [f"<{i}>\nsecond" for i in range(8)], ["a & b"])
    ElementTree.fromstring(text)
    tiles = re.findall(r"base64,([A-Za-z0-9+/=]+)", text)
    assert len(tiles) == 8
    raw = base64.b64decode(tiles[0])
    assert raw.startswith(b"\x89PNG\r\n\x1a\n")
    length = int.from_bytes(raw[33:37], "big")
    pixels = np.frombuffer(zlib.decompress(raw[41 : 41 + length]), np.uint8).reshape(2, 10)[:, 1:]
    assert pixels[0, :3].tolist() == [178, 24, 43]  # the most positive: red
    assert pixels[0, 3:6].tolist() == [255, 255, 255]
    blue = pixels[1, 6:].tolist()
    assert blue[2] > blue[0]
    for shape in ((1, 5), (3,)):
        with pytest.raises(BadInput, match="no image"):
            pictures(np.zeros((1, *shape)), ["x"])
    flat = pictures(np.zeros((1, 6)), ["x"], input_shape=(2, 3))
    assert "NaN" not in flat and ElementTree.fromstring(flat) is not None


def test_the_command(tmp_path: Path) -> None:
    module, region = _digits()
    model, x, svg = tmp_path / "net.onnx", tmp_path / "x.npy", tmp_path / "out.svg"
    exported(module, torch.zeros(1, 1, 8, 8), model, 17)
    np.save(x, np.asarray(region.center, np.float32))
    label = int(module(torch.tensor(np.asarray(region.center)).float()).argmax())
    usual = ("features", model, "--input", x, "--label", label)
    done = run(*usual, "--eps", "0.0005", "--plot", svg, "--json")
    assert done.returncode == 0, done
    found = json.loads(done.stdout)
    assert found["proved"] and found["features"] == 20 and len(found["kept"]) <= 20
    assert "none of them can be left out" in done.stderr
    ElementTree.fromstring(svg.read_text())
    done = run(*usual, "--eps", "0.0005", "-q")
    assert done.stdout.splitlines()[0].split() == ["feature", "priority", "lower", "upper"]
    assert len(done.stdout.splitlines()) == 1 + len(found["kept"]) and not done.stderr
    svg.unlink()
    done = run(*usual, "--eps", "1", "--plot", svg)
    assert done.returncode == 3 and "not proved" in done.stderr and "no picture" in done.stderr
    assert not svg.exists()
    assert run(*usual[:-1], "9", "--eps", "0.1").returncode == 4
    assert run(*usual, "--eps", "0.0005", "--plot", svg, "--shape", "3").returncode == 2
