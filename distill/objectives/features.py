"""Feature distillation: a student's dense map regressed onto standardised teacher features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class FeatureWeights(BaseModel):
    """Weights of the terms and the relational temperature."""

    model_config = ConfigDict(extra="forbid")
    cosine: float = Field(0.9, ge=0)
    smooth_l1: float = Field(0.5, ge=0)
    pooled: float = Field(0.2, ge=0)
    relational: float = Field(0.5, ge=0)
    temperature: float = Field(0.1, gt=0)


class FeatureDistillation(nn.Module):
    """Per teacher a linear projector and three terms.

    Regression on the dense grid is AM-RADIO's mixture of cosine and smooth-L1 (Ranzinger et al.
    2024, section 3.4); the global term is the cosine of pooled features; the relational term is the
    cross-entropy between rows of the patch-similarity matrices of teacher and student, which is
    free of scale.

    Args:
        student_channels: channels of the dense student map and of the pooled one.
        teachers: per teacher the channels of its dense and pooled features.
    """

    def __init__(
        self,
        student_channels: tuple[int, int],
        teachers: list[tuple[int, int]],
        weights: FeatureWeights,
    ) -> None:
        super().__init__()
        self.weights = weights
        dense, pooled = student_channels
        self.dense = nn.ModuleList(nn.Conv2d(dense, c, 1) for c, _ in teachers)
        self.pooled = nn.ModuleList(nn.Linear(pooled, c) for _, c in teachers)

    def forward(
        self, dense: Tensor, pooled: Tensor, targets: list[tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Weighted total under ``loss`` and the mean of each term over teachers.

        Args:
            dense: student map [B, D, h, w].
            pooled: student vector [B, P].
            targets: per teacher dense [B, C, h', w'] and pooled [B, C'].
        """
        w = self.weights
        terms: dict[str, Tensor] = {}
        for i, (target, target_pooled) in enumerate(targets):
            at_grid = F.interpolate(
                dense, size=target.shape[-2:], mode="bilinear", align_corners=False
            )
            out = self.dense[i](at_grid).float()
            target = target.float()
            parts = {
                "cosine": 1 - F.cosine_similarity(out, target, dim=1).mean(),
                "smooth_l1": F.smooth_l1_loss(out, target),
                "pooled": 1
                - F.cosine_similarity(self.pooled[i](pooled).float(), target_pooled.float()).mean(),
            }
            if w.relational:
                parts["relational"] = self._relational(out, target)
            for name, value in parts.items():
                terms[name] = terms.get(name, value.new_zeros(())) + value / len(targets)
        total = torch.stack([getattr(w, name) * value for name, value in terms.items()]).sum()
        return {"loss": total, **terms}

    def _relational(self, out: Tensor, target: Tensor) -> Tensor:
        rows = []
        for features in (out, target):
            tokens = F.normalize(features.flatten(2).transpose(1, 2), dim=-1)
            similarity = tokens @ tokens.transpose(1, 2) / self.weights.temperature
            eye = torch.eye(similarity.shape[-1], dtype=torch.bool, device=out.device)
            rows.append(similarity.masked_fill(eye, -1e4))
        return F.kl_div(
            rows[0].log_softmax(-1).flatten(0, 1),
            rows[1].softmax(-1).flatten(0, 1),
            reduction="batchmean",
        )
