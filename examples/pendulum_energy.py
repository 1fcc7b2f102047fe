"""Does a learned pendulum ever gain energy? A nonlinear specification as part of the graph.

A network learns one step of a damped pendulum, state (cos a, sin a, w), from generated data. The
specification ``E(next) - E(now) <= 0`` with ``E = 1 - cos a + w^2 / 2`` is appended to it
(`certify.semantic.with_output`), so it is just another output to bound: over a small ball around
each state of a grid. The map is written to ``pendulum_energy.svg``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import certify
from certify.bounds.evaluate import evaluate

STEP, FRICTION, RADIUS, GRID = 0.2, 0.5, 0.01, 32
COLOURS = {"certified": "#2a7d2a", "unknown": "#d9b44a", "violated": "#c0392b"}


def simulated(state: torch.Tensor) -> torch.Tensor:
    """One step of ``a'' = -sin a - friction a'``, in small symplectic steps."""
    angle, speed = torch.atan2(state[:, 1], state[:, 0]), state[:, 2]
    for _ in range(50):
        speed = speed + STEP / 50 * (-torch.sin(angle) - FRICTION * speed)
        angle = angle + STEP / 50 * speed
    return torch.stack([torch.cos(angle), torch.sin(angle), speed], 1)


def states(angle: torch.Tensor, speed: torch.Tensor) -> torch.Tensor:
    """``(cos a, sin a, w)``."""
    return torch.stack([torch.cos(angle), torch.sin(angle), speed], 1)


def learned(seed: int = 0) -> nn.Module:
    """A network of one step."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(),
                        nn.Linear(32, 3))
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    steps = 4000
    for count in range(steps):
        x = states((torch.rand(256) * 2 - 1) * np.pi, torch.randn(256) * 1.5)
        loss = F.mse_loss(net(x), simulated(x))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - count / steps) + 1e-5
    print(f"mean squared error of a step: {loss.item():.2e}")
    return net.eval()


def main() -> None:
    """Learn, certify, draw."""
    growth = certify.semantic.with_output(
        certify.from_torch(learned(), torch.zeros(1, 3)), "energy-growth",
        linear=[-1.0, 0.0, 0.0], quadratic=[0.0, 0.0, 1.0])
    angles, speeds = torch.linspace(-3, 3, GRID), torch.linspace(-3, 3, GRID)
    a, w = (v.flatten() for v in torch.meshgrid(angles, speeds, indexing="ij"))
    centres = states(a, w)
    region = certify.Linf(centres.unsqueeze(1).double().numpy(), RADIUS)
    most = certify.bound(growth, region, "alpha").upper.flatten().detach().numpy()
    with torch.no_grad():
        near = region.batched((1, 3)).sample(200)
        tried = evaluate(growth, near.reshape(-1, 1, 3)).reshape(len(a), -1).amax(1).numpy()
    if (tried > most).any():
        raise RuntimeError("a sampled state gains more energy than its bound allows")
    verdict = np.where(most <= 0, "certified", np.where(tried > 0, "violated", "unknown"))
    for name in COLOURS:
        print(f"{name:10} {100 * np.mean(verdict == name):5.1f} % of {len(verdict)} states")
    Path("pendulum_energy.svg").write_text(drawn(verdict), encoding="utf-8")
    print("map: pendulum_energy.svg")


def drawn(verdict: np.ndarray) -> str:
    """A square per state: angle to the right, speed upwards."""
    cell, left, top = 12, 60, 40
    size = cell * GRID
    parts = [f'<text x="{left}" y="20" font-weight="bold">energy does not grow</text>']
    for i, name in enumerate(verdict):
        column, row = divmod(i, GRID)
        parts.append(f'<rect x="{left + cell * column}" y="{top + size - cell * (row + 1)}" '
                     f'width="{cell - 1}" height="{cell - 1}" fill="{COLOURS[name]}"/>')
    for i, (name, colour) in enumerate(COLOURS.items()):
        parts.append(f'<rect x="{left + 120 * i}" y="{top + size + 34}" width="12" height="12" '
                     f'fill="{colour}"/><text x="{left + 18 + 120 * i}" '
                     f'y="{top + size + 44}">{name}</text>')
    for share, value in ((0, "-3"), (0.5, "0"), (1, "3")):
        parts.append(f'<text x="{left + size * share}" y="{top + size + 18}" '
                     f'text-anchor="middle">{value}</text><text x="{left - 8}" '
                     f'y="{top + size * (1 - share) + 4}" text-anchor="end">{value}</text>')
    parts.append(f'<text x="{left + size * 0.75}" y="{top + size + 18}">angle</text>'
                 f'<text x="8" y="{top + size * 0.25}">speed</text>')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + size + 30} '
            f'{top + size + 60}" font-family="sans-serif" font-size="13"><rect width="100%" '
            f'height="100%" fill="white"/>{"".join(parts)}</svg>\n')


if __name__ == "__main__":
    main()
