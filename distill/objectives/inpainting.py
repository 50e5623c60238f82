"""Inpainting: the pixels of blocks that were cut out of an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightly.transforms.mae_transform import MAETransform
from pydantic import Field
from torch import Tensor, nn

from distill.encoders import Encoder
from distill.objectives.masking import block_mask, require_multiple
from distill.objectives.protocol import Objective, ObjectiveOptions, Views, register_objective

_GRID = (8, 8)  # cells of which blocks are made


class InpaintingOptions(ObjectiveOptions):
    """Hyper-parameters of inpainting; a quarter of the image is cut out, as in the paper."""

    min_scale: float = Field(0.4, gt=0, le=1, description="smallest crop, as share of the area")
    mask_ratio: float = Field(0.25, gt=0, lt=1)
    decoder_width: int = Field(256, ge=8)


class _Decoder(nn.Module):
    """A dense map [B, C, h, w] and a pooled vector [B, D] to pixels [B, 3, h * stride, ...].

    The paper joins distant cells by a fully connected layer per channel, which is for one image
    size; here every cell is given the pooled vector, which is for any. Up-convolutions follow.
    """

    def __init__(self, encoder: Encoder, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inner = encoder.dense_channels + encoder.channels
        for factor in _prime_factors(encoder.stride):
            layers += [
                nn.Conv2d(inner, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.ConvTranspose2d(width, width, factor, factor),
            ]
            inner, width = width, max(width // 2, 16)
        self.layers = nn.Sequential(*layers, nn.ReLU(inplace=True), nn.Conv2d(inner, 3, 3, 1, 1))

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        everywhere = pooled[:, :, None, None].expand(-1, -1, *dense.shape[-2:])
        pixels: Tensor = self.layers(torch.cat([dense, everywhere], dim=1))
        return pixels


def _prime_factors(number: int) -> list[int]:
    factors, factor = [], 2
    while number > 1:
        while number % factor == 0:
            factors.append(factor)
            number //= factor
        factor += 1
    return factors


@register_objective("inpainting")
class Inpainting(Objective):
    """Context encoder: squared error of blocks cut out and painted in the mean colour.

    Pathak et al. 2016, "Context Encoders: Feature Learning by Inpainting", section 3.3, random
    blocks. Without the adversarial term, as in their own feature learning (section 5.2). Takes any
    trunk.
    """

    kind = "pretext"
    Options = InpaintingOptions
    options: InpaintingOptions

    def __init__(self, encoder: Encoder, options: InpaintingOptions) -> None:
        super().__init__(encoder, options)
        self.decoder = _Decoder(encoder, options.decoder_width)

    @classmethod
    def views(  # type: ignore[override]
        cls, options: InpaintingOptions, size: tuple[int, int], encoder: Encoder
    ) -> Views:
        """One crop, normalised, and its mask, bool [8, 8].

        Raises:
            InputError: the size is not made of whole cells of the trunk.
        """
        require_multiple(size, encoder, "inpainting")
        normalise = {"mean": list(encoder.mean), "std": list(encoder.std)}
        crop = MAETransform(size, options.min_scale, normalise)
        return lambda image: [*crop(image), block_mask(_GRID, options.mask_ratio)]

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """Mean squared error over cut-out pixels of images [B, 3, H, W], masks [B, 8, 8]."""
        image, mask = batch
        hole = F.interpolate(mask[:, None].float(), size=image.shape[-2:], mode="nearest")
        # Zero is the mean colour of normalised images.
        predicted = self.decoder(*self.encoder(image * (1 - hole))).float()
        error = (predicted - image.float()).square() * hole
        return {"loss": error.sum() / (hole.sum() * image.shape[1])}
