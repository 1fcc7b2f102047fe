"""`CertifiedLoss`: one line in the caller's own loop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certify.bounds.program import Program
from certify.core.errors import BadInput, CertifyError
from certify.core.region import L1, L2, Box, Region
from certify.training.batch_norm import has_batch_norm, recorded_statistics
from certify.training.bounder import Bounder, analyse
from certify.training.methods import METHODS, Step, options_for
from certify.training.regularisers import l1_norm, relu_balance, tightness
from certify.training.schedules import Schedule
from certify.training.slope_net import SlopeNet

_REGIONS: dict[str, Any] = {"1": L1, "2": L2}
_LEAST_EPS = 1e-6  # at which regularisers look while the radius is still 0


class TrainingStopped(CertifyError):
    """The loss is no number any more; the message says in which step, and where it begins."""


class CertifiedLoss(nn.Module):
    """A loss that makes networks certifiable. The model, the loop and the optimiser stay yours.

    Args:
        model: logits of ``(B, *shape)``; its parameters are used as they are, nothing is wrapped.
        method: a name of `certify.training.methods.METHODS`: ``ibp``, ``crown-ibp``, ``crown``,
            ``alpha``, ``learned-slopes``, ``sabr``, ``cc-ibp``, ``mtl-ibp``, ``exp-ibp``, ``taps``,
            ``staps`` or ``pgd``.
        eps: radius, in the units of ``x`` before any normalisation.
        schedule: of radius and weights over steps; default: the whole radius at once, no clean
            term.
        clip: range of the data, ``(low, high)`` or None; in the same units.
        norm: ``"inf"``, ``"2"`` or ``"1"``.
        mean, std: if ``x`` is already normalised, per channel; eps and clip stay in pixels.
        regularise: weight of Shi et al.'s regularisers, which fade as the radius grows.
        l1: weight of the sum of all weights' sizes.
        seed: of the attacks' random starts.
        **options: of the method, see `certify.training.methods.Options`.

    Attributes:
        parts: after each call the loss in plain numbers: ``loss``, ``robust``, ``regulariser``,
            ``eps``, and ``clean`` where it has a weight. ``robust`` is an upper bound of the worst
            loss for the methods that say so, and an estimate for the others.

    Raises:
        BadInput: settings that do not fit each other.

    Example:
        >>> import torch
        >>> from certify.training import CertifiedLoss
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> loss = CertifiedLoss(model, method="ibp", eps=0.1)
        >>> loss(torch.rand(2, 1, 2, 2), torch.tensor([0, 2])).backward()
        >>> model[1].weight.grad.shape
        torch.Size([3, 4])
    """

    def __init__(  # noqa: PLR0913  settings by name, each with a default
        self, model: nn.Module, method: str = "ibp", eps: float = 0.0, *,
        schedule: Schedule | None = None, clip: tuple[float, float] | None = (0.0, 1.0),
        norm: str = "inf", mean: Any = None, std: Any = None, regularise: float = 0.0,
        l1: float = 0.0, seed: int = 0, **options: Any,
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise BadInput(f"unknown training method {method!r}; known are {', '.join(METHODS)}")
        if not 0 <= eps < math.inf:
            raise BadInput(f"eps must be a number of at least 0, got {eps!r}")
        if norm not in ("inf", *_REGIONS):
            raise BadInput(f"norm is 'inf', '2' or '1', got {norm!r}")
        if norm != "inf" and not METHODS[method].bound:
            raise BadInput(f"the attacks of {method} are in the norm inf; for the norm {norm} "
                           f"choose "
                           f"one of {', '.join(m.name for m in METHODS.values() if m.bound)}")
        _warn_of_units(eps, clip)
        self.model, self.method, self.eps, self.norm = model, METHODS[method], float(eps), norm
        self.schedule = schedule or Schedule()
        self.clip, self.mean, self.std = clip, mean, std
        self.regularise, self.l1 = regularise, l1
        self.options = options_for(method, options)
        self.slope_net = SlopeNet() if method == "learned-slopes" else None
        self.parts: dict[str, float] = {}
        self.step = 0
        self._seed = seed
        self._bounder = Bounder(model)

    def forward(self, x: Tensor, y: Tensor, step: int | None = None) -> Tensor:
        """The loss of a batch; ``.backward()`` reaches the model's own parameters.

        Args:
            x: ``(B, *shape)``. y: int64 labels ``(B,)``.
            step: of the schedule; default: the number of calls so far.

        Raises:
            BadInput: labels out of range, or a model whose graph changed.
            TrainingStopped: the loss is not finite; nothing was changed.
        """
        now = self.step if step is None else step
        self.step = now + 1
        with torch.autocast(x.device.type, enabled=False):
            half = x.dtype in (torch.float16, torch.bfloat16)
            return self._loss(x.float() if half else x, y, now)

    def _loss(self, x: Tensor, y: Tensor, step: int) -> Tensor:
        share = self.schedule.share(step)
        eps, kappa = self.eps * share, self.schedule.kappa_at(step)
        clean, statistics = self._clean(x, y, needed=kappa > 0 or eps == 0)
        zero = torch.zeros((), device=x.device)
        fading = self.regularise * (1 - share)
        robust, regulariser = zero if clean is None else clean, zero
        if eps > 0 and (kappa < 1 or fading > 0):
            robust, regulariser = self._robust(x, y, statistics, eps, step)
            regulariser = fading * regulariser
        elif fading > 0:
            program = self._bounder.program(x, statistics)
            found = analyse(program, self.region(program, x, _LEAST_EPS), y)
            regulariser = fading * self._regulariser(found)
        if self.l1 > 0:
            regulariser = regulariser + self.l1 * l1_norm(self.model)
        loss = (robust if clean is None else kappa * clean + (1 - kappa) * robust) + regulariser
        self._report({"loss": loss, "clean": clean, "robust": robust, "regulariser": regulariser},
                     eps, step)
        return loss

    def _clean(
        self, x: Tensor, y: Tensor, needed: bool
    ) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        """Loss of the model itself, whose running statistics move once, and what it used.

        Without weight in the loss it is left out, unless batch norms need its statistics.
        """
        norms = has_batch_norm(self.model)
        if not needed and not norms:
            shape = self._bounder.graph(x).output_shape
            _check_labels(y, (len(x), math.prod(shape)))
            return None, {}
        with recorded_statistics(self.model) as statistics:
            answers: Tensor = self.model(x)
        _check_labels(y, tuple(answers.shape))
        return (F.cross_entropy(answers, y) if needed else None), statistics

    def _robust(
        self, x: Tensor, y: Tensor, statistics: Mapping[str, Tensor], eps: float, step: int
    ) -> tuple[Tensor, Tensor]:
        program = self._bounder.program(x, statistics)
        region = self.region(program, x, eps)
        lower, upper = region.bounding_box()
        generator = torch.Generator(x.device).manual_seed(hash((self._seed, step)) % 2**63)
        at = Step(program, x, y, region, lower.to(x), upper.to(x), self.schedule.beta_at(step),
                  self.options, self.slope_net, generator)
        losses = self.method.objective(at)
        regulariser = losses.new_zeros(())
        if self.regularise > 0:
            regulariser = self._regulariser(at.first or analyse(program, region, y))
        return losses.mean(), regulariser

    def _regulariser(self, found: Any) -> Tensor:
        boxes = [box for _, box in found.activations()]
        if not boxes:
            return found.state.box(0).lower.new_zeros(())  # type: ignore[no-any-return]
        start = found.state.box(found.state.program.inputs[0])
        radius = ((start.upper - start.lower) / 2).mean()
        return tightness(radius, boxes) + relu_balance(boxes)

    def region(self, program: Program, x: Tensor, eps: float) -> Region:
        """What is bounded around each input: in pixels, then normalised; in the graph's shape."""
        x, shape = x.detach(), program.shape(program.inputs[0])
        if self.norm != "inf":
            if self.std is not None:
                raise BadInput("mean and std are for the norm inf; make normalisation a layer")
            ball: Region = _REGIONS[self.norm](x.reshape(len(x), *shape), eps, self.clip)
            return ball.batched(shape)
        ends = box_around(x, eps, self.clip, self.mean, self.std)
        return Box(*(end.reshape(len(x), *shape) for end in ends)).batched(shape)

    def _report(self, parts: Mapping[str, Tensor | None], eps: float, step: int) -> None:
        there = {name: value for name, value in parts.items() if value is not None}
        values = torch.stack(list(there.values())).detach().tolist()
        self.parts = {**dict(zip(there, values, strict=True)), "eps": eps}
        if math.isfinite(self.parts["loss"]):
            return
        bad = [name for name, p in self.model.named_parameters() if not p.isfinite().all()]
        where = f"weights of {bad[0]} are not finite" if bad else "the weights are all finite"
        said = ", ".join(f"{name} {value:.4g}" for name, value in self.parts.items())
        raise TrainingStopped(
            f"the loss is not finite in step {step} ({said}); {where}. Lower the learning rate, "
            "lengthen the ramp, clip gradients; the last good checkpoint is untouched")


