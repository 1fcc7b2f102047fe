"""Nothing counts as a counterexample that the model itself, on that very point, denies."""

from __future__ import annotations

import csv
import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_attack import dense, identity, mlp
from torch import nn

from certify.core.errors import BadInput
from certify.core.graph import Graph
from certify.core.region import L0, L1, L2, Box, Linf, Lp, Product, Region
from certify.core.spec import Row, Spec
from certify.importers.onnx_graph import load_onnx
from certify.importers.torch_graph import from_torch
from certify.importers.vnnlib import read_vnnlib
from certify.ops.builder import Builder
from certify.search.attack import attack
from certify.search.membership import into_case, into_region
from certify.search.replay import confirm, replay
from certify.search.witness import format_assignment, parse_assignment

ANYTHING = Spec.unsafe([[Row({0: 1.0}, 1e6)]], 3)  # every point is unsafe
REGIONS: list[Region] = [
    Box(np.full(5, -0.1), np.full(5, 0.3)),
    Linf(np.full(5, 0.3), 0.1),
    Linf(np.full(5, 0.05), 0.1, (0, 1)),
    L2(np.full(5, 0.25), 0.7),
    L2(np.full(5, 0.3), 0.7, (0.0, 1.0)),
    L1(np.full(5, 0.3), 1.0),
    Lp(np.full(5, 0.3), 0.8, 3.0),
    L0(np.full(5, 0.25), 2, (-1.0, 1.0)),
]


def trap(data: Path, name: str) -> tuple[Graph, object]:
    folder = data / "traps"
    found = sorted(folder.glob(f"{name}_*.onnx"))
    if not found:
        pytest.skip(f"no trap {name} in {folder}")
    return load_onnx(found[0]), read_vnnlib(found[0].with_suffix(".vnnlib"))[0]


