"""ATen translations of affine operators, as ``torch.export`` emits them, against torch itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certify import ops
from certify.bounds.evaluate import evaluate
from certify.core.errors import BadInput, LimitExceeded, Unsupported
from certify.importers.torch_graph import from_torch
from certify.ops.builder import Builder, Call, Value

REGISTRY = ops.load()


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def statistics(norm: nn.Module) -> nn.Module:
    """Random parameters and stored statistics, so that nothing is 0 or 1 by accident."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in (*norm.parameters(), *norm.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.3, 2.0, generator=generator)
    return norm


def weight(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


X4, X3, X2 = (1, 4, 6, 5), (2, 3, 4), (3, 4)
W4, W5, W31, W45, W54, W214, W244 = (
    weight(*shape) for shape in ((4,), (5,), (3, 1), (4, 5), (5, 4), (2, 1, 4), (2, 4, 4))
)
LAYERS: list[tuple[tuple[int, ...], nn.Module]] = [
    (X4, nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)),
    (X4, nn.Conv2d(4, 3, 2, padding="same")),
    (X4, nn.Conv2d(4, 3, 3, padding="valid", bias=False)),
    ((4, 6, 5), nn.Conv2d(4, 3, 3)),
    (X3, nn.Conv1d(3, 4, 2, padding=1)),
    ((1, 2, 3, 4, 3), nn.Conv3d(2, 2, 2, stride=(1, 2, 1))),
    *(
        (X4, nn.Conv2d(4, 3, 3, padding=1, padding_mode=m))
        for m in ("reflect", "replicate", "circular")
    ),
    (X4, nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)),
    (X4, nn.ConvTranspose2d(4, 2, 3, dilation=2, bias=False)),
    (X3, nn.ConvTranspose1d(3, 2, 3, stride=3, output_padding=2)),
    ((1, 2, 2, 3, 2), nn.ConvTranspose3d(2, 2, 2, stride=2)),
    (X4, statistics(nn.BatchNorm2d(4))),
    (X2, statistics(nn.BatchNorm1d(4))),
    (X3, nn.BatchNorm1d(3, affine=False)),
    (X4, statistics(nn.LayerNorm((6, 5)))),
    (X3, nn.RMSNorm(4)),
    (X4, statistics(nn.GroupNorm(2, 4))),
    (X4, nn.InstanceNorm2d(4)),
    (X4, statistics(nn.InstanceNorm2d(4, affine=True, track_running_stats=True))),
    (X4, nn.AvgPool2d(2)),
    (X4, nn.AvgPool2d((3, 2), 2, (1, 0), ceil_mode=True)),
    (X4, nn.AvgPool2d(3, 2, 1, count_include_pad=False, ceil_mode=True)),
    (X4, nn.AvgPool2d(2, divisor_override=3)),
    (X3, nn.AvgPool1d(2)),
    ((1, 2, 4, 4, 4), nn.AvgPool3d(2)),
    (X4, nn.AdaptiveAvgPool2d(1)),
    (X4, nn.AdaptiveAvgPool2d((4, 3))),
    (X4, nn.AdaptiveAvgPool2d((None, 2))),
    (X3, nn.AdaptiveAvgPool1d(2)),
    (X4, nn.Dropout(0.5)),
    (X4, nn.Flatten()),
    (X4, nn.PixelShuffle(2)),
    ((1, 2, 4, 6), nn.PixelUnshuffle(2)),
    (X4, nn.ChannelShuffle(2)),
    (X4, nn.Unfold((2, 3), 2, 1, 2)),
    (X4, nn.Unflatten(1, (2, -1))),
    (X4, nn.ReflectionPad2d((1, 2, 0, 1))),
    (X3, nn.ReplicationPad1d(2)),
    (X4, nn.CircularPad2d(1)),
    (X4, nn.ConstantPad2d((1, 0, 2, 1), 1.5)),
    *((X4, nn.Upsample(scale_factor=s)) for s in (2, 1.7, (2.0, 0.6))),
    (X4, nn.Upsample(size=(9, 3))),
    (X4, nn.Upsample(scale_factor=1.7, mode="bilinear")),
    (X3, nn.Upsample(size=9, mode="linear")),
    (X4, nn.Upsample(size=(9, 3), mode="bilinear", align_corners=True)),
    (X4, nn.Upsample(size=(9, 2), mode="nearest-exact")),
    ((1, 1, 2, 3, 2), nn.Upsample(scale_factor=2, mode="trilinear")),
]

