"""Networks rewritten: free weights, appended outputs, gradients; each against the plain network."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import certify
from certify.bounds.evaluate import evaluate
from certify.core.errors import BadInput, Unsupported, UsageError
from certify.evaluation.quantised import certify_quantised, evaluate_quantised, weight_region
from certify.semantic import free_weights, jacobian, with_output
from certify.semantic.outputs import OUTPUTS
from certify.semantic.quantise import rounded, steps
from certify.semantic.weights import weight_names

DENSE = torch.nn.Sequential(
    torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6), torch.nn.ReLU(),
    torch.nn.Linear(6, 4))
SMOOTH = torch.nn.Sequential(
    torch.nn.Linear(3, 8), torch.nn.Sigmoid(), torch.nn.Linear(8, 6), torch.nn.Softplus(),
    torch.nn.LeakyReLU(0.1), torch.nn.Linear(6, 4))
CONV = torch.nn.Sequential(
    torch.nn.Conv2d(2, 3, (3, 2), 2, padding=(1, 0)), torch.nn.ReLU(), torch.nn.Conv2d(3, 2, 2),
    torch.nn.Flatten(), torch.nn.Linear(8, 4))
NETS = {"dense": (DENSE, (1, 3)), "smooth": (SMOOTH, (1, 3)), "conv": (CONV, (1, 2, 6, 6))}


def drawn(name: str, seed: int = 0):
    module, shape = NETS[name]
    torch.manual_seed(seed)
    for layer in module:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    module = module.double()
    return certify.from_torch(module, torch.zeros(shape).double()), module, shape


@pytest.mark.parametrize("name", NETS)
def test_free_weights_change_nothing_at_their_own_values(name: str) -> None:
    graph, _, shape = drawn(name)
    names = [*weight_names(graph), *weight_names(graph, least=1)][:4]
    freed = free_weights(graph, dict.fromkeys(names))
    x = torch.randn(5, *shape).double()
    given = [graph.constants[n].detach() for n in dict.fromkeys(names)]
    found = evaluate(freed, x, *(w.expand(5, *w.shape) for w in given))
    assert torch.allclose(found, evaluate(graph, x), atol=1e-12)
    assert [e.kind for e in freed.source["edits"]] == ["free-weights"]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_bounds_hold_for_every_perturbed_network(name: str, method: str) -> None:
    graph, _, shape = drawn(name)
    x = torch.randn(2, *shape).double()
    freed, region = weight_region(graph, x.numpy(), bits=6, eps=0.02)
    found = certify.bound(freed, region, method)
    parts = [torch.as_tensor(p) for p in region.sample(1)[1:]]
    for _ in range(60):
        points = [torch.as_tensor(p) for p in region.sample(2)]
        inputs, weights = points[0][:, 1], [p[:, 1] for p in points[1:]]
        value = evaluate(freed, inputs, *weights)
        assert bool((value >= found.lower).all())
        assert bool((value <= found.upper).all())
    assert parts


def test_weights_in_an_l2_ball() -> None:
    graph, _, _ = drawn("dense")
    name = weight_names(graph)[-1]
    freed = free_weights(graph, [name])
    weight = graph.constants[name].detach()
    x = np.full((1, 1, 3), 0.3)
    region = certify.Product([certify.Box(x, x), certify.L2(weight.numpy()[None], 0.1)])
    found = certify.bound(freed, region, "crown-ibp")
    move = torch.randn(5000, *weight.shape).double()
    move = 0.1 * move / move.flatten(1).norm(dim=1).reshape(-1, 1, 1)
    value = evaluate(freed, torch.from_numpy(x).expand(5000, 1, 3), weight + move).detach()
    assert bool((value >= found.lower).all())
    assert bool((value <= found.upper).all())
    width = (found.upper - found.lower).detach()
    assert float(width.max()) < 3 * float((value.amax(0) - value.amin(0)).max())


def test_quantised_labels_are_never_contradicted() -> None:
    graph, _, shape = drawn("conv", 1)
    x = np.random.default_rng(0).normal(size=(12, *shape))
    labels = evaluate(graph, torch.from_numpy(x)).flatten(1).argmax(1).detach().numpy()
    found = evaluate_quantised(graph, x, labels, (12, 8, 5, 3))
    certified = {bits: sum(f.certified for f in found if f.bits == bits) for bits in (12, 8, 5, 3)}
    assert certified[12] > certified[3]
    assert certified[12] >= certified[8] >= certified[5] >= certified[3]
    rng = np.random.default_rng(1)
    for f in found:
        if not f.certified:
            continue
        assert f.rounded == f.label
        size = steps(graph, f.bits)
        for _ in range(5):  # not only the nearest rounding: any within half a step
            changed = dict(graph.constants)
            for name, step in size.items():
                weight = graph.constants[name].detach().numpy()
                changed[name] = weight + step * rng.choice([-0.5, 0.5], weight.shape)
            other = certify.core.graph.Graph(graph.nodes, changed, graph.output)
            y = evaluate(other, torch.from_numpy(x[f.index:f.index + 1]))
            assert int(y.argmax()) == f.label


def test_rounding_is_to_the_nearest_step() -> None:
    graph, _, _ = drawn("dense")
    for bits in (8, 4):
        size, other = steps(graph, bits), rounded(graph, steps(graph, bits))
        for name, step in size.items():
            gap = np.abs(other.constants[name] - graph.constants[name].detach().numpy())
            assert (gap <= step / 2 * (1 + 1e-12)).all()
    with pytest.raises(UsageError, match="bits"):
        steps(graph, 1)


def test_a_certificate_about_roundings_is_checked_from_the_model_alone(tmp_path) -> None:
    graph, _, shape = drawn("conv", 1)
    x = np.random.default_rng(0).normal(size=shape)
    label = int(evaluate(graph, torch.from_numpy(x[None])).argmax())
    found = certify_quantised(graph, x, label, bits=12)
    assert found.verdict is certify.Verdict.HOLDS
    found.save(tmp_path / "c.json")
    assert certify.check(certify.load_certificate(tmp_path / "c.json"), graph)


def test_what_cannot_be_freed_is_named() -> None:
    graph, _, _ = drawn("dense")
    with pytest.raises(BadInput, match="no constant 'nothing'"):
        free_weights(graph, ["nothing"])
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.PReLU(4))
    other = certify.from_torch(module, torch.zeros(1, 3))
    slope = next(n for n in other.constants if other.constants[n].numel() == 4 and "1" in n)
    with pytest.raises(Unsupported, match="constant weights"):
        free_weights(other, [slope])


SETTINGS = {
    "softmax": {}, "distance": {"distances": [0.0, 1.0, 2.0, 3.0]},
    "distance-excess": {"distances": [0.0, 1.0, 2.0, 3.0], "threshold": 1.5, "label": 1},
    "sum-distribution": {}, "expected-sum": {},
    "energy-growth": {"linear": [1.0, 0.0, -1.0], "quadratic": [0.0, 2.0, 1.0]},
}


def meaning(kind: str, x: list[torch.Tensor], y: list[torch.Tensor]) -> torch.Tensor:
    """The functions once more, written down plainly."""
    p = [torch.softmax(v.flatten(1), -1) for v in y]
    d = torch.arange(4.0).double()
    if kind == "softmax":
        return p[0]
    if kind == "distance":
        return (p[0] * d).sum(-1, keepdim=True)
    if kind == "distance-excess":
        z = y[0].flatten(1)
        return ((d - 1.5) * torch.exp(z - z[:, 1:2])).sum(-1, keepdim=True)
    if kind == "expected-sum":
        return sum((q * d).sum(-1, keepdim=True) for q in p)
    if kind == "sum-distribution":
        return torch.stack([sum(p[0][:, i] * p[1][:, s - i] for i in range(4) if 0 <= s - i < 4)
                            for s in range(7)], -1)
    linear, quadratic = (torch.tensor(v).double()
                         for v in ([1.0, 0.0, -1.0], [0.0, 2.0, 1.0]))

    def energy(s: torch.Tensor) -> torch.Tensor:
        s = s.flatten(1)
        return (linear * s + 0.5 * quadratic * s * s).sum(-1, keepdim=True)

    return energy(y[0]) - energy(x[0])


@pytest.mark.parametrize("kind", list(OUTPUTS))
@pytest.mark.parametrize("method", ["ibp", "crown", "alpha", "decomposition"])
def test_outputs_mean_what_they_say_and_bounds_contain_them(kind: str, method: str) -> None:
    if kind == "energy-growth":
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(),
                                     torch.nn.Linear(8, 3)).double()
        graph, shape = certify.from_torch(module, torch.zeros(1, 3).double()), (1, 3)
    else:
        graph, module, shape = drawn("dense")
    made = with_output(graph, kind, **SETTINGS[kind])
    copies = OUTPUTS[kind].copies
    x = [torch.rand(3000, *shape).double() * 0.2 - 0.1 for _ in range(copies)]
    value = evaluate(made, *x)
    wanted = meaning(kind, x, [module(v).detach() for v in x])
    assert torch.allclose(value.reshape(wanted.shape), wanted, atol=1e-12)
    parts = [certify.Linf(np.zeros((1, *shape)), 0.1)] * copies
    region = parts[0] if copies == 1 else certify.Product(parts)
    found = certify.bound(made, region, method)
    assert bool((value >= found.lower).all())
    assert bool((value <= found.upper).all())


def test_wrong_settings_of_outputs_are_refused() -> None:
    graph, _, _ = drawn("dense")
    with pytest.raises(BadInput, match="choose from"):
        with_output(graph, "nonsense")
    with pytest.raises(BadInput, match="takes distances"):
        with_output(graph, "distance")
    with pytest.raises(BadInput, match="4 finite numbers"):
        with_output(graph, "distance", distances=[1.0, 2.0])
    with pytest.raises(BadInput, match="label 9"):
        with_output(graph, "distance-excess", distances=[0.0] * 4, threshold=1.0, label=9)


@pytest.mark.parametrize("name", NETS)
def test_gradients_are_those_of_torch_and_bounds_contain_them(name: str) -> None:
    graph, module, shape = drawn(name)
    made = jacobian(graph, np.eye(4))
    x = 0.4 * torch.rand(200, *shape).double() - 0.2
    value = evaluate(made, x)
    wanted = torch.stack([torch.autograd.functional.jacobian(module, v)[0] for v in x])
    assert torch.allclose(value.reshape(wanted.shape), wanted, atol=1e-12)
    for method in ("ibp", "crown"):
        found = certify.bound(made, certify.Linf(np.zeros((1, *shape)), 0.2), method)
        assert bool((value >= found.lower).all())
        assert bool((value <= found.upper).all())


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_lipschitz_constants_hold_between_all_pairs(norm: str) -> None:
    graph, _, shape = drawn("dense")
    centre = np.zeros((1, *shape))
    found = certify.lipschitz(graph, certify.Linf(centre, 0.3), norm=norm)
    assert found.shape == (1, 4)
    x = 0.6 * torch.rand(400, *shape).double() - 0.3
    y = evaluate(graph, x).flatten(1).detach()
    distance = torch.cdist(x.flatten(1), x.flatten(1), p=float(norm))
    ratio = (y[:, None] - y[None]).abs() / distance.clamp(min=1e-9).unsqueeze(-1)
    assert (ratio.amax((0, 1)).numpy() <= found[0]).all()
    assert (found[0] <= 4 * ratio.amax((0, 1)).numpy()).all()
    near = certify.lipschitz(graph, certify.Linf(centre, 0.01), norm=norm)
    assert (near <= found + 1e-12).all()


def test_gradients_of_unknown_operators_are_refused_by_name() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Softmax(-1))
    graph = certify.from_torch(module, torch.zeros(1, 3))
    with pytest.raises(Unsupported, match="softmax"):
        jacobian(graph, np.eye(4))


def test_top_k_specs_agree_with_sorting() -> None:
    rng = np.random.default_rng(0)
    for label, k in itertools.product(range(5), (1, 2, 3)):
        spec = certify.Spec.top_k(label, k, 5)
        y = rng.normal(size=(300, 5))
        ranks = (y > y[:, label:label + 1]).sum(1)
        violated = np.array([bool(spec.violated(np.zeros((1, 1)), v[None])[0]) for v in y])
        assert (violated == (ranks >= k)).all()
