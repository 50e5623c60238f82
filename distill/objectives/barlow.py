"""Barlow Twins: the cross-correlation of two views' embeddings made the identity."""

from __future__ import annotations

from lightly.loss import BarlowTwinsLoss
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from pydantic import Field
from torch import Tensor

from distill.encoders import Encoder
from distill.objectives.collapse import embedding_spread
from distill.objectives.protocol import register_objective
from distill.objectives.ranks import gathered
from distill.objectives.views import TwoViewObjective, ViewOptions


class BarlowOptions(ViewOptions):
    """Views, width and trade-off as in section 2.2."""

    projection: int = Field(8192, ge=1, description="width of the three layers of the projector")
    redundancy: float = Field(0.005, ge=0, description="weight of what is off the diagonal")


@register_objective("barlow")
class Barlow(TwoViewObjective):
    """Barlow Twins (Zbontar et al. 2021, section 2.1, equations 1 and 2, algorithm 1).

    Embeddings of all processes are standardised and correlated together.
    """

    kind = "redundancy reduction"
    Options = BarlowOptions

    def __init__(self, encoder: Encoder, options: BarlowOptions) -> None:
        super().__init__(encoder, options)
        width = options.projection
        self.projector = BarlowTwinsProjectionHead(encoder.channels, width, width)
        # Gathered rows, not lightly's gathered correlations: those are of rows that every process
        # standardised by its own share of the batch.
        self.criterion = BarlowTwinsLoss(options.redundancy)

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """The loss of two views, each [B, 3, H, W]."""
        first, second = (
            gathered(self.projector(self.encoder.pooled(view)).float()) for view in batch
        )
        return {"loss": self.criterion(first, second), "spread": embedding_spread(first)}
