"""A plain torch loop that trains a certifiable network: one line differs from ordinary training."""

from __future__ import annotations

import torch
from torch import nn

import certify
from certify.importers.datasets import load_images
from certify.training import CertifiedLoss, Ramp, Schedule, ibp_initialise, network

EPS, EPOCHS, BATCH = 0.1, 40, 64


def main() -> None:
    """Train on scikit-learn's digits, then certify test images."""
    torch.manual_seed(0)
    train, test = load_images("digits", "train"), load_images("digits", "test")
    x, y = torch.from_numpy(train.x), torch.from_numpy(train.y)
    model = network("mlp", train.shape, train.num_classes)
    ibp_initialise(model)
    steps = EPOCHS * (len(x) // BATCH)
    loss = CertifiedLoss(model, "ibp", eps=EPS, schedule=Schedule(Ramp(steps // 8, steps // 2)))
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for epoch in range(EPOCHS):
        for chosen in torch.randperm(len(x)).split(BATCH):
            optimiser.zero_grad()
            loss(x[chosen], y[chosen]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimiser.step()
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1}: {', '.join(f'{k} {v:.3f}' for k, v in loss.parts.items())}")
    graph = certify.from_torch(model.eval(), torch.zeros(1, *test.shape))
    region = certify.Linf(test.x[:, None], EPS, clip=(0, 1))
    rows = torch.eye(10)[test.y][:, None] - torch.eye(10)  # y minus each class; 0 for itself
    margins = certify.bound(graph, region, "crown-ibp", rows).lower
    margins[torch.arange(len(test)), test.y] = torch.inf
    certified = (margins > 0).all(1).double().mean()
    clean = (model(torch.from_numpy(test.x)).argmax(1) == torch.from_numpy(test.y)).double().mean()
    print(f"clean {100 * clean:.1f} %, certified at {EPS}: {100 * certified:.1f} %")


if __name__ == "__main__":
    main()
