"""Certified training losses: bounds, orderings, gradients, schedules, batch norm, what is
refused."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from certify.core.errors import BadInput
from certify.training import (
    Ascent,
    CertifiedLoss,
    Ramp,
    Schedule,
    TrainingStopped,
    box_around,
    ibp_initialise,
    l1_norm,
    network,
    precise_batch_norm,
)
from certify.training.architectures import ARCHITECTURES, ResidualBlock
from certify.training.bounder import Bounder, analyse, margins_of, robust_cross_entropy
from certify.training.methods import METHODS

EPS = 0.05
BOUNDS = sorted(name for name, m in METHODS.items() if m.bound)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 12), nn.ReLU(),
                         nn.Linear(12, 4)).double()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.block = ResidualBlock(1, 2, 1)
        self.last = nn.Linear(72, 4)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.block(x).flatten(1))


class Attention(nn.Module):
    """A transformer layer on rows of pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Linear(6, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(48, 4)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x.squeeze(1))
        h = h + self.attend(h, h, h, need_weights=False)[0]
        return self.last(torch.relu(h).flatten(1))


def batch(count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(count, 1, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.arange(count) % 4


def worst_sampled(net: nn.Module, eps: float) -> torch.Tensor:
    """The largest cross-entropy among many points of each box, by sampling and ascent."""
    x, y = batch()
    low, high = box_around(x, eps, (0.0, 1.0))
    worst = torch.full((len(x),), -torch.inf, dtype=x.dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(200):
            u = torch.rand(x.shape, generator=generator, dtype=x.dtype).round()
            worst = worst.maximum(F.cross_entropy(net(low + u * (high - low)), y, reduction="none"))
    return worst


@pytest.mark.parametrize("make", [small, Residual, Attention])
@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_are_above_whatever_is_found(name: str, make: type) -> None:
    net = make().eval()
    loss = CertifiedLoss(net, name, EPS, schedule=Schedule(beta=1.0))
    loss(*batch())
    assert loss.parts["robust"] >= float(worst_sampled(net, EPS).mean()) - 1e-9
    assert loss.parts["loss"] == loss.parts["robust"]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_trains_the_users_own_parameters(name: str) -> None:
    net = small()
    names = list(net.state_dict())
    loss = CertifiedLoss(net, name, EPS, schedule=Schedule(kappa=0.5, beta=0.5), regularise=0.1)
    loss(*batch()).backward()
    first = loss.parts["loss"]
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(15):
        optimiser.zero_grad()
        value = loss(*batch(), step=0)
        value.backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert loss.parts["loss"] < first and loss.parts["loss"] == float(value.detach())
    assert list(net.state_dict()) == names
    assert set(loss.parts) == {"loss", "clean", "robust", "regulariser", "eps"}


@pytest.mark.parametrize("name", ["ibp", "crown-ibp", "crown"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    net = small()
    loss = CertifiedLoss(net, name, EPS, schedule=Schedule(beta=0.7))
    loss(*batch(), step=1).backward()
    weight = net[3].weight
    for place in ((0, 0), (5, 30), (11, 47)):
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight[place] += step
            ends.append(float(loss(*batch(), step=1).detach()))
            with torch.no_grad():
                weight[place] -= step
        slope = (ends[0] - ends[1]) / 2e-6
        assert float(weight.grad[place]) == pytest.approx(slope, rel=1e-3, abs=1e-7)


def test_expressive_losses_lie_where_they_are_said_to() -> None:
    """CC <= MTL and Exp <= MTL, all between the attack and the bound (De Palma et al. 2024)."""
    net = small()
    value = {}
    for name in ("pgd", "cc-ibp", "mtl-ibp", "exp-ibp", "ibp", "sabr"):
        options = {"attack": Ascent(4, 0.7)} if name != "ibp" else {}
        loss = CertifiedLoss(net, name, EPS, **options)
        loss(*batch(), step=3)
        value[name] = loss.parts["robust"]
    assert value["cc-ibp"] <= value["mtl-ibp"] and value["exp-ibp"] <= value["mtl-ibp"]
    for name in ("cc-ibp", "mtl-ibp", "exp-ibp", "sabr"):
        assert value["pgd"] - 1e-9 <= value[name] <= value["ibp"] + 1e-9


def test_the_coefficient_runs_from_the_attack_to_the_bound() -> None:
    net, how = small(), Ascent(4, 0.7)

    def robust(name: str, **options: object) -> float:
        loss = CertifiedLoss(net, name, EPS, attack=how, **options)
        loss(*batch(), step=3)
        return loss.parts["robust"]

    for name in ("cc-ibp", "mtl-ibp", "exp-ibp"):
        assert robust(name, coefficient=0.0) == pytest.approx(robust("pgd"))
        assert robust(name, coefficient=1.0) == pytest.approx(robust("ibp"))
    assert robust("sabr", small_box=1.0) == pytest.approx(robust("ibp"))
    assert robust("sabr", small_box=0.0) == pytest.approx(robust("pgd"), rel=1e-6)
    assert robust("sabr", shrink=0.8) < robust("sabr")


def test_fusion_bounds_the_same_loss() -> None:
    """The fused value is an upper bound too, near that of single margins."""
    net, (x, y) = small(), batch()
    program = Bounder(net).program(x, {})
    low, high = (t.unsqueeze(1) for t in box_around(x, EPS, (0.0, 1.0)))
    from certify.core.region import Box

    found = analyse(program, Box(low, high).batched(program.shape(program.inputs[0])), y)
    apart = robust_cross_entropy(found.linear())
    for beta in (0.0, 0.5, 1.0):
        fused = found.fused(beta)
        assert (fused >= worst_sampled(net, EPS) - 1e-9).all()
        assert (fused <= robust_cross_entropy(found.interval) + 1e-6).all() or beta == 1.0
    assert (found.fused(1.0) <= 1.5 * apart + 0.5).all()
    assert torch.equal(found.interval, found.interval.minimum(margins_of(net(x), y)))


def test_last_layer_elision_is_tighter() -> None:
    net, (x, y) = small(), batch()
    program = Bounder(net).program(x, {})
    from certify.core.region import Box

    low, high = (t.unsqueeze(1) for t in box_around(x, EPS, (0.0, 1.0)))
    found = analyse(program, Box(low, high).batched(program.shape(program.inputs[0])), y)
    box = found.state.box(program.output)
    lower, upper = box.lower.flatten(1), box.upper.flatten(1)
    plain = lower.gather(1, y[:, None]) - margins_of(-upper, y) - upper.gather(1, y[:, None])
    assert (found.interval >= plain - 1e-9).all() and (found.interval > plain + 1e-3).any()


@pytest.mark.parametrize("smooth", [True, False])
def test_ramps_end_exactly_and_never_fall(smooth: bool) -> None:
    ramp = Ramp(10, 50, smooth)
    values = [ramp.at(step) for step in range(61)]
    assert values[:11] == [0.0] * 11 and values[50:] == [1.0] * 11
    assert all(a < b for a, b in zip(values[10:50], values[11:51], strict=True))
    assert (values[15] < 0.02) == smooth
    schedule = Schedule(ramp, kappa=0.2, beta=0.1)
    assert (schedule.kappa_at(0), schedule.kappa_at(50)) == (1.0, pytest.approx(0.2))
    assert (schedule.beta_at(0), schedule.beta_at(50)) == (1.0, pytest.approx(0.1))
    assert Ramp().at(0) == 1.0


def test_radius_zero_is_clean_training() -> None:
    net, (x, y) = small(), batch()
    loss = CertifiedLoss(net, "ibp", EPS, schedule=Schedule(Ramp(3, 9)))
    clean = float(F.cross_entropy(net(x), y).detach())
    assert float(loss(x, y, 0).detach()) == pytest.approx(clean)
    assert loss.parts["eps"] == 0
    loss(x, y, 9)
    assert loss.parts["eps"] == EPS and "clean" not in loss.parts


def test_batch_norm_uses_clean_statistics_and_moves_once() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(),
                        nn.Linear(8, 4)).double().train()
    twin, (x, y) = copy.deepcopy(net), batch()
    for name in ("ibp", "mtl-ibp", "sabr"):
        loss = CertifiedLoss(net, name, 1e-9, clip=None)
        value = loss(x, y)
        assert float(value.detach()) == pytest.approx(float(F.cross_entropy(twin(x), y).detach()))
        assert torch.allclose(net[2].running_mean, twin[2].running_mean)
        assert net[2].num_batches_tracked == twin[2].num_batches_tracked and net[2].training
    value.backward()
    net.eval()
    frozen = net[2].running_mean.clone()
    CertifiedLoss(net, "ibp", EPS)(x, y)
    assert torch.equal(net[2].running_mean, frozen)


def test_precise_batch_norm_is_the_average_over_the_data() -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36)).double().train()
    x, _ = batch(20)
    precise_batch_norm(net, x.split(5))
    assert torch.allclose(net[1].running_mean, x.flatten(1).mean(0))
    assert net[1].momentum == 0.1 and net[1].training


@pytest.mark.parametrize("norm", ["2", "1"])
def test_other_norms_are_bounds_too(norm: str) -> None:
    net = small()
    values = {}
    for name in ("ibp", "crown-ibp"):
        loss = CertifiedLoss(net, name, 0.2, norm=norm, clip=None, schedule=Schedule(beta=1.0))
        loss(*batch()).backward()
        values[name] = loss.parts["robust"]
    assert float(F.cross_entropy(net(batch()[0]), batch()[1]).detach()) <= values["crown-ibp"]
    assert values["crown-ibp"] < values["ibp"]
    with pytest.raises(BadInput, match="norm inf"):
        CertifiedLoss(net, "sabr", 0.2, norm=norm)


def test_normalised_inputs_keep_eps_and_range_in_pixels() -> None:
    pixels, y = batch()
    mean, std = [0.3], [0.25]
    net = small()

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net((x - 0.3) / 0.25)

    outside = CertifiedLoss(net, "ibp", EPS, mean=mean, std=std)
    inside = CertifiedLoss(Normalised(), "ibp", EPS)
    outside((pixels - 0.3) / 0.25, y)
    inside(pixels, y)
    assert outside.parts["robust"] == pytest.approx(inside.parts["robust"], rel=1e-9)


def test_regularisers_fade_and_l1_counts_weights() -> None:
    net = small()
    loss = CertifiedLoss(net, "ibp", EPS, schedule=Schedule(Ramp(0, 10)), regularise=0.5)
    seen = []
    for step in (0, 5, 10):
        loss(*batch(), step=step)
        seen.append(loss.parts["regulariser"])
    assert seen[0] > seen[1] > seen[2] == 0
    assert float(l1_norm(net).detach()) == pytest.approx(
        sum(float(m.weight.abs().sum().detach()) for m in net if hasattr(m, "weight")))


def test_ibp_initialisation_keeps_boxes_their_size() -> None:
    torch.manual_seed(0)
    hidden = [part for _ in range(6) for part in (nn.Linear(36, 36), nn.ReLU())]
    wide = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(36, 4)).double()
    before = CertifiedLoss(wide, "ibp", EPS)
    before(*batch())
    last = wide[-1].weight.clone()
    ibp_initialise(wide, torch.Generator().manual_seed(0))
    after = CertifiedLoss(wide, "ibp", EPS)
    after(*batch())
    assert torch.equal(wide[-1].weight, last)
    assert after.parts["robust"] < before.parts["robust"]


def test_gradients_accumulate_and_steps_count() -> None:
    net = small()
    loss = CertifiedLoss(net, "ibp", EPS, schedule=Schedule(Ramp(0, 4)))
    x, y = batch(4)
    (loss(x, y, 4) / 1).backward()
    whole = net[0].weight.grad.clone()
    net.zero_grad()
    for part in (slice(0, 2), slice(2, 4)):
        (loss(x[part], y[part], 4) / 2).backward()
    assert torch.allclose(net[0].weight.grad, whole)
    fresh = CertifiedLoss(net, "ibp", EPS, schedule=Schedule(Ramp(0, 4)))
    for _ in range(3):
        fresh(x, y)
    assert fresh.step == 3 and 0 < fresh.parts["eps"] < EPS


def test_autocast_does_not_reach_the_bounds() -> None:
    net = small().float()
    x, y = batch()
    loss = CertifiedLoss(net, "ibp", EPS)
    plain = float(loss(x.float(), y).detach())
    with torch.autocast("cpu", torch.bfloat16):
        assert float(loss(x.float(), y).detach()) == plain


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_architectures_take_their_images(name: str) -> None:
    net = network(name, (1, 28, 28), 10).eval()
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    if name == "dm-small":
        assert sum(p.numel() for p in net.parameters()) == 272 + 8_224 + 320_100 + 1_010


@pytest.mark.parametrize(("message", "make"), [
    ("unknown training method", lambda n: CertifiedLoss(n, "magic", EPS)),
    ("eps must be", lambda n: CertifiedLoss(n, "ibp", -1.0)),
    ("norm is", lambda n: CertifiedLoss(n, "ibp", EPS, norm="3")),
    ("no bound", lambda n: CertifiedLoss(n, "ibp", EPS, shrink=0.8)),
    ("coefficient must", lambda n: CertifiedLoss(n, "mtl-ibp", EPS, coefficient=2.0)),
    ("labels from 0 to 4", lambda n: CertifiedLoss(n, "ibp", EPS)(batch()[0], torch.arange(5))),
    ("labels from -1", lambda n: CertifiedLoss(n, "ibp", EPS)(batch()[0], torch.arange(5) - 1)),
    ("labels are int64", lambda n: CertifiedLoss(n, "ibp", EPS)(batch()[0], torch.zeros(5))),
    ("no architecture", lambda n: network("alexnet", (1, 28, 28))),
    ("too small", lambda n: network("dm-small", (1, 4, 4))),
    ("both mean and std", lambda n: CertifiedLoss(n, "ibp", EPS, std=[0.2])(*batch())),
])
def test_what_makes_no_sense_is_refused(message: str, make: object) -> None:
    with pytest.raises(BadInput, match=message):
        make(small())  # type: ignore[operator]
    with pytest.raises(TypeError):
        CertifiedLoss(small(), "ibp", EPS, epsilon=3)


def test_eps_in_steps_of_255_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="8/255 = 0.03137"):
        CertifiedLoss(small(), "ibp", 8)


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_layer() -> None:
    net = small()
    with torch.no_grad():
        net[3].weight[0, 0] = float("nan")
    with pytest.raises(TrainingStopped, match=r"step 7 .*3\.weight"):
        CertifiedLoss(net, "ibp", EPS)(*batch(), step=7)


