"""BYOL: predict what a momentum encoder sees in another view, without negatives."""

from __future__ import annotations

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
from pydantic import Field
from torch import Tensor, nn

from distill.encoders import Encoder
from distill.objectives.collapse import embedding_spread
from distill.objectives.momentum import MomentumObjective, MomentumOptions, momentum_copy
from distill.objectives.protocol import register_objective
from distill.objectives.views import TwoViewObjective, ViewOptions


class ByolOptions(ViewOptions, MomentumOptions):
    """Widths of the heads as in section 3.3."""

    hidden: int = Field(4096, ge=1, description="width of the hidden layer of both heads")
    projection: int = Field(256, ge=1, description="width of what is predicted")


@register_objective("byol")
class Byol(MomentumObjective, TwoViewObjective):
    """Bootstrap Your Own Latent (Grill et al. 2020, section 3, equations 2 and 3).

    The loss is the squared distance between the normalised prediction of one view and the
    normalised momentum projection of the other, 2 - 2 cos, for both orders.
    """

    kind = "non-contrastive"
    Options = ByolOptions
    options: ByolOptions

    def __init__(self, encoder: Encoder, options: ByolOptions) -> None:
        super().__init__(encoder, options)
        hidden, width = options.hidden, options.projection
        self.projector = BYOLProjectionHead(encoder.channels, hidden, width)
        self.predictor = BYOLPredictionHead(width, hidden, width)
        self.momentum_encoder = momentum_copy(encoder)
        self.momentum_projector = momentum_copy(self.projector)
        self.negative_cosine = NegativeCosineSimilarity()

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Encoder and projector; the predictor has no copy."""
        return [
            (self.encoder, self.momentum_encoder),
            (self.projector, self.momentum_projector),
        ]

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """The symmetric loss of two views, each [B, 3, H, W]."""
        predicted = [self.predictor(self.projector(self.encoder.pooled(v))) for v in batch]
        with torch.no_grad():
            seen = [self.momentum_projector(self.momentum_encoder.pooled(v)) for v in batch]
        first = 2 + 2 * self.negative_cosine(predicted[0].float(), seen[1].float())
        second = 2 + 2 * self.negative_cosine(predicted[1].float(), seen[0].float())
        return {"loss": first + second, "spread": embedding_spread(seen[0])}
