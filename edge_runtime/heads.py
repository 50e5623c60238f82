"""The student's neck and heads: convolutions only, so that they survive INT8."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    """Depthwise 3x3 followed by pointwise 1x1, each with batch norm and ReLU."""
    return nn.Sequential(_conv(inputs, inputs, 3, groups=inputs), _conv(inputs, outputs))


class Neck(nn.Module):
    """Top-down feature pyramid (Lin et al. 2017) of separable convolutions with global context."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_conv(c, width) for c in channels)
        self.context = nn.Conv2d(channels[-1], width, 1)
        self.smooth = nn.ModuleList(_separable(width, width) for _ in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, width, h, w] at strides 4, 8, 16 and 32 from the trunk's at the same strides."""
        lateral = [conv(f) for conv, f in zip(self.lateral, features, strict=True)]
        top = lateral[-1] + self.context(features[-1].mean(dim=(2, 3), keepdim=True))
        merged = [top]
        for finer in reversed(lateral[:-1]):
            up = F.interpolate(merged[0], size=finer.shape[-2:], mode="nearest")
            merged.insert(0, finer + up)
        return [conv(m) for conv, m in zip(self.smooth, merged, strict=True)]


class DetectionHead(nn.Module):
    """Anchor-free, convolution-only head on strides 8, 16, 32 (FCOS, Tian et al. 2019; decoupled
    towers per level as in YOLOX, Ge et al. 2021). The class score doubles as localisation quality
    (Generalized Focal Loss, Li et al. 2020), so there is no centreness branch."""

    strides = (8, 16, 32)

    def __init__(self, inputs: int, width: int, depth: int, classes: int) -> None:
        super().__init__()

        def tower() -> nn.Sequential:
            return nn.Sequential(
                *(_separable(inputs if i == 0 else width, width) for i in range(depth))
            )

        levels = len(self.strides)
        self.class_tower = nn.ModuleList(tower() for _ in range(levels))
        self.box_tower = nn.ModuleList(tower() for _ in range(levels))
        self.classes = nn.ModuleList(nn.Conv2d(width, classes, 1) for _ in range(levels))
        self.boxes = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in range(levels))
        for conv in self.classes:
            nn.init.constant_(conv.bias, -4.6)  # prior probability 0.01
        for conv in self.boxes:
            nn.init.constant_(conv.bias, 1.5)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits [B, P, C], boxes xyxy in network pixels [B, P, 4] and point centres with
        their stride [P, 3], over all P points of all levels."""
        logits, boxes, points = [], [], []
        for i, (level, stride) in enumerate(zip(pyramid[1:], self.strides, strict=True)):
            height, width = level.shape[-2:]
            ys = (torch.arange(height, device=level.device, dtype=torch.float32) + 0.5) * stride
            xs = (torch.arange(width, device=level.device, dtype=torch.float32) + 0.5) * stride
            grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
            x, y = grid_x.reshape(-1), grid_y.reshape(-1)
            logits.append(self.classes[i](self.class_tower[i](level)).flatten(2).transpose(1, 2))
            sides = self.boxes[i](self.box_tower[i](level)).flatten(2).transpose(1, 2)
            sides = F.softplus(sides.float()) * stride
            low = torch.stack([x, y], -1) - sides[..., :2]
            high = torch.stack([x, y], -1) + sides[..., 2:]
            boxes.append(torch.cat([low, high], -1))
            points.append(torch.stack([x, y, torch.full_like(x, stride)], -1))
        return torch.cat(logits, 1), torch.cat(boxes, 1), torch.cat(points, 0)


class SegmentationHead(nn.Module):
    """Stride-4 logits from the sum of all pyramid levels (semantic FPN, Kirillov et al. 2019)."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.refine = nn.Sequential(_separable(inputs, width), _separable(width, width))
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """float [B, classes, H/4, W/4]."""
        size = pyramid[0].shape[-2:]
        total = pyramid[0]
        for level in pyramid[1:]:
            total = total + F.interpolate(level, size=size, mode="bilinear", align_corners=False)
        return self.classify(self.refine(total))
