"""Training losses for classifiers that will be smoothed: the network learns to answer under noise.

Each is a module that takes ``(x, y)`` and returns a loss; the model stays the caller's. sigma is in
the units of ``x``: put any normalisation into the model.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certify.core.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEAST = 1e-6  # probabilities are kept this far from 0 and 1 where a quantile is taken


class SmoothedLoss(nn.Module, ABC):
    """What the losses share.

    Args:
        model: logits of ``(N, *shape)``.
        sigma: standard deviation of the noise.
        copies: noisy copies of each input.
        generator: of the noise; None: torch's own.
    """

    def __init__(
        self, model: nn.Module, sigma: float, copies: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0 < sigma < math.inf:
            raise BadInput(f"sigma must be a positive number, got {sigma!r}")
        if copies < 1:
            raise BadInput(f"copies must be at least 1, got {copies!r}")
        self.model, self.sigma, self.copies = model, sigma, copies
        self.generator = generator
        self.parts: Mapping[str, float] = {}

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch ``x (B, *shape)``, ``y (B,)``; `parts` then has what it is made of.

        Raises:
            BadInput: labels that are none.
        """
        if y.dtype != torch.int64 or y.shape != x.shape[:1]:
            raise BadInput(f"labels are int64 of shape ({len(x)},), got {y.dtype} {tuple(y.shape)}")
        parts = self.terms(x, y)
        self.parts = {name: float(value.detach()) for name, value in parts.items()}
        return torch.stack(list(parts.values())).sum()

    @abstractmethod
    def terms(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The loss in parts, weights included."""

    def noise(self, x: Tensor) -> Tensor:
        """``(copies, B, *shape)`` fresh noise."""
        shape = (self.copies, *x.shape)
        return self.sigma * torch.randn(
            shape, generator=self.generator, device=x.device, dtype=x.dtype)

    def logits(self, x: Tensor, noise: Tensor) -> Tensor:
        """``(copies, B, classes)`` at the noisy copies."""
        noisy = (x + noise).flatten(0, 1)
        found: Tensor = self.model(noisy)
        return found.view(len(noise), len(x), -1)


class GaussianAugmentation(SmoothedLoss):
    """Cross-entropy on noisy copies (Lecuyer et al. 2019, Cohen et al. 2019)."""

    def terms(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """See `SmoothedLoss.terms`."""
        return {"noisy": _cross_entropy(self.logits(x, self.noise(x)), y)}


class Stability(SmoothedLoss):
    """Clean cross-entropy, and the clean answer under noise (Li et al. 2019).

    ``CE(f(x), y) + weight CE(f(x + e), f(x))``.
    """

    def __init__(self, model: nn.Module, sigma: float, weight: float = 2.0, **more: object) -> None:
        super().__init__(model, sigma, **more)  # type: ignore[arg-type]
        self.weight = weight

    def terms(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """See `SmoothedLoss.terms`."""
        clean: Tensor = self.model(x)
        noisy = self.logits(x, self.noise(x)).log_softmax(-1)
        stable = -(clean.softmax(-1) * noisy).sum(-1).mean()
        return {"clean": F.cross_entropy(clean, y), "stability": self.weight * stable}


class Consistency(SmoothedLoss):
    """Noisy copies must agree (Jeong and Shin 2020).

    ``mean CE + weight mean KL(mean p, p_i) + entropy H(mean p)``.
    """

    def __init__(
        self, model: nn.Module, sigma: float, weight: float = 10.0, entropy: float = 0.5,
        copies: int = 2, **more: object,
    ) -> None:
        super().__init__(model, sigma, copies, **more)  # type: ignore[arg-type]
        self.weight, self.entropy = weight, entropy

    def terms(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """See `SmoothedLoss.terms`."""
        logits = self.logits(x, self.noise(x))
        each = logits.log_softmax(-1)
        mean = each.exp().mean(0)
        log = mean.clamp_min(1e-20).log()
        apart = (mean * (log - each)).sum(-1).mean()
        spread = -(mean * log).sum(-1).mean()
        return {"noisy": _cross_entropy(logits, y), "consistency": self.weight * apart,
                "entropy": self.entropy * spread}


class Macer(SmoothedLoss):
    """Cross-entropy of the smoothed classifier, and its radius where it is right (Zhai et al.
    2020).

    ``-log p_y + weight sigma/2 max(0, gamma - (z(p_1) - z(p_2)))`` for inputs classified rightly, z
    the normal quantile, p of logits times ``beta``. A gap beyond gamma, or none, adds nothing.
    """

    def __init__(
        self, model: nn.Module, sigma: float, weight: float = 12.0, gamma: float = 8.0,
        beta: float = 16.0, copies: int = 16, **more: object,
    ) -> None:
        super().__init__(model, sigma, copies, **more)  # type: ignore[arg-type]
        self.weight, self.gamma, self.beta = weight, gamma, beta

    def terms(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """See `SmoothedLoss.terms`."""
        logits = self.logits(x, self.noise(x))
        mean = logits.softmax(-1).mean(0)
        loss = F.nll_loss(mean.clamp_min(1e-20).log(), y)
        sharp = (self.beta * logits).softmax(-1).mean(0).clamp(_LEAST, 1 - _LEAST)
        top, which = sharp.topk(2, -1)
        gap = torch.special.ndtri(top[:, 0]) - torch.special.ndtri(top[:, 1])
        used = (which[:, 0] == y) & gap.isfinite() & (gap.abs() <= self.gamma)
        missing = torch.where(used, self.gamma - gap, 0.0).sum() / len(x)
        return {"smoothed": loss, "radius": self.weight * self.sigma / 2 * missing}


class SmoothAdv(SmoothedLoss):
    """Noisy copies around an adversarial example of the smoothed classifier (Salman et al. 2019).

    The attack ascends ``-log mean softmax`` in an l2 ball, over the same noise in every step; the
    loss is the cross-entropy at the attacked point with that noise. ``eps`` may be changed from
    step to step, for a warm-up; ``clip`` is the range of inputs before noise.
    """

    def __init__(
        self, model: nn.Module, sigma: float, eps: float, steps: int = 4, copies: int = 2,
        clip: tuple[float, float] | None = (0.0, 1.0), **more: object,
    ) -> None:
        super().__init__(model, sigma, copies, **more)  # type: ignore[arg-type]
        if eps < 0 or steps < 0:
            raise BadInput(f"eps and steps must not be negative, got {eps} and {steps}")
        self.eps, self.steps, self.clip = eps, steps, clip

    def terms(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """See `SmoothedLoss.terms`."""
        noise = self.noise(x)
        with _frozen(self.model):
            attacked = self.attack(x, y, noise)
        return {"attacked": _cross_entropy(self.logits(attacked, noise), y)}

    def attack(self, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        """Points of the ball that raise the smoothed loss."""
        delta = torch.zeros_like(x)
        for _ in range(self.steps):
            delta.requires_grad_(True)
            mean = self.logits(x + delta, noise).softmax(-1).mean(0)
            loss = -mean.gather(1, y[:, None]).clamp_min(1e-20).log().sum()
            [slope] = torch.autograd.grad(loss, delta)
            delta = _within(delta.detach() + 2 * self.eps / self.steps * _unit(slope), self.eps)
            if self.clip is not None:
                delta = (x + delta).clamp(*self.clip) - x
        return x + delta.detach()


class SmoothMix(SmoothedLoss):
    """Between each input and an over-confident point far from it, confidence falls (Jeong et al.
    2021).

    ``CE + weight KL`` of the smoothed answer at ``x + l (x_adv - x)``, l uniform in [0, 1/2], from
    ``(1 - l) p(x) + l / classes``.
    """

    def __init__(
        self, model: nn.Module, sigma: float, weight: float = 5.0, steps: int = 4,
        step: float = 0.5, copies: int = 2, **more: object,
    ) -> None:
        super().__init__(model, sigma, copies, **more)  # type: ignore[arg-type]
        self.weight, self.steps, self.step = weight, steps, step

    def terms(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """See `SmoothedLoss.terms`."""
        noise = self.noise(x)
        logits = self.logits(x, noise)
        with _frozen(self.model):
            far = self._far(x, y, noise)
        share = 0.5 * torch.rand(len(x), generator=self.generator, device=x.device, dtype=x.dtype)
        mixed = x + share.view(-1, *[1] * (x.dim() - 1)) * (far - x)
        at = self.logits(mixed, noise).softmax(-1).mean(0).clamp_min(1e-20).log()
        own = logits.softmax(-1).mean(0).detach()
        goal = (1 - share)[:, None] * own + share[:, None] / own.shape[-1]
        apart = (goal * (goal.clamp_min(1e-20).log() - at)).sum(-1).mean()
        return {"noisy": _cross_entropy(logits, y), "mixed": self.weight * apart}

    def _far(self, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        """Away from the class, as far as the steps lead: no ball."""
        point = x.detach()
        for _ in range(self.steps):
            point.requires_grad_(True)
            mean = self.logits(point, noise).softmax(-1).mean(0)
            loss = -mean.gather(1, y[:, None]).clamp_min(1e-20).log().sum()
            [slope] = torch.autograd.grad(loss, point)
            point = (point + self.step * _unit(slope)).detach()
        return point


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean over copies and inputs."""
    return F.cross_entropy(logits.flatten(0, 1), y.repeat(len(logits)))


def _unit(slope: Tensor) -> Tensor:
    """Each example's direction."""
    length = slope.flatten(1).norm(dim=1).clamp_min(1e-12)
    found: Tensor = slope / length.view(-1, *[1] * (slope.dim() - 1))
    return found


def _within(delta: Tensor, eps: float) -> Tensor:
    """Each example's move, scaled back to length eps where it is longer."""
    length = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
    found: Tensor = delta * (eps / length).clamp_max(1.0).view(-1, *[1] * (delta.dim() - 1))
    return found


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Attacks run in evaluation mode: they must not move batch statistics."""
    flags = [(part, part.training) for part in model.modules()]
    try:
        for part, _ in flags:
            part.training = False
        yield
    finally:
        for part, flag in flags:
            part.training = flag
