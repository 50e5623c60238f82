"""MoCo v3: contrast a prediction with momentum keys of the whole batch, without a queue."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import MoCoProjectionHead
from pydantic import Field
from torch import Tensor, nn

from distill.encoders import Encoder
from distill.objectives.collapse import embedding_spread
from distill.objectives.momentum import MomentumObjective, MomentumOptions, momentum_copy
from distill.objectives.protocol import register_objective
from distill.objectives.ranks import gathered, own_rows
from distill.objectives.views import TwoViewObjective, ViewOptions


class MocoV3Options(ViewOptions, MomentumOptions):
    """Heads and temperature as in section 4 and appendix A for transformers."""

    momentum: float = Field(0.99, ge=0, lt=1)
    temperature: float = Field(0.2, gt=0, description="1.0 for ResNets in the paper")
    hidden: int = Field(4096, ge=1, description="width of the hidden layers of both heads")
    projection: int = Field(256, ge=1, description="width of queries and keys")
    freeze_patch_embedding: bool = Field(
        True, description="a transformer's patch projection stays as it is (section 4.1)"
    )


@register_objective("mocov3")
class MocoV3(MomentumObjective, TwoViewObjective):
    """Momentum Contrast, version 3 (Chen, Xie & He 2021, section 3, algorithm 1, equation 1).

    The key of the same image is the positive of a query; the keys of all other images in the batch
    of all processes are its negatives.
    """

    kind = "contrastive"
    Options = MocoV3Options
    options: MocoV3Options

    def __init__(self, encoder: Encoder, options: MocoV3Options) -> None:
        super().__init__(encoder, options)
        hidden, width = options.hidden, options.projection
        if encoder.is_vit and options.freeze_patch_embedding:
            encoder.model.patch_embed.requires_grad_(False)
        self.projector = MoCoProjectionHead(encoder.channels, hidden, width, 3, batch_norm=True)
        self.predictor = MoCoProjectionHead(width, hidden, width, 2, batch_norm=True)
        self.momentum_encoder = momentum_copy(encoder)
        self.momentum_projector = momentum_copy(self.projector)

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Encoder and projector; the predictor has no copy."""
        return [
            (self.encoder, self.momentum_encoder),
            (self.projector, self.momentum_projector),
        ]

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """The symmetric loss of two views, each [B, 3, H, W]."""
        queries = [self.predictor(self.projector(self.encoder.pooled(v))) for v in batch]
        with torch.no_grad():
            keys = [self.momentum_projector(self.momentum_encoder.pooled(v)) for v in batch]
        loss = self._contrast(queries[0], keys[1]) + self._contrast(queries[1], keys[0])
        return {"loss": loss, "spread": embedding_spread(keys[0])}

    def _contrast(self, query: Tensor, key: Tensor) -> Tensor:
        temperature = self.options.temperature
        query = F.normalize(query.float(), dim=1)
        keys = gathered(F.normalize(key.float(), dim=1))
        positive = own_rows(len(query), query.device)
        # The factor keeps the size of gradients from depending on the temperature (algorithm 1).
        return 2 * temperature * F.cross_entropy(query @ keys.T / temperature, positive)
