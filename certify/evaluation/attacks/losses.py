"""What attacks make grow: functions of the scores that are large where the label has lost."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from certify.evaluation.attacks.arena import Loss, margins

_TINY = 1e-12


def cross_entropy(labels: Tensor) -> Loss:
    """Minus the log-probability of the label."""

    def loss(scores: Tensor, at: slice) -> Tensor:
        wanted = labels[at].reshape(-1, 1).expand(scores.shape[:2])
        losses = F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), reduction="none")
        return losses.reshape(scores.shape[:2])

    return loss


def towards(labels: Tensor, targets: Tensor) -> Loss:
    """Score of a target minus that of the label (multi-targeted, Gowal et al. 2019).

    Args:
        targets: ``(B, N)``, a class for each point.
    """

    def loss(scores: Tensor, at: slice) -> Tensor:
        own = labels[at].reshape(-1, 1, 1).expand(*scores.shape[:2], 1)
        aims = targets[at].unsqueeze(2)
        return (scores.gather(2, aims) - scores.gather(2, own))[..., 0]

    return loss


def dlr(labels: Tensor) -> Loss:
    """Difference of logits ratio (Croce and Hein 2020, arXiv:2003.01690, eq. 6): blind to scale."""

    def loss(scores: Tensor, at: slice) -> Tensor:
        top = scores.sort(dim=2, descending=True).values
        spread = top[..., 0] - top[..., min(2, scores.shape[2] - 1)]
        return -margins(scores, labels[at]) / (spread + _TINY)

    return loss


def targeted_dlr(labels: Tensor, targets: Tensor) -> Loss:
    """The targeted ratio (same paper, eq. 7); plain differences below four classes."""
    plain = towards(labels, targets)

    def loss(scores: Tensor, at: slice) -> Tensor:
        if scores.shape[2] < 4:
            return plain(scores, at)
        top = scores.sort(dim=2, descending=True).values
        spread = top[..., 0] - 0.5 * (top[..., 2] + top[..., 3])
        return plain(scores, at) / (spread + _TINY)

    return loss


def rivals(scores: Tensor, labels: Tensor, most: int) -> Tensor:
    """The strongest other classes, ``(B, n)``, best first, at most ``most``.

    Args:
        scores: ``(B, K)``.
    """
    others = scores.scatter(1, labels.reshape(-1, 1), -torch.inf)
    return others.topk(min(most, scores.shape[1] - 1), dim=1).indices
