"""SimSiam: predict the other view's projection, with a stopped gradient instead of a teacher."""

from __future__ import annotations

from typing import Any

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead
from pydantic import Field
from torch import Tensor

from distill.encoders import Encoder
from distill.objectives.collapse import embedding_spread
from distill.objectives.protocol import register_objective
from distill.objectives.views import TwoViewObjective, ViewOptions


class SimSiamOptions(ViewOptions):
    """Views as in MoCo v2, widths of the heads as in section 3, baseline settings."""

    min_scale: float = Field(0.2, gt=0, le=1)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    blur: tuple[float, float] = (0.5, 0.5)
    solarize: tuple[float, float] = (0.0, 0.0)
    projection: int = Field(2048, ge=1, description="width of the projector and of its output")
    bottleneck: int = Field(512, ge=1, description="hidden width of the predictor")
    predictor_lr: float = Field(
        1.0, gt=0, description="learning rate of the predictor relative to the recipe's"
    )


@register_objective("simsiam")
class SimSiam(TwoViewObjective):
    """Simple siamese representations (Chen & He 2020, algorithm 1, equations 1 to 4).

    The loss is the negative cosine between the prediction of one view and the projection of the
    other, through which no gradient flows, averaged over both orders: from 0 to -1. ``spread``, the
    mean deviation of normalised projections over the batch times the square root of their width, is
    about 1 while training is healthy and 0 where it collapses (section 4.1).
    """

    kind = "non-contrastive"
    Options = SimSiamOptions
    options: SimSiamOptions

    def __init__(self, encoder: Encoder, options: SimSiamOptions) -> None:
        super().__init__(encoder, options)
        width = options.projection
        self.projector = SimSiamProjectionHead(encoder.channels, width, width)
        self.predictor = SimSiamPredictionHead(width, options.bottleneck, width)
        self.negative_cosine = NegativeCosineSimilarity()

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Those of all methods, each parted into what is the predictor's and what is not.

        The gradient is useful only as far as the predictor is near its optimum (Chen & He 2020,
        section 5.1; Grill et al. 2020, appendix I), which a short training helps by
        ``predictor_lr`` above 1.
        """
        predictor = {id(p) for p in self.predictor.parameters()}
        parted = []
        for group in super().groups(weight_decay):
            for inside, factor in ((False, 1.0), (True, self.options.predictor_lr)):
                params = [p for p in group["params"] if (id(p) in predictor) == inside]
                parted.append({**group, "params": params, "lr": factor})
        return parted

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """The symmetric loss of two views, each [B, 3, H, W]."""
        projected = [self.projector(self.encoder.pooled(view)).float() for view in batch]
        predicted = [self.predictor(z).float() for z in projected]
        targets = [z.detach() for z in projected]
        loss = 0.5 * (
            self.negative_cosine(predicted[0], targets[1])
            + self.negative_cosine(predicted[1], targets[0])
        )
        return {"loss": loss, "spread": embedding_spread(targets[0])}
