"""`from_torch`: any module of ours-sized kinds, with its own live tensors, or a helpful refusal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_models import MODELS, make

from certify.bounds.evaluate import evaluate
from certify.core.errors import BadInput, Unsupported
from certify.core.graph import Graph
from certify.importers.torch_graph import from_torch
from certify.importers.torch_module import check_current, evaluate_module, fingerprint

HERE = "test_torch_import.py"


def _points(graph: Graph, count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn((count, *shape), generator=generator) for shape in graph.input_shapes]


def _agree(graph: Graph) -> None:
    points = _points(graph)
    with torch.no_grad():
        found = evaluate(graph, *points)
    examples = zip(*points, strict=True)
    wanted = torch.stack([evaluate_module(graph, *example) for example in examples])
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_computes_what_the_module_computes(name: str) -> None:
    module, example = make(name)
    flags = {part: i % 3 > 0 for i, part in enumerate(module.modules())}
    for part, flag in flags.items():
        part.training = flag
    graph = from_torch(module, example)
    assert {part: part.training for part in module.modules()} == flags
    _agree(graph)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_the_modules_own(name: str) -> None:
    module, example = make(name)
    graph = from_torch(module, example)
    named = dict(module.named_parameters(remove_duplicate=False))
    used = {path for path in graph.source["live"].values() if path in named}
    derived = {path for paths in graph.source["frozen"].values() for path in paths}
    tied = {name for name, p in named.items() if any(p is named[u] for u in used | derived)}
    assert tied == set(named)
    for path in used & set(graph.constants):
        assert graph.constants[path] is named[path]


@pytest.mark.parametrize(
    "name", ["mlp", "cnn", "transformer", "cross-attention", "no-batch-axis", "shared"]
)
def test_an_optimiser_step_is_seen_and_gradients_arrive(name: str) -> None:
    module, example = make(name)
    graph = from_torch(module, example)
    for _ in range(2):
        evaluate(graph, *_points(graph)).square().sum().backward()
        found = {n: p.grad for n, p in module.named_parameters()}
        assert all(g is not None for g in found.values()), found
        torch.optim.SGD(module.parameters(), lr=0.01).step()
        check_current(graph)
        _agree(graph)


def test_gradients_equal_the_modules_own() -> None:
    module, example = make("cross-attention")
    graph = from_torch(module, example)
    point = _points(graph)[0][:1]
    wanted = torch.autograd.grad(module.eval()(point[0]).square().sum(), list(module.parameters()))
    found = torch.autograd.grad(evaluate(graph, point).square().sum(), list(module.parameters()))
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=1e-4, atol=1e-5)


def test_frozen_parameters_stay_frozen() -> None:
    module, example = make("transformer")
    module.requires_grad_(False)
    graph = from_torch(module, example)
    assert not any(getattr(c, "requires_grad", False) for c in graph.constants.values())
    assert not any(p.requires_grad for p in module.parameters())
    _agree(graph)


def test_batch_norm_reads_its_running_statistics_live() -> None:
    module, example = make("cnn")
    graph = from_torch(module, example)
    assert graph.constants["1.running_mean"] is module[1].running_mean
    module.train()(torch.randn(8, 1, 8, 8))
    _agree(graph)


def test_constants_computed_from_parameters_are_named_and_go_stale() -> None:
    module, example = make("weight-norm")
    graph = from_torch(module, example)
    (derived,) = set(graph.source["frozen"].values())
    assert derived == ("parametrizations.weight.original0", "parametrizations.weight.original1")
    check_current(graph)
    with torch.no_grad():
        module.parametrizations.weight.original0.mul_(2)
    with pytest.raises(BadInput, match="import again"):
        check_current(graph)


def test_a_replaced_parameter_is_noticed() -> None:
    module, example = make("mlp")
    graph = from_torch(module, example)
    module[0].weight = nn.Parameter(module[0].weight.detach().clone())
    with pytest.raises(BadInput, match="'0.weight' was replaced"):
        check_current(graph)


def test_source_and_names() -> None:
    module, example = make("mlp")
    graph = from_torch(module.double(), example.double())
    assert graph.source["format"] == "torch"
    assert graph.source["dtype"] == "float64"
    assert graph.source["module"] is module
    assert {"0.weight", "0.bias", "4.bias"} <= set(graph.constants)
    assert "layer '1', ReLU" in next(n.where for n in graph.nodes if n.op == "relu")
    assert graph.output_shape == (1, 3)


def test_the_fingerprint_is_that_of_the_state() -> None:
    module, _ = make("cnn")
    before = fingerprint(module)
    assert before == fingerprint(make("cnn")[0])
    module[1].running_var[0] += 1e-3
    assert fingerprint(module) != before


def test_outputs_are_joined_in_order() -> None:
    module, example = make("many-outputs")
    graph = from_torch(module, example)
    assert graph.input_shapes == ((1, 3), (1, 2))
    assert graph.output_shape == (4,)


class _Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.special.bessel_j0(x)
        z = torch.linalg.det(x) + torch.fft.fft(x).real
        return torch.special.bessel_j0(y) + z


def test_every_unsupported_operator_is_named_at_once_with_its_line() -> None:
    line = _Odd.forward.__code__.co_firstlineno
    with pytest.raises(Unsupported) as caught:
        from_torch(_Odd(), torch.randn(3, 3))
    message = str(caught.value)
    assert len(message) <= 300
    assert "\n" not in message
    first = f"aten.special_bessel_j0.default (node special_bessel_j0) at {HERE}:{line + 1}"
    assert first in message
    assert " and 1 more;" in message
    notes = "\n".join(caught.value.__notes__)
    assert f"{HERE}:{line + 2} `z = torch.linalg.det" in notes
    assert f"{HERE}:{line + 3} `return" in notes
    assert "linalg_det" in notes
    assert "fft" in notes


class _Swish(nn.Module):
    def __init__(self, slope: float | nn.Parameter) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.slope * x)


def test_a_written_activation_becomes_one_operator_unless_it_is_learnt() -> None:
    fixed = from_torch(_Swish(1.5), torch.randn(1, 3))
    assert "silu" in {node.op for node in fixed.nodes}
    _agree(fixed)
    learnt = _Swish(nn.Parameter(torch.tensor(1.5)))
    graph = from_torch(learnt, torch.randn(1, 3))
    assert "sigmoid" in {node.op for node in graph.nodes}
    evaluate(graph, *_points(graph)).sum().backward()
    assert learnt.slope.grad != 0


class _PartlyOdd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.glu(x)
        return torch.special.bessel_j0(y)


def test_calls_that_torch_can_take_apart_are_not_blamed() -> None:
    with pytest.raises(Unsupported, match="^1 operator .*bessel_j0") as caught:
        from_torch(_PartlyOdd(), torch.randn(1, 4))
    assert "glu" not in str(caught.value)


class _Choosing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class _Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(3)


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


class _Integers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.to(torch.int64)


class _Selecting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0].sum()


class _Dropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


class _Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu"):
            return x @ x.T


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (_Choosing(), rf"the values of a tensor at {HERE}:\d+ `if x.sum\(\) > 0:`"),
        (_Random(), "random numbers"),
        (_Counting(), "changes its buffer 'count'"),
        (_Integers(), "converts float32 to int64"),
        (_Selecting(), "aten.gt.Scalar|the shape of its result depends"),
        (_Dropping(), "dropout"),
        (_Half(), "wrap_with_autocast"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_what_is_not_one_real_function_is_refused(
    module: nn.Module, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    module.train()
    with pytest.raises(Unsupported, match=words) as caught:
        from_torch(module, torch.randn(1, 3))
    assert len(str(caught.value)) <= 300
    assert module.training
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (torch.randn(1, 5), "fails on the example.*shapes cannot be multiplied"),
        ((torch.randn(1, 4), torch.randn(1, 4)), "fails on the example.*positional argument"),
        (torch.ones(1, 4, dtype=torch.int64), "only floating-point inputs"),
        ((), "holds no tensor"),
    ],
)
def test_a_wrong_example_is_explained(example: object, words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        from_torch(make("mlp")[0], example)
    assert "\n" not in str(caught.value)


def test_an_output_without_the_input_is_refused() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(2)

    with pytest.raises(BadInput, match="does not depend"):
        from_torch(Constant(), torch.randn(1, 3))
