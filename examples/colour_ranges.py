"""How far may the hue of a picture turn? Three ways to ask, on a small colour network.

A network learns scikit-learn's digits in random colours. For each test image the range of hues
around its own is certified

* *explicitly*: the hue as a parameter, in pieces of two degrees (`certify.evaluate_transform`);
* *implicitly*: pieces of sixty degrees, one relaxation for each, concretised on the union of the
  ten boxes of pixels that its tenths span (`certify.UnionOfBoxes`; Mohapatra et al. 2020);
* *naively*: the same pieces as one box of pixels each, which forgets that they turn together.

A picture of the explicit ranges is written to ``colour_ranges.svg``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import certify
from certify.bounds.evaluate import evaluate
from certify.evaluation.transformed.block import record
from certify.importers.datasets import Images, load_images
from certify.report.transformed import as_svg, as_text
from certify.semantic.transforms import image_graph

REACH, PIECE, TENTHS, COUNT = 180.0, 60.0, 10, 16


def coloured(images: Images, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits in one random colour each, on a faint background of another: ``(N, 3, 8, 8)``."""
    rng = np.random.default_rng(seed)
    ink, paper = (rng.uniform(low, high, (len(images), 3, 1, 1)) for low, high in
                  ((0.4, 1.0), (0.0, 0.25)))
    strength = images.x.astype(np.float64)
    return np.clip(strength * ink + (1 - strength) * paper, 0, 1), images.y


def learned(x: np.ndarray, y: np.ndarray, seed: int = 0) -> nn.Module:
    """A small convolutional network, trained on images and on slightly noisy ones."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1),
                        nn.ReLU(), nn.Flatten(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10))
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3, weight_decay=1e-4)
    inputs, labels = torch.from_numpy(x).float(), torch.from_numpy(y)
    for _ in range(40):
        for index in torch.randperm(len(inputs)).split(64):
            noisy = inputs[index] + 0.05 * torch.randn_like(inputs[index])
            loss = F.cross_entropy(net(noisy), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()


def by_pixels(network: certify.core.graph.Graph, image: np.ndarray, label: int, tenths: int
              ) -> float:
    """Degrees proved around the identity by boxes of pixels, ``tenths`` of them per piece."""
    hues = image_graph(image, ["hue"])
    proved = {}
    for low in np.arange(-REACH, REACH, PIECE):
        cuts = np.linspace(low, low + PIECE, tenths + 1)[:, None]
        found = certify.bound(hues, certify.Box(cuts[:-1], cuts[1:]), "crown")
        lower, upper = (side.detach().numpy() for side in (found.lower, found.upper))
        region = certify.UnionOfBoxes(lower[None], upper[None]) if tenths > 1 else \
            certify.Box(lower, upper)
        rows = certify.Spec.classify(label, 10).rows().y[0]
        margin = certify.bound(network, region, "crown", rows).lower
        proved[low] = bool((margin > 0).all())
    right = left = 0.0
    while right < REACH and proved[right]:
        right += PIECE
    while left > -REACH and proved[left - PIECE]:
        left -= PIECE
    return right - left


def main() -> None:
    """Learn, certify three times, compare, draw."""
    net = learned(*coloured(load_images("digits", "train"), 0))
    network = certify.from_torch(net, torch.zeros(1, 3, 8, 8))
    x, y = (v[:COUNT] for v in coloured(load_images("digits", "test"), 1))
    found = certify.evaluate_transform(network, x, y, {"hue": (-REACH, REACH)}, piece=2.0)
    records = [record(f) for f in found]
    title = f"hue within {REACH:g} degrees"
    print(as_text(records, title, 8))
    right = [i for i, f in enumerate(found) if f.predicted == f.label]
    with torch.no_grad():
        ends = [f.certified_range() for f in found]
        widths = {"explicit": np.mean([np.nan_to_num(ends[i][1] - ends[i][0]) for i in right])}
        for name, tenths in (("implicit", TENTHS), ("naive", 1)):
            widths[name] = np.mean([by_pixels(network, x[i], int(y[i]), tenths) for i in right])
        for i in right:  # no sampled hue inside a proved range changes the label
            graph = certify.semantic.transformed(network, x[i], "hue")
            hues = torch.linspace(*np.nan_to_num(ends[i]), 500, dtype=torch.float64)[:, None]
            if not bool((evaluate(graph, hues).flatten(1).argmax(1) == int(y[i])).all()):
                raise RuntimeError(f"image {i}: a sampled hue contradicts a proof")
    print(f"\nmean certified range of {len(right)} images, of {2 * REACH:g} degrees:")
    for name, width in widths.items():
        print(f"  {name:9} {width:6.1f}")
    Path("colour_ranges.svg").write_text(as_svg(records, title, -REACH, REACH), encoding="utf-8")
    print("picture: colour_ranges.svg")


if __name__ == "__main__":
    main()
