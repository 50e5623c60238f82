"""VICReg: invariance of two views, kept from collapse by variance and covariance of each."""

from __future__ import annotations

from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from pydantic import Field
from torch import Tensor

from distill.encoders import Encoder
from distill.objectives.collapse import embedding_spread
from distill.objectives.protocol import register_objective
from distill.objectives.views import TwoViewObjective, ViewOptions


class VicRegOptions(ViewOptions):
    """Weights as in section 4.2, views as in appendix C.1, the same for both."""

    blur: tuple[float, float] = (0.5, 0.5)
    solarize: tuple[float, float] = (0.1, 0.1)
    expander: int = Field(8192, ge=1, description="width of the three layers of the expander")
    invariance: float = Field(25.0, ge=0)
    variance: float = Field(25.0, ge=0)
    covariance: float = Field(1.0, ge=0)


@register_objective("vicreg")
class VicReg(TwoViewObjective):
    """Variance-Invariance-Covariance Regularization (Bardes et al. 2022, section 4.1, equation 6).

    Variance and covariance are those of the batch of all processes.
    """

    kind = "redundancy reduction"
    Options = VicRegOptions

    def __init__(self, encoder: Encoder, options: VicRegOptions) -> None:
        super().__init__(encoder, options)
        width = options.expander
        self.expander = VICRegProjectionHead(encoder.channels, width, width)
        self.criterion = VICRegLoss(
            options.invariance, options.variance, options.covariance, gather_distributed=True
        )

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """The loss of two views, each [B, 3, H, W]."""
        first, second = (self.expander(self.encoder.pooled(view)).float() for view in batch)
        return {"loss": self.criterion(first, second), "spread": embedding_spread(first)}
