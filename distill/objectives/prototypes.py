"""Scores over prototypes, as self-distillation compares them: head and Sinkhorn assignment."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightly.models.modules.heads import DINOProjectionHead
from pydantic import Field
from torch import Tensor

from distill.objectives.momentum import MomentumOptions
from distill.objectives.ranks import gathered
from distill.objectives.schedules import linear_warmup
from distill.objectives.views import MultiCropOptions


class PrototypeOptions(MultiCropOptions, MomentumOptions):
    """What DINO and DINOv2 share."""

    prototypes: int = Field(65536, ge=2)
    hidden: int = Field(2048, ge=1)
    bottleneck: int = Field(256, ge=1)
    batch_norm: bool = Field(False, description="in the heads; helps convolutional trunks")
    norm_last_layer: bool = Field(True, description="prototypes of unit length: stabler")
    freeze_last_layer: float = Field(
        0.01, ge=0, le=1, description="share of the training, in which the prototypes rest"
    )
    student_temperature: float = Field(0.1, gt=0)
    teacher_temperature: float = Field(0.07, gt=0)
    warmup_teacher_temperature: float = Field(0.04, gt=0, description="at the start")
    warmup: float = Field(0.3, ge=0, le=1, description="share of the training until the final one")

    def temperature_at(self, progress: float) -> float:
        """The teacher's temperature."""
        first, last = self.warmup_teacher_temperature, self.teacher_temperature
        return linear_warmup(progress, self.warmup, first, last)


class PrototypeHead(DINOProjectionHead):
    """lightly's head whose last layer, the prototypes, can be held.

    Held prototypes get a zero gradient instead of none: parameters without gradient, or ones whose
    ``requires_grad`` changes, are what distributed training cannot have.
    """

    def __init__(self, channels: int, options: PrototypeOptions) -> None:
        with warnings.catch_warnings():
            # lightly's use of torch's older weight norm is not for our users to hear of.
            warnings.simplefilter("ignore", FutureWarning)
            super().__init__(
                channels,
                options.hidden,
                options.bottleneck,
                options.prototypes,
                options.batch_norm,
                norm_last_layer=options.norm_last_layer,
            )
        self.held = False
        # Runs after weight norm's own hook, which derives the weight.
        self.last_layer.register_forward_pre_hook(self._hold)

    def _hold(self, layer: Any, _: Any) -> None:
        if self.held and layer.weight.requires_grad:
            layer.weight.register_hook(torch.zeros_like)


@torch.no_grad()
def assign(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Balanced soft assignment of rows [N, K] to prototypes by Sinkhorn-Knopp, in float32.

    Caron et al. 2020 (SwAV), section 3; three iterations as in Oquab et al. 2023, section 4. Rows
    of all processes are balanced together. In logarithms, since the exponentials that lightly's
    version normalises vanish at low temperatures and leave prototypes that nothing adds up to.
    """
    scores = logits.float() / temperature
    for _ in range(iterations):
        scores = scores - gathered(scores.logsumexp(0, keepdim=True)).logsumexp(0)
        scores = scores - scores.logsumexp(1, keepdim=True)
    return scores.exp()
