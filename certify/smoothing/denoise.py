"""Denoise and classify: any denoiser in front of any classifier is a classifier to be smoothed.

Salman et al. 2020, Carlini et al. 2023. What comes after the noise is part of the classifier, so
nothing about it needs to be proved; what must be right is how much noise the denoiser is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from certify.core.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor


class DiffusionSchedule:
    """From a noise level to a diffusion model's time step.

    A variance-preserving model at step t sees ``sqrt(a_t) x + sqrt(1 - a_t) e``; divided by the
    first root that is ``x`` with noise ``sqrt((1 - a_t) / a_t)``.
    """

    def __init__(self, alphas_cumprod: Any) -> None:
        """``alphas_cumprod (T,)``: a_t, falling from about 1 to about 0.

        Raises:
            BadInput: it does not fall within (0, 1].
        """
        a = np.asarray(alphas_cumprod, np.float64)
        if a.ndim != 1 or not len(a) or (a <= 0).any() or (a > 1).any() or (np.diff(a) >= 0).any():
            raise BadInput("alphas_cumprod must fall strictly, within (0, 1]")
        self.alphas = a
        self.sigmas = np.sqrt((1 - a) / a)

    def step(self, sigma: float) -> int:
        """The first step whose noise is at least ``sigma``, in the model's own units.

        Raises:
            BadInput: the model never sees that much noise.
        """
        at = int(np.searchsorted(self.sigmas, sigma))
        if at == len(self.sigmas):
            raise BadInput(f"the schedule ends at sigma {self.sigmas[-1]:.4g}, below {sigma:.4g}")
        return at

    def reachable(self, sigma: float, input_range: tuple[float, float] = (0.0, 1.0)) -> float:
        """The least sigma at or above this one that is exactly a step's, in the inputs' units.

        Smooth with it, and the noise drawn is just what the denoiser expects.
        """
        scale = 2.0 / (input_range[1] - input_range[0])
        return float(self.sigmas[self.step(sigma * scale)]) / scale


class DenoisedClassifier(nn.Module):
    """``classifier(denoiser(x))`` for noise of one known sigma; to be smoothed with that sigma.

    Args:
        denoiser: ``(x, time)`` -> clean images, both in [-1, 1]; or ``(x)`` without a schedule.
            One call by default; it may sample, for the randomness is fresh in every vote.
        classifier: of images in ``input_range``.
        sigma: of the noise, in the units of ``input_range``.
        schedule: tells the denoiser its time step, and scales its input by sqrt(a_t); None: the
            denoiser gets the noisy image as it is.
        input_range: of the images before noise.
        clip: bring the denoised image back into the range.
    """

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        classifier: Callable[[Tensor], Tensor],
        sigma: float,
        *,
        schedule: DiffusionSchedule | None = None,
        input_range: tuple[float, float] = (0.0, 1.0),
        clip: bool = True,
    ) -> None:
        super().__init__()
        low, high = input_range
        if not low < high or not sigma > 0:
            raise BadInput(
                f"sigma must be positive and the range ascending, got {sigma}, {input_range}"
            )
        self.denoiser, self.classifier = denoiser, classifier
        self.sigma, self.schedule, self.input_range, self.clip = sigma, schedule, input_range, clip
        self.time = None if schedule is None else schedule.step(sigma * 2 / (high - low))

    def forward(self, x: Tensor) -> Tensor:
        """Noisy images ``(N, C, H, W)`` -> logits."""
        return self.classifier(self.denoised(x))

    def denoised(self, x: Tensor) -> Tensor:
        """Clean images in ``input_range``."""
        low, high = self.input_range
        if self.schedule is None or self.time is None:
            clean = self.denoiser(x)
        else:
            unit = (x - low) * (2 / (high - low)) - 1
            root = float(np.sqrt(self.schedule.alphas[self.time]))
            clean = (self.denoiser(unit * root, self.time) + 1) * ((high - low) / 2) + low
        return clean.clamp(low, high) if self.clip else clean


class NoiseAware(nn.Module):
    """A classifier that is told sigma (one-pass methods), for one sigma.

    Args:
        model: ``(x, sigma)`` -> logits.
    """

    def __init__(self, model: Callable[[Tensor, float], Tensor], sigma: float) -> None:
        super().__init__()
        self.model, self.sigma = model, sigma

    def forward(self, x: Tensor) -> Tensor:
        """Noisy images -> logits."""
        return self.model(x, self.sigma)
