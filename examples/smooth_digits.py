"""Smooth a digit classifier, with and without a denoiser in front, and draw certified accuracy.

Two networks learn scikit-learn's 8x8 digits: a classifier of clean images, and a denoiser that was
taught to remove noise of one sigma. Denoise-and-classify needs nothing else: what follows the noise
is the classifier that is smoothed. The curve is written to ``smooth_digits.svg``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import certify
from certify.importers.datasets import Images, load_images
from certify.report.curve import curve
from certify.report.smoothed import Row, Run, as_text
from certify.smoothing.denoise import DenoisedClassifier
from certify.training.smoothed import GaussianAugmentation

SIGMA, EPOCHS, IMAGES, VOTES = 0.25, 40, 60, 5000


def classifier() -> nn.Sequential:
    """Of 8x8 images."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def denoiser() -> nn.Sequential:
    """From a noisy image to a clean one."""
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
                         nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
                         nn.Conv2d(16, 1, 3, padding=1))


def fit(net: nn.Module, images: Images, loss: object) -> nn.Module:
    """Adam on batches of 64."""
    x, y = torch.from_numpy(images.x), torch.from_numpy(images.y)
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            loss(x[chosen], y[chosen]).backward()  # type: ignore[operator]
            optimiser.step()
    return net.eval()


def certified(name: str, net: nn.Module, images: Images) -> Run:
    """Radii of test images under the smoothed network."""
    smoothed = certify.smooth(net, sigma=SIGMA, n=VOTES)
    found = smoothed.certify(images.x[:IMAGES])
    rows = []
    for index, made in enumerate(found):
        label = int(np.argmax(made.claim.cases[0].spec.rows().y.max(axis=(0, 1))))
        predict = -1 if made.radius is None else label
        rows.append(Row(index, int(images.y[index]), predict, made.radius or 0.0))
    return Run(name, tuple(rows), {"alpha": smoothed.budget.alpha}, IMAGES)


def main(out: Path = Path("smooth_digits.svg")) -> list[Run]:
    """Train, certify, draw."""
    torch.manual_seed(0)
    train, test = load_images("digits", "train"), load_images("digits", "test")
    clean = classifier()
    fit(clean, train, lambda x, y: F.cross_entropy(clean(x), y))
    cleaner = denoiser()
    fit(cleaner, train, lambda x, _: F.mse_loss(cleaner(x + SIGMA * torch.randn_like(x)), x))
    robust = classifier()
    fit(robust, train, GaussianAugmentation(robust, SIGMA))
    both = DenoisedClassifier(cleaner, clean, SIGMA).eval()
    runs = [certified("clean classifier", clean, test),
            certified("denoised, then classified", both, test),
            certified("trained on noise", robust, test)]
    print(as_text(runs))
    out.write_text(curve(runs), encoding="utf-8")
    print(f"drawn: {out}")
    return runs


if __name__ == "__main__":
    main()
