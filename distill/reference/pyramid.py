"""Feature maps at strides 4, 8, 16 and 32 of any timm model, for the workstation's heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.encoders import Encoder, EncoderSpec
from edge_runtime.errors import InputError
from edge_runtime.student import Trunk

STRIDES = (4, 8, 16, 32)
_WIDTH = 192  # channels of a transformer's pyramid


class TokenTrunk(nn.Module):
    """A transformer as a trunk: its patch grid is one map."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        mean, std = torch.tensor(encoder.mean), torch.tensor(encoder.std)
        self.register_buffer("mean", mean.view(1, 3, 1, 1) * 255, False)
        self.register_buffer("std", std.view(1, 3, 1, 1) * 255, False)

    @property
    def body(self) -> nn.Module:
        """The timm model, as a student's trunk has it."""
        return self.encoder.model

    def forward(self, image: Tensor) -> Tensor:
        """Dense map [B, D, h, w] of uint8 or float images [B, H, W, 3]."""
        x = (image.permute(0, 3, 1, 2).float() - self.mean) / self.std
        dense: Tensor = self.encoder(x)[0]
        return dense


def build_trunk(name: str) -> nn.Module:
    """A student's trunk where timm gives a pyramid of the model, else a transformer.

    Raises:
        InputError: the model is neither.
    """
    try:
        return Trunk(name)
    except InputError:
        encoder = Encoder(EncoderSpec(name))
        if not encoder.is_vit:
            raise
        return TokenTrunk(encoder)


class Levels(nn.Module):
    """Maps at ``STRIDES`` of what a trunk gives; a transformer's single map is resized, convolved.

    One map is enough for a plain transformer: ViTDet's simple pyramid (Li et al. 2022, section 3).

    Attributes:
        channels: of the four maps.
    """

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.channels: list[int] = [_WIDTH] * len(STRIDES)
        self.maps: nn.ModuleList | None = None
        if isinstance(trunk, TokenTrunk):
            self.maps = nn.ModuleList(_level(trunk.encoder.dense_channels) for _ in STRIDES)
        else:
            self.channels = list(trunk.channels)

    def forward(self, given: Any, size: tuple[int, int]) -> list[Tensor]:
        """Maps [B, C, H / s, W / s] from the trunk's output for images of ``size`` (H, W)."""
        if self.maps is None:
            features: list[Tensor] = given[0]
            return features
        sizes = [(max(size[0] // s, 1), max(size[1] // s, 1)) for s in STRIDES]
        return [
            level(F.interpolate(given, size=s, mode="bilinear", align_corners=False))
            for level, s in zip(self.maps, sizes, strict=True)
        ]


def _level(inputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, _WIDTH, 1, bias=False),
        nn.GroupNorm(1, _WIDTH),
        nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, bias=False),
        nn.GroupNorm(1, _WIDTH),
    )
