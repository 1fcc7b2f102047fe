"""Certified accuracy of networks trained for geometric robustness, on MNIST."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import certify
from benchmarks.data import folder
from benchmarks.machine import describe, header
from benchmarks.report import RESULTS, table, write
from certify.importers.datasets import load_images

ROTATE = ({"rotate": (-30.0, 30.0)}, {"rotate": 0.25})
SHIFT = ({"translate-x": (-2.0, 2.0), "translate-y": (-2.0, 2.0)},
         {"translate-x": 0.1, "translate-y": 0.1})
SCALE = ({"rotate": (-5.0, 5.0), "scale": (0.95, 1.05), "contrast": (0.95, 1.05),
          "brightness": (-0.01, 0.01)},
         {"rotate": 0.25, "scale": 0.01, "contrast": 0.05, "brightness": 0.02})
SHEAR = ({"scale": (0.98, 1.02), "rotate": (-2.0, 2.0), "shear": (-0.02, 0.02),
          "contrast": (0.98, 1.02), "brightness": (-0.001, 0.001)},
         {"scale": 0.005, "rotate": 0.125, "shear": 0.005, "contrast": 0.04,
          "brightness": 0.002})
# name: beginning of the file, ranges and pieces, images, method
CASES: dict[str, tuple[str, tuple[Any, Any], int, str]] = {
    "rotation": ("cgt_rotate", ROTATE, 300, "intervals"),
    "rotation, all methods": ("cgt_rotate", ROTATE, 300, "auto"),
    "translation": ("cgt_translate", SHIFT, 200, "intervals"),
    "translation, all methods": ("cgt_translate", SHIFT, 200, "auto"),
    "scale, rotation, contrast, brightness": ("cgt_scale", SCALE, 50, "intervals"),
    "shear, scale, rotation, contrast, brightness": ("cgt_shear", SHEAR, 50, "intervals"),
}


class Network(nn.Module):
    """The released architecture; normalisation is part of it."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.mean, self.std = (float(state[f"normalize.{n}"]) for n in ("mean", "std"))
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 4, 2, 1), nn.Conv2d(32, 64, 4, 2, 1)
        self.fc1, self.fc2 = nn.Linear(3136, 200), nn.Linear(200, 10)
        self.load_state_dict({k: v for k, v in state.items() if "normalize" not in k})

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images in [0, 1]."""
        x = torch.relu(self.conv1((x - self.mean) / self.std))
        x = torch.relu(self.conv2(x))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


def main() -> int:
    """Certify, attack, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.semantic_mnist",
                                     description=__doc__)
    parser.add_argument("--only", help="cases whose name begins so")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, machine = load_images(folder("mnist")), describe()
    rows = [_row(name, folder("nets") / "cgt_mnist", images) for name in CASES
            if options.only is None or name.startswith(options.only)]
    text = "\n".join([
        "# Geometric transformations on MNIST\n", header(machine),
        "\n`python -m benchmarks.semantic_mnist`: one thread; the first test images; CPU seconds "
        "of the attack and the proofs; 'not attacked' is right at every point of a grid of about "
        "241 parameters, and so the most that can be certified. `intervals` is interval warping "
        "and interval propagation, from blocks of eight pieces down to single ones; `auto` goes "
        "on with linear bounds in the parameters.\n",
        table(["case", "method", "images", "clean %", "certified %", "not attacked %", "CPU s"],
              rows)])
    print(text)
    write(options.out, "semantic_mnist", text, {"machine": machine, "rows": rows})
    return 0


def _row(name: str, place: Path, images: Any) -> list[Any]:
    start, (ranges, piece), count, method = CASES[name]
    path = next(p for p in sorted(place.iterdir()) if p.name.startswith(start))
    state = {k: torch.from_numpy(np.array(v)) for k, v in certify.load_weights(path).items()}
    network = certify.from_torch(Network(state).eval(), torch.zeros(1, 1, 28, 28))
    x, y = images.x[:count].astype(np.float64), images.y[:count]
    begun = time.process_time()
    found = certify.evaluate_transform(network, x, y, ranges, piece=piece, method=method)
    seconds = time.process_time() - begun
    clean = [f.predicted == f.label for f in found]
    safe = [f.predicted == f.label and not len(f.attacked) for f in found]
    for f, ok in zip(found, safe, strict=True):
        if f.certified and not ok:
            raise RuntimeError(f"image {f.index}: an attack contradicts a proof")
    row = [name, method, count, *(f"{100 * np.mean(v):.1f}" for v in (
        clean, [f.certified for f in found], safe)), f"{seconds:.1f}"]
    print(row, flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
