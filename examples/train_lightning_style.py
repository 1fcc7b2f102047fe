"""The loss as a part of a module with ``training_step``, as Lightning and its relatives want it.

The trainer below is a stand-in of a dozen lines: the module is what a real trainer would be given.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from certify.importers.datasets import load_images
from certify.training import CertifiedLoss, Ramp, Schedule, ibp_initialise, network

EPS, EPOCHS, BATCH = 0.05, 12, 64


class CertifiedModule(nn.Module):
    """A model, its certified loss, and what a trainer calls."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        super().__init__()
        ibp_initialise(model)
        schedule = Schedule(Ramp(steps // 10, steps // 2))
        self.loss = CertifiedLoss(model, "mtl-ibp", eps=EPS, schedule=schedule, coefficient=0.3)

    def training_step(self, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        """The loss of a batch at a global step."""
        return self.loss(*batch, step=step)  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on whatever the loss trains."""
        return torch.optim.Adam(self.parameters(), 2e-3)

    def on_epoch_end(self, epoch: int) -> None:
        """Say how it goes."""
        print(f"epoch {epoch + 1}: {', '.join(f'{k} {v:.3f}' for k, v in self.loss.parts.items())}")


def fit(module: CertifiedModule, batches: Iterable[list[tuple[Tensor, Tensor]]]) -> None:
    """What a trainer does."""
    optimiser, step = module.configure_optimizers(), 0
    for epoch, these in enumerate(batches):
        for batch in these:
            optimiser.zero_grad()
            module.training_step(batch, step).backward()
            optimiser.step()
            step += 1
        module.on_epoch_end(epoch)


def main() -> None:
    """Train on scikit-learn's digits."""
    torch.manual_seed(0)
    images = load_images("digits", "train")
    x, y = torch.from_numpy(images.x), torch.from_numpy(images.y)
    orders = [torch.randperm(len(x)).split(BATCH) for _ in range(EPOCHS)]
    module = CertifiedModule(network("mlp", images.shape, 10), sum(map(len, orders)))
    fit(module, ([(x[i], y[i]) for i in order] for order in orders))
    clean = (module.loss.model.eval()(x).argmax(1) == y).double().mean()
    print(f"clean accuracy on the training images {100 * clean:.1f} %")


if __name__ == "__main__":
    main()
