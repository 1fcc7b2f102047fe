"""Two specifications that are not about one label: how wrong may an answer be, and what is a sum?

A network learns scikit-learn's 8x8 digits. *Consistency*: under noise of eps, the digit drawn from
its probabilities is on average at most one away from the true one. *Sum*: the expected sum of two
digits read from two noisy images is at most one away from the true sum. Both are graphs appended to
the network. Shares of images and pairs that are proved, and those that no sample of the noise
broke, are drawn over eps in ``digits_meaning.svg``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import certify
from certify.bounds.evaluate import evaluate
from certify.importers.datasets import Images, load_images
from certify.training import CertifiedLoss, Schedule

RADII = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1)
COUNT, SAMPLES, SLACK = 60, 300, 1.0
COLOURS = {"consistency": "#1b6ca8", "sum": "#c0392b"}


def learned(images: Images, seed: int = 0) -> nn.Module:
    """Trained with interval bounds at 0.08, so that there is something to prove."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    loss = CertifiedLoss(net, method="ibp", eps=0.08, schedule=Schedule(kappa=0.5))
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    x, y = torch.from_numpy(images.x), torch.from_numpy(images.y)
    for _ in range(30):
        for index in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            (loss(x[index], y[index]) + 0.1 * F.cross_entropy(net(x[index]), y[index])).backward()
            optimiser.step()
    return net.eval()


def consistency(network: certify.core.graph.Graph, images: Images, eps: float
                ) -> tuple[float, float]:
    """Shares of images whose expected distance is proved, and was never seen, above SLACK."""
    proved, unbroken = [], []
    for x, label in zip(images.x[:COUNT], images.y[:COUNT], strict=True):
        made = certify.semantic.with_output(network, "distance",
                                            distances=np.abs(np.arange(10.0) - label))
        region = certify.Linf(x[None].astype(np.float64), eps, clip=(0, 1))
        proved.append(float(certify.bound(made, region, "crown").upper.detach()) <= SLACK)
        with torch.no_grad():
            seen = evaluate(made, region.batched(made.input_shapes[0]).sample(SAMPLES)[0])
        unbroken.append(float(seen.max()) <= SLACK)
    return checked(proved, unbroken)


def sums(network: certify.core.graph.Graph, images: Images, eps: float) -> tuple[float, float]:
    """Likewise for pairs of images and the expected sum of their digits."""
    made = certify.semantic.with_output(network, "expected-sum")
    proved, unbroken = [], []
    for i in range(COUNT):
        j = (7 * i + 3) % COUNT
        region = certify.Product([certify.Linf(images.x[k][None].astype(np.float64), eps,
                                               clip=(0, 1)) for k in (i, j)])
        true = int(images.y[i] + images.y[j])
        found = certify.bound(made, region, "crown")
        proved.append(true - SLACK <= float(found.lower.detach())
                      and float(found.upper.detach()) <= true + SLACK)
        with torch.no_grad():
            points = region.batched(made.input_shapes).sample(SAMPLES)
            seen = evaluate(made, *(p[0] for p in points))
        unbroken.append(float((seen - true).abs().max()) <= SLACK)
    return checked(proved, unbroken)


def checked(proved: list[bool], unbroken: list[bool]) -> tuple[float, float]:
    """Both shares in per cent.

    Raises:
        RuntimeError: a sample contradicts a proof.
    """
    if any(p and not u for p, u in zip(proved, unbroken, strict=True)):
        raise RuntimeError("a sample contradicts a proof")
    return 100 * float(np.mean(proved)), 100 * float(np.mean(unbroken))


def main() -> None:
    """Learn, certify, draw."""
    network = certify.from_torch(learned(load_images("digits", "train")), torch.zeros(1, 1, 8, 8))
    images = load_images("digits", "test")
    curves: dict[str, list[tuple[float, float]]] = {"consistency": [], "sum": []}
    print("eps    consistent: proved, unbroken   sum: proved, unbroken")
    for eps in RADII:
        for name, shares in (("consistency", consistency), ("sum", sums)):
            curves[name].append(shares(network, images, eps))
        (a, b), (c, d) = (curves[name][-1] for name in curves)
        print(f"{eps:<6} {a:12.1f} {b:14.1f} {c:16.1f} {d:9.1f}")
    Path("digits_meaning.svg").write_text(drawn(curves), encoding="utf-8")
    print("picture: digits_meaning.svg")


def drawn(curves: dict[str, list[tuple[float, float]]]) -> str:
    """Solid: proved; dashed: no sample broke it."""
    left, top, width, height = 60, 30, 420, 260

    def place(eps: float, share: float) -> str:
        return f"{left + width * eps / RADII[-1]:.1f},{top + height * (1 - share / 100):.1f}"

    parts = [f'<path d="M{left} {top}v{height}h{width}" fill="none" stroke="black"/>']
    for row, (name, shares) in enumerate(curves.items()):
        for side, dash in ((0, ""), (1, ' stroke-dasharray="5 4"')):
            points = " ".join(place(e, s[side]) for e, s in zip(RADII, shares, strict=True))
            parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" '
                         f'stroke-width="2"{dash}/>')
        parts.append(f'<text x="{left + width + 12}" y="{top + 20 + 20 * row}" '
                     f'fill="{COLOURS[name]}">{name}</text>')
    for share in (0, 50, 100):
        parts.append(f'<text x="{left - 8}" y="{top + height * (1 - share / 100) + 4:.0f}" '
                     f'text-anchor="end">{share} %</text>')
    for eps in (0, RADII[-1] / 2, RADII[-1]):
        parts.append(f'<text x="{left + width * eps / RADII[-1]:.0f}" y="{top + height + 18}" '
                     f'text-anchor="middle">{eps:g}</text>')
    parts.append(f'<text x="{left}" y="{top + height + 40}" fill="#555">eps; solid: proved, '
                 f'dashed: not broken by {SAMPLES} samples; {COUNT} images</text>')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 120} '
            f'{top + height + 50}" font-family="sans-serif" font-size="13"><rect width="100%" '
            f'height="100%" fill="white"/>{"".join(parts)}</svg>\n')


if __name__ == "__main__":
    main()
