"""DINO: self-distillation, the student's local crops towards a momentum teacher's global ones."""

from __future__ import annotations

import torch
from lightly.loss import DINOLoss
from pydantic import Field
from torch import Tensor, nn

from distill.encoders import Encoder
from distill.objectives.momentum import MomentumObjective, momentum_copy
from distill.objectives.protocol import Views, register_objective
from distill.objectives.prototypes import PrototypeHead, PrototypeOptions
from distill.objectives.views import MultiCrop


class DinoOptions(PrototypeOptions):
    """Settings of section 3.2 and appendix C."""

    center_momentum: float = Field(0.9, ge=0, lt=1, description="of the teacher's centre")


@register_objective("dino")
class Dino(MomentumObjective):
    """Self-distillation with no labels (Caron et al. 2021, section 3.1, algorithm 1).

    The teacher's scores are centred by a running mean over the batches of all processes and
    sharpened by a low temperature (equation 4). The momentum teacher is the encoder that is kept.
    """

    kind = "self-distillation"
    Options = DinoOptions
    options: DinoOptions

    def __init__(self, encoder: Encoder, options: DinoOptions) -> None:
        super().__init__(encoder, options)
        self.head = PrototypeHead(encoder.channels, options)
        self.teacher = momentum_copy(encoder)
        self.teacher_head = momentum_copy(self.head)
        self.criterion = DINOLoss(
            options.prototypes,
            student_temp=options.student_temperature,
            center_momentum=options.center_momentum,
        )
        self.begin_step(0.0)

    @classmethod
    def views(  # type: ignore[override]
        cls, options: DinoOptions, size: tuple[int, int], encoder: Encoder
    ) -> Views:
        """Two global views and some local ones."""
        return MultiCrop(options, size, encoder)

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Encoder and head."""
        return [(self.encoder, self.teacher), (self.head, self.teacher_head)]

    def kept(self) -> Encoder:
        """The teacher, which is ahead of the student throughout (section 5.2)."""
        return self.teacher

    def begin_step(self, progress: float) -> None:
        """Sets the teacher's temperature, and whether the prototypes rest."""
        self.temperature = self.options.temperature_at(progress)
        self.head.held = progress < self.options.freeze_last_layer

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """The loss over pairs of different views: two global [B, 3, H, W], then smaller ones."""
        wide, local = torch.cat(batch[:2]), batch[2:]
        with torch.no_grad():
            taught = self.teacher_head(self.teacher.pooled(wide)).float().chunk(2)
        learnt = list(self.head(self.encoder.pooled(wide)).float().chunk(2))
        if local:
            features = self.encoder.pooled(torch.cat(local))
            learnt += self.head(features).float().chunk(len(local))
        return {"loss": self.criterion(list(taught), learnt, self.temperature)}
