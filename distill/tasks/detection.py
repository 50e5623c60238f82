"""Anchor-free detection: task-aligned assignment and losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, complete_box_iou_loss


class DetectionLoss(nn.Module):
    """Quality focal loss and CIoU on task-aligned positives.

    Assignment follows TOOD (Feng et al. 2021, section 3.3): for every object, the ``top`` points
    inside it with the highest ``score^alpha * iou^beta``. The classification target is that metric,
    rescaled per object to its best IoU (equation 5), under the quality focal loss (Li et al. 2020).
    """

    def __init__(self, top: int = 9, alpha: float = 0.5, beta: float = 4.0) -> None:
        super().__init__()
        self.top, self.alpha, self.beta = top, alpha, beta

    def forward(
        self,
        outputs: tuple[Tensor, Tensor, Tensor],
        boxes: list[Tensor],
        labels: list[Tensor],
    ) -> Tensor:
        """Scalar loss of a batch.

        Args:
            outputs: logits [B, P, C], boxes [B, P, 4] and points [P, 3] of the head.
            boxes: per image float [N, 4] xyxy in network pixels.
            labels: per image int [N].
        """
        logits, predicted, points = outputs
        logits = logits.float()
        total, weight = logits.new_zeros(()), logits.new_zeros(())
        targets = torch.zeros_like(logits)
        for i, (truth, classes) in enumerate(zip(boxes, labels, strict=True)):
            if not len(truth):
                continue
            chosen, owner, quality = self._assign(
                logits[i].detach(), predicted[i].detach(), points, truth, classes.long()
            )
            if not len(chosen):
                continue
            targets[i, chosen, classes.long()[owner]] = quality
            loss = complete_box_iou_loss(predicted[i][chosen], truth[owner], reduction="none")
            total = total + (loss * quality).sum()
            weight = weight + quality.sum()
        probability = logits.sigmoid()
        focal = (targets - probability).abs().square() * F.binary_cross_entropy_with_logits(
            logits, targets, reduction="none"
        )
        scale = weight.clamp_min(1.0)
        return focal.sum() / scale + 2.0 * total / scale

    @torch.no_grad()
    def _assign(
        self, logits: Tensor, predicted: Tensor, points: Tensor, truth: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of positive points, the object of each, and its target quality."""
        x, y, stride = points.unbind(-1)
        # Small objects may hold no point: the inside test is widened by half a stride.
        slack = stride[:, None] / 2
        centre_x = (truth[:, 0] + truth[:, 2]) / 2
        centre_y = (truth[:, 1] + truth[:, 3]) / 2
        half_w = torch.maximum((truth[:, 2] - truth[:, 0])[None] / 2, slack)
        half_h = torch.maximum((truth[:, 3] - truth[:, 1])[None] / 2, slack)
        inside = ((x[:, None] - centre_x).abs() <= half_w) & (
            (y[:, None] - centre_y).abs() <= half_h
        )
        overlap = box_iou(predicted, truth).clamp_min(1e-4)
        scores = logits.sigmoid()[:, labels]
        metric = scores**self.alpha * overlap**self.beta * inside
        # Distance breaks ties early in training, when all metrics are nearly nothing.
        distance = ((x[:, None] - centre_x) / stride[:, None]).square() + (
            (y[:, None] - centre_y) / stride[:, None]
        ).square()
        ranked = torch.where(inside, metric + 1e-9 / (1 + distance), metric.new_tensor(-1.0))
        top = ranked.topk(min(self.top, len(x)), dim=0).indices
        mask = torch.zeros_like(inside).scatter_(0, top, True) & inside
        best = torch.where(mask, overlap, overlap.new_tensor(-1.0)).argmax(dim=1)
        chosen = mask.any(dim=1).nonzero().squeeze(1)
        owner = best[chosen]
        aligned = metric[chosen, owner]
        peak = torch.zeros(len(truth)).to(metric).scatter_reduce_(0, owner, aligned, "amax")
        best_iou = (
            torch.zeros(len(truth))
            .to(metric)
            .scatter_reduce_(0, owner, overlap[chosen, owner], "amax")
        )
        quality = aligned / peak[owner].clamp_min(1e-9) * best_iou[owner]
        return chosen, owner, quality.clamp(0.05, 1.0)
