"""`smooth`: a model in, a smoothed classifier with certificates out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certify.core.errors import BadInput
from certify.core.graph import Graph
from certify.smoothing import levels  # noqa: F401  registers its method
from certify.smoothing.base import Base, Precision, refuse_training_mode
from certify.smoothing.certifier import Smoothed
from certify.smoothing.methods import METHODS, Budget
from certify.smoothing.noise import Noise, noise_from

if TYPE_CHECKING:
    from torch import Tensor

    from certify.smoothing.subspace import Subspace

SOUNDNESS = ("real", "exact-grid")


def smooth(  # noqa: PLR0913  settings by name, each with a default
    model: Any,
    *,
    sigma: float | None = None,
    noise: Noise | None = None,
    method: str = "two-stage",
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    norm: str | None = None,
    num_classes: int | None = None,
    soundness: str = "real",
    seed: int = 0,
    batch: int = 1000,
    device: str = "auto",
    precision: Precision | None = None,
    ledger: str | Path | None = None,
    subspace: Subspace | None = None,
) -> Smoothed:
    """Smooth a classifier: its answer becomes the one it gives most often under noise.

    Args:
        model: a torch module in evaluation mode; a network from `certify.load`; or a pair of
            modules, the left and the right branch of the methods ``dual``.
        sigma: standard deviation of Gaussian noise, in the units of the inputs.
        noise: any other noise, from `certify.smoothing.noise`; in place of ``sigma``.
        method: how votes become a radius; ``certify supports --smoothing-methods`` lists them.
        n0, n: votes that pick the class, and that bound its probability.
        alpha: probability that the certificate of an input is wrong.
        norm: of the radius; default: the noise's own.
        num_classes: default: the number of the model's outputs.
        soundness: ``"real"``, or ``"exact-grid"``: no leak of floating-point addition, for inputs
            that are whole numbers of 1/255.
        seed: of the run. The same seed draws the same noise for an input, in any batch and order.
        batch: samples per forward pass.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: autocast, compilation, memory order; recorded in certificates.
        ledger: file in which votes are kept; a run that was interrupted goes on from it.
        subspace: radii for perturbations in a part of the input (method ``first-order``).

    Raises:
        BadInput: settings that do not fit each other, or a module in training mode.

    Example:
        >>> import torch, certify
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
        >>> smoothed = certify.smooth(model, sigma=0.5, n=1000)
        >>> smoothed.certify(torch.ones(1, 1, 2, 2))[0].guarantee.confidence
        0.999
    """
    kind = _noise(sigma, noise, soundness)
    kind.check_norm(norm or kind.norms[0])
    budget = Budget(n0, n, alpha, norm or kind.norms[0], None, subspace)
    if subspace is not None and (method != "first-order" or budget.norm != "2"):
        raise BadInput("radii in a subspace come from the method first-order, in the norm 2")
    modules = model if isinstance(model, (tuple, list)) else (model,)
    for part in modules:
        if not isinstance(part, Graph):
            refuse_training_mode(part)
    place, how = _device(device), precision or Precision()

    def make(shape: tuple[int, ...]) -> Base:
        return _base(modules, METHODS[method].heads, shape, num_classes, place, how)

    return Smoothed(make, kind, method, budget, seed, batch, ledger)


def _noise(sigma: float | None, noise: Noise | None, soundness: str) -> Noise:
    if (sigma is None) == (noise is None):
        raise BadInput("give either sigma, for Gaussian noise, or noise")
    if soundness not in SOUNDNESS:
        raise BadInput(f"soundness is one of {', '.join(SOUNDNESS)}, got {soundness!r}")
    if noise is not None:
        if soundness != "real":
            raise BadInput("exact-grid is for Gaussian noise: give sigma")
        return noise
    value: Any = sigma
    if isinstance(value, (list, tuple)) or hasattr(value, "shape"):
        raise BadInput(
            "sigma is one number for all inputs: a sigma chosen per input is another "
            "classifier, and no radius follows; see the method variance-dual"
        )
    if not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise BadInput(f"sigma must be a positive number, got {value!r}")
    if soundness == "exact-grid":
        return noise_from("gaussian-grid", {"sigma": value, "levels": 255, "fine": 16})
    return noise_from("gaussian", {"sigma": value})


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput("there is no CUDA device here; use device='cpu'")
    return torch.device(name)


def _base(
    modules: Sequence[Any],
    heads: int,
    shape: tuple[int, ...],
    classes: int | None,
    device: Any,
    precision: Precision,
) -> Base:
    import torch

    runs = [_runner(part, shape, device, precision) for part in modules]
    if heads == 2:
        from certify.smoothing.halves import branches

        runs = list(branches(runs, shape))
    with torch.inference_mode():
        found = runs[0](torch.zeros(2, *shape, device=device))
    if found.dim() != 2:
        raise BadInput(
            f"a classifier answers (batch, classes); this one answers {tuple(found.shape)}"
        )
    if classes is not None and classes != found.shape[1]:
        raise BadInput(f"num_classes is {classes}, the model has {found.shape[1]} outputs")
    if found.shape[1] < 2:
        raise BadInput("a classifier needs at least two outputs")
    name, form, digest = _identity(modules)
    settings: dict[str, str | int | float | bool] = {
        "autocast": precision.autocast,
        "compiled": precision.compiled,
        "channels_last": precision.channels_last,
    }
    return Base(
        tuple(runs), shape, int(found.shape[1]), device, name, form, digest, settings, precision
    )


def _runner(
    part: Any, shape: tuple[int, ...], device: Any, precision: Precision
) -> Callable[[Tensor], Tensor]:
    if isinstance(part, Graph):
        return _graph_runner(part, shape)
    module = part.to(device)
    if precision.compiled:
        import torch

        return torch.compile(module)
    return module  # type: ignore[no-any-return]


def _graph_runner(graph: Graph, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    from certify.bounds.evaluate import evaluate

    wanted = graph.input_shapes[0]
    if len(graph.input_shapes) != 1 or math.prod(wanted) != math.prod(shape):
        raise BadInput(f"inputs of shape {shape} do not fit the model's {list(graph.input_shapes)}")

    def run(x: Tensor) -> Tensor:
        return evaluate(graph, x.reshape(len(x), *wanted)).reshape(len(x), -1)

    return run


def _identity(modules: Sequence[Any]) -> tuple[str, str, str]:
    """Name, format and SHA-256 of the model; of several, all of them."""
    import hashlib

    from certify.importers.model_claim import model_hash, model_name
    from certify.importers.torch_module import fingerprint

    digests = [model_hash(m) if isinstance(m, Graph) else fingerprint(m) for m in modules]
    first = modules[0]
    if isinstance(first, Graph):
        name, form = model_name(first)
    else:
        name, form = type(first).__name__, "torch"
    if len(digests) == 1:
        return name, form, digests[0]
    return name, form, hashlib.sha256("".join(digests).encode()).hexdigest()