# Scales that round to the size there was, or to its double, where torch computes no coordinates.
LAYERS += [
    ((1, 2, size, 3), nn.Upsample(scale_factor=scale, mode=mode))
    for size, scale in ((4, (1.1, 2.3)), (3, (2.3, 1.25)), (5, (0.6, 1.0)))
    for mode in ("nearest", "nearest-exact", "bilinear")
]
FUNCTIONS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Any]]] = {
    "add alpha": (X2, lambda x: torch.add(x, x.flip(0), alpha=3)),
    "add number": (X2, lambda x: 1 + x),
    "add in place": (X2, lambda x: (2 * x).add_(1)),
    "sub": (X2, lambda x: x - W4),
    "rsub": (X2, lambda x: 2 - x),
    "rsub alpha": (X2, lambda x: torch.rsub(x, W4, alpha=0.5)),
    "neg": (X2, lambda x: -x),
    "addmm": (X2, lambda x: torch.addmm(W5, x, W45, beta=0.5, alpha=2)),
    "baddbmm": (X3, lambda x: torch.baddbmm(x, x, W244)),
    "view": (X3, lambda x: x.view(4, -1)),
    "reshape": (X3, lambda x: x.permute(2, 0, 1).reshape(-1)),
    "flatten": (X4, lambda x: x.flatten(1, -2)),
    "squeeze": (X4, lambda x: x.squeeze().unsqueeze(1).squeeze(-1)),
    "squeeze dims": (X4, lambda x: x.squeeze((0, 1))),
    "ravel": (X3, torch.ravel),
    "transposes": (X3, lambda x: x.transpose(0, -1).mT.movedim(0, 2).swapaxes(1, 2)),
    "t": (X2, lambda x: x.t()),
    "moved dims": (X4, lambda x: x.movedim((1, 2), (-1, 0))),
    "T": (X2, lambda x: x.T),
    "cat": (X3, lambda x: torch.cat([x, W214, x], 1)),
    "stack": (X3, lambda x: torch.stack([x, -x], -2)),
    "hstack": (X3, lambda x: torch.hstack([x, x])),
    "vstack": ((4,), lambda x: torch.vstack([x, x])),
    "slices": (X4, lambda x: x[:, 1:3, ::2, -1]),
    "ends": (X4, lambda x: x[..., -3:-1]),
    "narrow": (X4, lambda x: x.narrow(2, -3, 2)),
    "split": (X4, lambda x: torch.cat(torch.split(x, 3, 1)[::-1], 1)),
    "split sizes": (X4, lambda x: torch.split(x, [1, 2, 1], 1)[1]),
    "chunk": (X4, lambda x: x.chunk(3, 2)[2]),
    "unbind": (X4, lambda x: x.unbind(1)[2]),
    "tensor_split": (X4, lambda x: x.tensor_split((1, 3), 1)[1]),
    "index": (X4, lambda x: x[:, [2, 0]]),
    "two indices": (X4, lambda x: x[:, :, [0, 2], [1, -1]]),
    "split indices": (X4, lambda x: x[[0, 0], :, [[1], [2]]]),
    "index_select": (X4, lambda x: x.index_select(1, torch.tensor([3, 0]))),
    "gather": (X2, lambda x: x.gather(1, torch.tensor([[0, 3], [1, 1]]))),
    "take": (X2, lambda x: x.take(torch.tensor([[5], [0]]))),
    "take_along": (X2, lambda x: x.take_along_dim(torch.tensor([[0], [1], [3]]), 1)),
    "embedding": (X2, lambda x: F.embedding(torch.tensor([[0, 2], [1, 1]]), x)),
    "flip": (X3, lambda x: x.flip(0, -1)),
    "roll": (X3, lambda x: x.roll((1, -2), (0, 2))),
    "roll flat": (X3, lambda x: x.roll(5)),
    "rot90": (X3, lambda x: x.rot90(1, (1, 2))),
    "diagonal": (X3, lambda x: x.diagonal(1, 2, 1)),
    "unfold": (X3, lambda x: x.unfold(2, 2, 2)),
    "pad": (X4, lambda x: F.pad(x, (1, -1, 0, 2), value=-1.0)),
    "expand": (X3, lambda x: x[:, :1].expand(2, 3, -1)),
    "broadcast": (X2, lambda x: torch.broadcast_to(x, (2, 3, 4))),
    "repeat": (X2, lambda x: x.repeat(2, 1, 3)),
    "tile": (X3, lambda x: x.tile(2, 1)),
    "interleave": (X3, lambda x: x.repeat_interleave(2, 1)),
    "where": (X2, lambda x: torch.where(W31 > 0, x, 0.5)),
    "masked_fill": (X2, lambda x: x.masked_fill(W4 > 0, -1.0)),
    "tril": (X3, lambda x: x.tril(-1)),
    "triu": (X3, lambda x: x.triu(1)),
    "cumsum": (X3, lambda x: x.cumsum(1)),
    "sums": (X3, lambda x: x.sum(1, keepdim=True).sum((0, -1))),
    "sum": (X3, lambda x: x.sum()),
    "means": (X4, lambda x: x.mean((2, 3)).mean(0)),
    "mean": (X3, lambda x: x.mean()),
    "einsum": (X3, lambda x: torch.einsum("abc,dc->bd", x, W54)),
    "einsum of two": (X3, lambda x: torch.einsum("...ij,...kj->...ik", x, x)),
    "var": (X3, lambda x: x.var(1)),
    "std": (X3, lambda x: x.std((0, 2), correction=0, keepdim=True)),
    "like": (
        X2,
        lambda x: x + torch.zeros_like(x) + 2 * torch.ones_like(x) + x.new_full((4,), 0.5),
    ),
    "casts": (X2, lambda x: x.to(torch.float64).float().clone().contiguous().detach()),
    "native norms": (
        X4,
        lambda x: (
            torch.native_layer_norm(x, (5,), W5, None, 1e-3)[0]
            + torch.native_group_norm(x, W4, None, 1, 4, 30, 2, 1e-3)[0]
        ),
    ),
}
CASES = [
    *(pytest.param(shape, layer, id=f"{layer}") for shape, layer in LAYERS),
    *(pytest.param(shape, Lambda(f), id=name) for name, (shape, f) in FUNCTIONS.items()),
]


