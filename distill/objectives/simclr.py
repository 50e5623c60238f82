"""SimCLR: two views of an image attract, views of others repel (Chen et al. 2020)."""

from __future__ import annotations

from lightly.loss import DCLLoss, NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from pydantic import Field
from torch import Tensor

from distill.encoders import Encoder
from distill.objectives.collapse import embedding_spread
from distill.objectives.protocol import register_objective
from distill.objectives.views import TwoViewObjective, ViewOptions


class SimCLROptions(ViewOptions):
    """Views as in the paper's appendix A, its projection head and temperature."""

    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    blur: tuple[float, float] = (0.5, 0.5)
    solarize: tuple[float, float] = (0.0, 0.0)
    hidden: int = Field(2048, ge=1, description="width of the projection head")
    projection: int = Field(128, ge=1, description="dimensions that are compared")
    temperature: float = Field(0.1, gt=0)
    decoupled: bool = Field(
        False, description="without the positive pair in the denominator (Yeh et al. 2022)"
    )


@register_objective("simclr")
class SimCLR(TwoViewObjective):
    """NT-Xent (section 2.1), or decoupled, over the batch of all processes; any trunk."""

    kind = "contrastive"
    Options = SimCLROptions

    def __init__(self, encoder: Encoder, options: SimCLROptions) -> None:
        super().__init__(encoder, options)
        self.head = SimCLRProjectionHead(encoder.channels, options.hidden, options.projection)
        loss = DCLLoss if options.decoupled else NTXentLoss
        self.criterion = loss(temperature=options.temperature, gather_distributed=True)

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """The loss of two views, each [B, 3, H, W]."""
        first, second = (self.head(self.encoder.pooled(view)).float() for view in batch)
        return {"loss": self.criterion(first, second), "spread": embedding_spread(first)}
