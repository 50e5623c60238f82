"""U-Net and FPN heads of segmentation_models_pytorch on any trunk, for workstations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from distill.reference.pyramid import Levels, build_trunk
from distill.settings import FinetuneSettings
from distill.tasks.families import Family, plain, register_family


class Segmenter(nn.Module):
    """A trunk's pyramid, a decoder, and a classifier of its cells."""

    def __init__(self, trunk: str, decoder: Callable[[list[int]], Any], classes: int) -> None:
        super().__init__()
        self.trunk_name, self.trunk = trunk, build_trunk(trunk)
        self.levels = Levels(self.trunk)
        self.decoder = decoder(self.levels.channels)
        self.classify = nn.Conv2d(self.decoder.out_channels, classes, 3, padding=1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits [B, C, h, w] under ``segmentation`` of uint8 images [B, H, W, 3]."""
        height, width = image.shape[1:3]
        features = self.levels(self.trunk(image), (height, width))
        return {"segmentation": self.classify(self.decoder(features))}


class _Unet(nn.Module):
    """U-Net (Ronneberger et al. 2015) up to stride 2, its finest skip connection at stride 4."""

    widths = (256, 128, 64, 32)
    out_channels = widths[-1]

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.decoder = UnetDecoder([3, *channels], self.widths, n_blocks=len(self.widths))

    def forward(self, features: list[Tensor]) -> Tensor:
        finest = features[0]
        # The decoder takes only the size of the first map, that it is to reach.
        size = finest.new_empty(1, 1, finest.shape[-2] * 2, finest.shape[-1] * 2)
        decoded: Tensor = self.decoder([size, *features])
        return decoded


class _Segmenters(Family):
    tasks = ("segmentation",)

    @classmethod
    def losses(
        cls, model: nn.Module, batch: Mapping[str, Tensor], criteria: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        logits = cls.logits(model, batch["image"])
        return {"segmentation": criteria["segmentation"](logits, batch["mask"])}

    @classmethod
    @torch.no_grad()
    def outputs(cls, model: nn.Module, image: Tensor) -> dict[str, np.ndarray]:
        size = (image.shape[1] // 2, image.shape[2] // 2)
        logits = F.interpolate(cls.logits(model, image), size=size, mode="bilinear")
        confidence, mask = logits.softmax(1)[0].max(0)
        return plain({"mask": mask.to(torch.uint8), "mask_confidence": confidence})


@register_family("unet")
class Unet(_Segmenters):
    """U-Net."""

    @classmethod
    def build(
        cls, trunk: str, classes: Mapping[str, list[str]], settings: FinetuneSettings
    ) -> Segmenter:
        return Segmenter(trunk, _Unet, len(classes["segmentation"]))


@register_family("fpn")
class Fpn(_Segmenters):
    """Panoptic FPN's semantic branch (Kirillov et al. 2019)."""

    @classmethod
    def build(
        cls, trunk: str, classes: Mapping[str, list[str]], settings: FinetuneSettings
    ) -> Segmenter:
        def decoder(channels: list[int]) -> nn.Module:
            return FPNDecoder(channels, encoder_depth=len(channels))

        return Segmenter(trunk, decoder, len(classes["segmentation"]))