@pytest.mark.parametrize(("shape", "module"), CASES)
def test_as_torch(shape: tuple[int, ...], module: nn.Module) -> None:
    module.eval()
    x = weight(*shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = module(x)
        graph = from_torch(module, x)
    found = evaluate(graph, torch.stack((x, x.flip(0))).double())
    assert graph.output_shape == tuple(wanted.shape)
    torch.testing.assert_close(found[0].float(), wanted, rtol=2e-5, atol=2e-6)


def test_parameters_stay_live() -> None:
    """A convolution and a batch norm keep the module's own tensors."""
    model = nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)).eval()
    graph = from_torch(model, weight(*X4))
    held = {c.data_ptr() for c in graph.constants.values() if isinstance(c, Tensor)}
    own = (
        model[0].weight,
        model[0].bias,
        model[1].weight,
        model[1].running_mean,
        model[1].running_var,
    )
    assert {t.data_ptr() for t in own} <= held


@pytest.mark.parametrize(
    ("module", "shape", "kind", "word"),
    [
        (Lambda(lambda x: F.dropout(x, 0.5, True)), X2, Unsupported, "dropout|random"),
        (
            Lambda(lambda x: F.batch_norm(x, None, None, training=True)),
            X4,
            Unsupported,
            "normalisation",
        ),
        (Lambda(lambda x: torch.where(x > 0, x, 0.0)), X2, Unsupported, "."),
        (Lambda(lambda x: F.conv2d(x, x[:, :, :2, :2])), X4, Unsupported, "filter"),
    ],
)
def test_refusals(module: nn.Module, shape: tuple[int, ...], kind: type, word: str) -> None:
    with pytest.raises(kind, match=word):
        from_torch(module, weight(*shape))


