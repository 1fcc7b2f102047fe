"""Train the example network and write what `verify_digits.py` verifies.

A small convolutional network learns scikit-learn's 8x8 handwritten digits from perturbed images
(projected gradient descent inside the training loop: Madry et al. 2018), which makes its decisions
robust enough to be provable. The result is written to ``examples/digits/``:

    digits.onnx              the network, input (1, 1, 8, 8) with values in [0, 1]
    digit<label>_eps<k>.vnnlib   "no image within k/16 of this test digit gets another label"
    instances.csv            network, specification, time limit in seconds

Run it with ``make train``. The same seed gives the same files on the same versions and machine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import certify
from certify.importers.vnnlib import write_vnnlib

FOLDER = Path(__file__).resolve().parent / "digits"
LEVELS = (1, 2, 4)  # radii in sixteenths: grey levels of the original images
TRAIN_EPS, STEPS, EPOCHS, SEED = 2.5 / 16, 5, 60, 0


def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images ``(N, 1, 8, 8)`` in [0, 1], and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    x = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    parts = train_test_split(x, labels, test_size=0.2, random_state=SEED, stratify=labels)
    train_x, test_x, train_y, test_y = (torch.from_numpy(np.asarray(p)) for p in parts)
    return train_x, train_y, test_x, test_y


def network() -> nn.Sequential:
    """Two convolutions and two linear layers, about 10 000 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=1, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10),
    )


def perturbed(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """The worst image found within ``eps`` of each ``x``, by signed gradient steps."""
    moved = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(STEPS):
        moved = moved.detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(moved), y), moved)
        moved = moved + 2 * eps / STEPS * slope.sign()
        moved = torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)
    return moved.detach()


def train(x: Tensor, y: Tensor) -> nn.Sequential:
    """Train from a fixed seed; the radius grows over the first half."""
    torch.manual_seed(SEED)
    model = network()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    for epoch in range(EPOCHS):
        eps = TRAIN_EPS * min(1.0, 2 * epoch / EPOCHS)
        for batch in torch.randperm(len(x)).split(64):
            inputs = perturbed(model, x[batch], y[batch], eps)
            optimiser.zero_grad()
            F.cross_entropy(model(inputs), y[batch]).backward()
            optimiser.step()
        schedule.step()
    return model.eval()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of correct labels."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def export(model: nn.Sequential, path: Path) -> None:
    """Write the trained network as ONNX, node by node."""
    weights = {f"{name}": value.detach().numpy() for name, value in model.named_parameters()}
    nodes, at = [], "image"
    for index, layer in enumerate(model):
        kind, attributes = _onnx_node(layer)
        operands = [f"{index}.weight", f"{index}.bias"] if f"{index}.weight" in weights else []
        to = "scores" if index == len(model) - 1 else f"{kind.lower()}_{index}"
        nodes.append(helper.make_node(kind, [at, *operands], [to], name=to, **attributes))
        at = to
    graph = helper.make_graph(
        nodes, "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, path)


def _onnx_node(layer: nn.Module) -> tuple[str, dict[str, object]]:
    if isinstance(layer, nn.Conv2d):
        return "Conv", {"kernel_shape": list(layer.kernel_size), "strides": list(layer.stride),
                        "pads": [int(p) for p in layer.padding] * 2}
    if isinstance(layer, nn.Linear):
        return "Gemm", {"transB": 1}
    return {nn.ReLU: "Relu", nn.Flatten: "Flatten"}[type(layer)], {}


def write_specifications(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """One file per digit and radius, for the first test image of each digit that is read right."""
    with torch.no_grad():
        right = model(x).argmax(1) == y
    instances = []
    for label in range(10):
        image = x[right & (y == label)][0].double().numpy()
        for level in LEVELS:
            box = certify.Box(np.clip(image - level / 16, 0, 1), np.clip(image + level / 16, 0, 1))
            name = f"digit{label}_eps{level}.vnnlib"
            write_vnnlib(FOLDER / name, box, certify.Spec.classify(label, 10))
            instances.append(f"digits.onnx,{name},30")
    (FOLDER / "instances.csv").write_text("\n".join(instances) + "\n")
    return len(instances)


def main() -> None:
    """Train, report, write."""
    torch.set_num_threads(1)  # so that the sums, and the weights, come out the same
    train_x, train_y, test_x, test_y = images()
    model = train(train_x, train_y)
    print(f"accuracy: {accuracy(model, train_x, train_y):.3f} on the training images, "
          f"{accuracy(model, test_x, test_y):.3f} on the test images")
    for level in LEVELS:
        found = accuracy(model, perturbed(model, test_x, test_y, level / 16), test_y)
        print(f"under attack within {level}/16: {found:.3f}")
    FOLDER.mkdir(exist_ok=True)
    export(model, FOLDER / "digits.onnx")
    print(f"{write_specifications(model, test_x, test_y)} specifications in {FOLDER}")


if __name__ == "__main__":
    main()
