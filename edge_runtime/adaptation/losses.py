"""Losses between two passes of a student: on dense features and on the outputs of both heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SURE, _ABSENT = 0.4, 0.05  # scores from which a point holds an object, and below which it does not
_TEMPERATURE = 0.07  # of similarities between places of a map
_GRID = 10  # places along the longer side at which similarities are taken


def feature_distance(features: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine between two dense maps [B, C, h, w], averaged over places."""
    return (1 - F.cosine_similarity(features, target.detach(), dim=1)).mean()


def relational_distance(features: Tensor, target: Tensor) -> Tensor:
    """How differently two maps [B, C, h, w] relate their places to each other.

    Kullback-Leibler divergence between the rows of softmax-ed patch similarities, as in the
    dense term of distillation by relations within an image (Gram anchoring of DINOv3, Siméoni
    et al. 2025, uses the same matrices under a squared error).
    """
    student, teacher = (_similarities(m) for m in (features, target.detach()))
    return (
        F.kl_div(
            F.log_softmax(student / _TEMPERATURE, -1),
            F.softmax(teacher / _TEMPERATURE, -1),
            reduction="none",
        )
        .sum(-1)
        .mean()
    )


def _similarities(features: Tensor) -> Tensor:
    step = max(1, max(features.shape[-2:]) // _GRID)
    places = F.normalize(features[:, :, step // 2 :: step, step // 2 :: step].flatten(2), dim=1)
    return places.transpose(1, 2) @ places


def soft_segmentation_loss(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy with another pass's probabilities, above that of the target with itself.

    Args:
        logits: float [B, C, h, w].
        target: float [B, C, h, w], probabilities.
        weight: float [B, h, w]; all places alike if None.
    """
    own = (target * target.clamp_min(1e-8).log()).sum(1)
    losses = own - (target * F.log_softmax(logits, 1)).sum(1)
    if weight is None:
        return losses.mean()
    return (losses * weight).sum() / weight.sum().clamp_min(1e-6)


def score_loss(logits: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Quality focal loss (Li et al., NeurIPS 2020, equation 3) towards a teacher's scores.

    Points of which the teacher is unsure do not count.

    Args:
        logits: By level float [B, C, h, w].
        targets: The teacher's probabilities, shaped alike.
    """
    total, objects = logits[0].new_zeros(()), logits[0].new_zeros(())
    for found, target in zip(logits, targets, strict=True):
        best = target.amax(1, keepdim=True)
        counts = ((best >= _SURE) | (best <= _ABSENT)).float()
        gap = (target - found.sigmoid()).detach().abs().square()
        entropy = F.binary_cross_entropy_with_logits(found, target, reduction="none")
        # Without the entropy of the target itself the loss is zero where both agree.
        own = F.binary_cross_entropy(target, target, reduction="none")
        total = total + (gap * (entropy - own) * counts).sum()
        objects = objects + (best * (best >= _SURE)).sum()
    return total / objects.clamp_min(1)


def box_loss(sides: list[Tensor], targets: list[Tensor], scores: list[Tensor]) -> Tensor:
    """One minus the IoU of boxes seen from the same point, where the teacher is sure.

    Args:
        sides: By level float [B, 4, h, w], distances to left, top, right and bottom.
        targets: The teacher's, shaped alike.
        scores: The teacher's probabilities by level, float [B, C, h, w].
    """
    total, weight = sides[0].new_zeros(()), sides[0].new_zeros(())
    for found, target, score in zip(sides, targets, scores, strict=True):
        best = score.amax(1)
        sure = best * (best >= _SURE)
        low, high = torch.minimum(found, target), torch.maximum(found, target)
        shared = (low[:, 0] + low[:, 2]) * (low[:, 1] + low[:, 3])
        areas = [(s[:, 0] + s[:, 2]) * (s[:, 1] + s[:, 3]) for s in (found, target)]
        overlap = shared / (areas[0] + areas[1] - shared).clamp_min(1e-6)
        # The hull keeps a gradient where boxes hardly overlap (Rezatofighi et al., CVPR 2019).
        hull = (high[:, 0] + high[:, 2]) * (high[:, 1] + high[:, 3])
        excess = 1 - (areas[0] + areas[1] - shared) / hull.clamp_min(1e-6)
        total = total + (sure * (1 - overlap + excess)).sum()
        weight = weight + sure.sum()
    return total / weight.clamp_min(1)