@pytest.mark.parametrize(
    ("kind", "inputs", "wanted"),
    [
        (
            "aten.convolution.default",
            (weight(3, 4, 2, 2), None, [2, 1], [1, 0], [1, 1], False, [0, 0], 1),
            lambda x: F.conv2d(x, weight(3, 4, 2, 2), None, (2, 1), (1, 0)),
        ),
        (
            "aten.convolution.default",
            (weight(4, 2, 2, 2), None, [2], [0], [1], True, [1], 1),
            lambda x: F.conv_transpose2d(x, weight(4, 2, 2, 2), None, 2, 0, 1),
        ),
        (
            "aten._native_batch_norm_legit_no_training.default",
            (None, None, weight(4), weight(4).abs(), 0.1, 1e-3),
            lambda x: F.batch_norm(x, weight(4), weight(4).abs(), eps=1e-3),
        ),
        (
            "aten.upsample_bilinear2d.default",
            ([9, 4], False, None, None),
            lambda x: F.interpolate(x, (9, 4), mode="bilinear"),
        ),
    ],
)
def test_names_after_decomposition(kind: str, inputs: tuple[Any, ...], wanted: Any) -> None:
    b = Builder()
    x = b.input("x", X4)
    values = tuple(b.constant(v) if isinstance(v, Tensor) else v for v in inputs)
    found = REGISTRY.aten[kind][1](b, Call("y", kind, (x, *values), {}))
    graph = b.finish(found if isinstance(found, Value) else found[0])
    point = weight(*X4)
    torch.testing.assert_close(evaluate(graph, point[None])[0], wanted(point), rtol=1e-5, atol=1e-6)


def test_pads_beyond_any_tensor_are_a_limit() -> None:
    b = Builder()
    x, w = b.input("x", X4), b.constant(np.ones((1, 4, 1, 1)))
    call = Call("y", "aten.conv2d.default", (x, w, None, [1], [2**40], [1], 1), {})
    with pytest.raises(LimitExceeded, match="pads"):
        REGISTRY.aten[call.kind][1](b, call)


@pytest.mark.parametrize(
    ("op", "attrs", "shape", "word"),
    [
        ("gather", {"indices": np.array([4]), "axis": -1}, X2, "index"),
        ("slice", {"axes": (-1,), "starts": (0,), "ends": (1,), "steps": (0,)}, X2, "step"),
        ("pad", {"pads": (-3, -2)}, X2, "pads"),
        ("expand", {"shape": (2, 4)}, X2, "broadcast"),
        ("tile", {"repeats": (2,)}, X2, "repeats"),
        ("average_pool", {"kernel": (9, 9)}, X4, "fit"),
        ("reduce_sum", {"axes": (-3,)}, X2, "axes"),
    ],
)
def test_records_refuse_what_does_not_fit(
    op: str, attrs: dict[str, Any], shape: Any, word: str
) -> None:
    b = Builder()
    with pytest.raises(BadInput, match=word):
        b.add(op, b.input("x", shape), **attrs)