def box_around(
    x: Tensor, eps: float, clip: tuple[float, float] | None = None, mean: Any = None,
    std: Any = None,
) -> tuple[Tensor, Tensor]:
    """Ends of the maximum-norm ball, within ``clip``, of inputs that may be normalised already.

    Args:
        x: ``(B, C, ...)``; ``(pixel - mean) / std`` where those are given.
        eps, clip: in pixels.
        mean, std: per channel, or one number.
    """
    if (mean is None) != (std is None):
        raise BadInput("give both mean and std, or neither")
    if std is None:
        low, high = x - eps, x + eps
        return (low, high) if clip is None else (low.clamp(*clip), high.clamp(*clip))
    shape = (1, -1, *[1] * (x.dim() - 2))
    middle, spread = (torch.as_tensor(v, dtype=x.dtype, device=x.device).view(shape)
                      for v in (mean, std))
    low, high = x - eps / spread, x + eps / spread
    if clip is not None:
        least, most = ((end - middle) / spread for end in clip)
        low, high = low.maximum(least).minimum(most), high.maximum(least).minimum(most)
    return low, high


def _check_labels(y: Tensor, shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        raise BadInput(f"the model must answer (B, classes), it answered {shape}")
    if y.dtype != torch.int64 or y.shape != shape[:1]:
        raise BadInput(f"labels are int64 of shape ({shape[0]},), got {y.dtype} {tuple(y.shape)}")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= shape[1]:
        raise BadInput(f"labels from {low} to {high}; the model has {shape[1]} classes")


def _warn_of_units(eps: float, clip: tuple[float, float] | None) -> None:
    if clip is None:
        return
    width = clip[1] - clip[0]
    if not width > 0:
        raise BadInput(f"clip must be (low, high) with low < high, got {clip}")
    if eps > width / 2:
        warnings.warn(
            f"eps = {eps:g} is more than half of the data range {clip}: if it is meant in steps of "
            f"1/255, write {eps:g}/255 = {eps / 255:.4g}", stacklevel=3)