@pytest.mark.parametrize("region", REGIONS, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_points_are_moved_into_the_region_without_slack(region: Region, dtype: str) -> None:
    batched, rng = region.batched((5,)), np.random.default_rng(1)
    for _ in range(20):
        near = batched.sample(2, torch.Generator().manual_seed(int(rng.integers(2**31))))[
            0, -1
        ].numpy()
        near = near + (rng.normal(size=5) * 1e-3 if not isinstance(region, L0) else 0)
        kind = np.dtype(dtype)
        point = into_region(region, [(5,)], 0, near.astype(kind), kind)
        if isinstance(region, L0) and point is None:
            continue  # rounding an element at the centre changes it
        assert point is not None and point.dtype == kind
        assert batched.contains(point[None, None].astype(np.float64)).all()
        assert np.abs(point - near).max() < 2e-3 * (1 if dtype != "float16" else 3)


def test_a_ball_is_decided_with_exact_numbers() -> None:
    from fractions import Fraction

    region, rng = L2(np.full(7, 0.1), 0.3), np.random.default_rng(2)
    for _ in range(200):
        direction = rng.normal(size=7)
        edge = (0.1 + 0.3 * direction / np.linalg.norm(direction)).astype(np.float32)
        point = into_region(region, [(7,)], 0, edge, np.dtype(np.float32))
        assert point is not None
        gap = [Fraction(float(v)) - Fraction(0.1) for v in point]
        assert sum(g * g for g in gap) <= Fraction(0.3) ** 2
        assert np.abs(point - edge).max() < 1e-6


def test_a_point_no_number_fits_is_not_confirmed() -> None:
    fixed = Box(np.full(5, 0.1), np.full(5, 0.1))  # 0.1 in double is no float32
    assert confirm(mlp([5, 4, 3]), fixed, ANYTHING, np.full(5, 0.1)) is None
    assert confirm(mlp([5, 4, 3], dtype="float64"), fixed, ANYTHING, np.full(5, 0.1)) is not None


def test_the_output_and_the_input_are_those_of_the_model() -> None:
    graph = identity(3)
    region = Linf(np.array([0.5, -0.5, 0.25]), 0.25)
    found = confirm(
        graph, region, Spec.unsafe([[Row({0: 1.0}, 0.26)]], 3), [0.0, -0.5, 0.5], "float32"
    )
    assert found is not None and found.proved
    assert found.input.dtype == np.float32 and found.input.tolist() == [0.25, -0.5, 0.5]
    assert found.output.tolist() == [0.25, -0.5, 0.5]


def test_what_is_not_unsafe_is_not_confirmed() -> None:
    graph, region = identity(3), Linf(np.zeros(3), 0.5)
    spec = Spec.unsafe(
        [[Row({0: 1.0}, -0.5, strict=True)], [Row({1: 1.0}, -0.25), Row({2: 1.0}, -0.25)]], 3
    )
    assert (
        confirm(graph, region, spec, [-9.0, 0, 0]) is None
    )  # projected to the edge, which is not strict
    assert confirm(graph, region, spec, [0, -0.25, 0]) is None  # one row of two
    assert confirm(graph, region, spec, [0, -0.25, -0.25]) is not None
    assert confirm(graph, region, spec, [math.nan, -0.25, -0.25]) is None


@pytest.mark.parametrize("scale", [3e38, -3e38])
def test_overflow_confirms_nothing(scale: float) -> None:
    builder = Builder()
    x = builder.input("x", (1,))
    y = dense(builder, builder.add("relu", dense(builder, x, [[3e38]])), [[scale]])
    graph = builder.finish(y, {"dtype": "float32"})
    for sign in (1.0, -1.0):
        spec = Spec.unsafe([[Row({0: sign}, 0.0)]], 1)
        assert confirm(graph, Box(np.ones(1), np.ones(1) * 2), spec, [1.5], "float32") is None


def test_rows_over_inputs_are_checked_on_the_moved_point() -> None:
    graph, region = identity(2), Box(np.zeros(2), np.ones(2))
    spec = Spec.unsafe([[Row({0: 1.0}, -1.0, x={1: -1.0})]], 2, 2)  # y0 <= x1 - 1
    found = confirm(graph, region, spec, [-1.0, 2.0])
    assert found is not None and found.flat.tolist() == [0.0, 1.0]
    assert confirm(graph, region, spec, [0.5, 1.0]) is None


def test_examples_of_a_batch_have_their_own_region_and_rows() -> None:
    graph, spec = identity(3), Spec.classify(np.array([0, 1]), 3)
    region = Linf(np.array([[1.0, 0, 0], [0, 1.0, 0]]), np.array([0.5, 0.75]))
    first = confirm(graph, region, spec, [0.5, 0.5, 0.0], example=0)
    assert first is not None and first.example == 0
    assert (
        confirm(graph, region, spec, [0.5, 0.5, 0.0], example=1) is not None
    )  # moved to its own ball
    assert confirm(graph, region, spec, [0.0, 1.0, 0.0], example=1) is None


def test_several_inputs() -> None:
    builder = Builder()
    a, b = builder.input("a", (2,)), builder.input("b", (1, 2))
    joined = builder.add("concat", a, builder.add("reshape", b, shape=(2,)), axis=-1)
    graph = builder.finish(dense(builder, joined, [[1.0, 1, -1, -1]]), {"dtype": "float32"})
    region = Product([Box(np.zeros(2), np.ones(2)), L2(np.zeros((1, 2)), 1.0)])
    found = confirm(graph, region, Spec.unsafe([[Row({0: 1.0}, -1.3)]], 1), [0.0, 0, 0.8, 0.8])
    assert found is not None
    assert [v.shape for v in found.inputs] == [(2,), (1, 2)]
    assert (found.inputs[1].astype(float) ** 2).sum() <= 1.0


class Noisy(nn.Module):
    """Dropout and batch normalisation: another function in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.9))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_torch_model_is_run_itself_and_left_as_it_was(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = Noisy().to(dtype).train()
    module.body[1].eval()
    graph = from_torch(module, torch.zeros(1, 4, dtype=dtype))
    flags = [m.training for m in module.modules()]
    before = {k: v.clone() for k, v in module.state_dict().items()}
    x = np.array([0.5, -0.25, 1.0, 2.0], str(dtype).removeprefix("torch."))
    answer = replay(graph, x)
    module.eval()
    with torch.no_grad():
        assert np.array_equal(answer, module(torch.from_numpy(x)[None])[0].numpy())
    module.train()
    module.body[1].eval()
    assert [m.training for m in module.modules()] == flags
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    spec = Spec.unsafe([[Row({0: 1.0}, float(answer[0]) + 0.01)]], 3)
    found = confirm(graph, Linf(x[None].astype(float), 0.1), spec, x)
    assert found is not None and found.proved and found.input.dtype == x.dtype


def test_wrong_sizes_and_inexact_points_are_refused() -> None:
    with pytest.raises(BadInput, match="3 values"):
        replay(identity(2), np.zeros(3))
    with pytest.raises(BadInput, match="not exact"):
        replay(identity(2), np.full(2, 0.1, np.float64))


# -- traps: networks on which rounding changes the answer ------------------------------------


def test_a_witness_of_rounding_alone_is_refused_for_real_arithmetic(data: Path) -> None:
    graph, case = trap(data, "t04")
    x = np.array([1.5])
    assert replay(graph, x.astype(np.float32))[0] <= 0  # the runtime does answer so
    assert confirm(graph, case, case.spec, x, "real") is None
    found = confirm(graph, case, case.spec, x, "float32")
    assert found is not None and not found.proved


def test_a_single_touching_point_is_found_and_confirmed(data: Path) -> None:
    graph, case = trap(data, "t14")
    found = [
        c
        for candidate in attack(graph, case.box, case.spec)
        if (c := confirm(graph, case, case.spec, candidate.x))
    ]
    assert found and found[0].output[0] == 0
    beside = np.nextafter(found[0].flat, np.float32(2))
    assert confirm(graph, case, case.spec, beside) is None


def test_nonfinite_answers_are_no_witness(data: Path) -> None:
    graph, case = trap(data, "t07")
    for x in (case.inner_lower, case.inner_upper, 0.5 * (case.inner_lower + case.inner_upper)):
        assert confirm(graph, case, case.spec, x) is None


@pytest.mark.parametrize("name", ["t10", "t13", "t15"])
def test_margins_below_every_tolerance_are_found(data: Path, name: str) -> None:
    graph, case = trap(data, name)
    found = [confirm(graph, case, case.spec, c.x) for c in attack(graph, case.box, case.spec)]
    assert any(f is not None and f.proved for f in found)


def test_a_margin_that_is_only_just_positive_is_no_violation(data: Path) -> None:
    graph, case = trap(data, "t11")
    assert not any(confirm(graph, case, case.spec, c.x) for c in attack(graph, case.box, case.spec))


def test_decimal_ends_are_kept_exactly(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.vnnlib"
    lines = [
        "(declare-const X_0 Real)",
        "(declare-const X_1 Real)",
        "(declare-const Y_0 Real)",
        "(assert (>= X_0 0.1))",
        "(assert (<= X_0 0.3))",
        "(assert (>= X_1 0.7))",
        "(assert (<= X_1 0.7))",
        "(assert (<= Y_0 0.0))",
    ]
    path.write_text("\n".join(lines))
    case = read_vnnlib(path)[0]
    point = into_case(case, np.array([0.0, 5.0]), np.dtype(np.float32))
    assert point.dtype == np.float32
    assert float(point[0]) >= 0.1 and float(np.nextafter(point[0], np.float32(0))) < 0.1
    assert point[1] == np.float32(0.7)  # nothing else can be fed in for a fixed decimal


# -- witnesses as text -------------------------------------------------------------------------


def test_assignments_read_back_exactly() -> None:
    rng = np.random.default_rng(0)
    x = (
        np.concatenate([rng.normal(size=9), [0.1, 1e-45, 3.4e38, -0.0]])
        .astype(np.float32)
        .reshape(1, 13)
    )
    y = rng.normal(size=3)
    text = format_assignment(x, y)
    assert text.startswith("((X_0 ") and text.endswith("))") and "\n(Y_0 " in text
    back_x, back_y = parse_assignment(text)
    assert back_x.astype(np.float32).tobytes() == x.tobytes() and back_y.tobytes() == y.tobytes()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "()x",
        "((X_0 0.5)",
        "((X_0 nan))",
        "((X_0 1e999))",
        "((X_1 1.0))",
        "((X_0 1)(X_0 1))",
        "((Z_0 1))",
        "(X_0 1)",
        "((X_0 1) junk)",
        "((X_0 1-2))",
        "unsat ((X_0 1))",
        "((X_0 " + "1" * 100 + "))",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_assignment(text)


def test_published_counterexamples_are_read_and_confirmed(data: Path) -> None:
    """The competition's own witnesses, where they are exactly inside the box."""
    folder = data / "vnncomp_public"
    if not (folder / "quick.csv").is_file():
        pytest.skip(f"no {folder / 'quick.csv'}")
    confirmed = 0
    with open(folder / "quick.csv", newline="") as table:
        rows = [
            r
            for r in csv.DictReader(table)
            if r["family"] in ("acasxu", "safenlp", "test", "mnist_fc")
        ]
    for row in (r for r in rows if r["expected"] == "sat"):
        network, prop = (_plain_or_gz(folder / row[k]) for k in ("onnx", "vnnlib"))
        graph, cases = load_onnx(network), read_vnnlib(prop)
        path = folder / row["counterexample"]
        text = (
            gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        ).decode()
        x, _ = parse_assignment(text)  # some tools leave out outputs
        assert len(x) == cases.num_inputs
        answers = [confirm(graph, case, case.spec, x, "float32") for case in cases]
        confirmed += any(a is not None for a in answers)
    assert confirmed >= 2


def _plain_or_gz(path: Path) -> Path:
    return path if path.exists() else path.with_name(path.name + ".gz")
