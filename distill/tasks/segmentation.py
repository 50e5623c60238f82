"""Semantic segmentation loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import LovaszLoss
from torch import Tensor, nn

IGNORED = 255  # how labels that do not count are written in training batches


class SegmentationLoss(nn.Module):
    """Class-balanced cross-entropy plus Lovasz softmax (Berman et al. 2018), a surrogate of mIoU.

    Args:
        frequency: pixel share per class in the labels, [C].
        balance: exponent on the inverse frequency; 0 weighs all classes alike.
    """

    def __init__(self, frequency: Tensor, balance: float) -> None:
        super().__init__()
        weight = (frequency + 1e-3) ** -balance
        self.register_buffer("weight", weight / (weight * frequency).sum().clamp_min(1e-6))
        self.lovasz = LovaszLoss(mode="multiclass", ignore_index=IGNORED, from_logits=True)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss.

        Args:
            logits: [B, C, h, w]; brought to half the target's resolution.
            target: uint8 [B, H, W], ``IGNORED`` where unlabelled.
        """
        target = target[:, ::2, ::2].long()
        logits = F.interpolate(
            logits.float(), size=target.shape[-2:], mode="bilinear", align_corners=False
        )
        if bool((target == IGNORED).all()):
            return logits.sum() * 0
        entropy = F.cross_entropy(logits, target, self.weight, ignore_index=IGNORED)
        return entropy + 0.5 * self.lovasz(logits, target)


def class_frequency(masks: list[Tensor], classes: int) -> Tensor:
    """Pixel share per class, float [classes], over labelled pixels."""
    counts = torch.zeros(256)
    for mask in masks:
        counts += torch.bincount(mask.flatten().long(), minlength=256).float()
    counts = counts[:classes]
    return counts / counts.sum().clamp_min(1)