def test_a_model_whose_graph_changed_is_refused() -> None:
    net = small()
    loss = CertifiedLoss(net, "ibp", EPS)
    loss(*batch())
    net[3].weight = nn.Parameter(torch.zeros(12, 48, dtype=torch.float64))
    with pytest.raises(BadInput, match="import again"):
        loss(*batch())


@pytest.mark.slow
def test_memory_of_fusion_does_not_grow_with_the_classes() -> None:
    """10 classes against 1000, in processes of their own."""
    script = (
        "import resource, sys, torch\n"
        "from torch import nn\n"
        "from certify.training import CertifiedLoss, Schedule\n"
        "k = int(sys.argv[1]); torch.manual_seed(0)\n"
        "net = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, k))\n"
        "loss = CertifiedLoss(net, 'crown-ibp', 0.01, schedule=Schedule(beta=1.0))\n"
        "loss(torch.rand(64, 1, 8, 8), torch.arange(64) % k).backward()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n")
    peaks = [int(subprocess.run([sys.executable, "-c", script, k], check=True, text=True,
                                capture_output=True).stdout) for k in ("10", "1000")]
    assert peaks[1] < 1.15 * peaks[0]


@pytest.mark.slow
def test_two_processes_find_the_gradients_of_one(tmp_path: Path) -> None:
    """DDP wraps the loss module; each process sees half of the batch."""
    script = tmp_path / "ddp.py"
    script.write_text(
        "import os, torch, torch.distributed as dist\n"
        "from torch import nn\n"
        "from torch.nn.parallel import DistributedDataParallel as DDP\n"
        "from certify.training import CertifiedLoss\n"
        "dist.init_process_group('gloo')\n"
        "torch.manual_seed(0)\n"
        "net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).double()\n"
        "x, y = torch.rand(8, 1, 4, 4, dtype=torch.float64), torch.arange(8) % 3\n"
        "loss = CertifiedLoss(net, 'ibp', 0.05)\n"
        "loss(x, y).backward()\n"
        "whole = [p.grad.clone() for p in net.parameters()]\n"
        "net.zero_grad()\n"
        "half = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)\n"
        "wrapped = DDP(loss)\n"
        "wrapped(x[half], y[half]).backward()\n"
        "good = all(torch.allclose(p.grad, g) for p, g in zip(net.parameters(), whole))\n"
        "dist.destroy_process_group()\n"
        "os._exit(0 if good else 1)\n")  # gloo's threads sometimes abort an orderly exit
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
               "2", str(script)]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, capture_output=True, text=True, timeout=300,
                          env={**__import__("os").environ, "PYTHONPATH": str(root),
                               "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
