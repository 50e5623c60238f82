"""SimMIM: raw pixels of hidden cells from what is around them, for any trunk."""

from __future__ import annotations

import torch
from lightly.transforms.mae_transform import MAETransform
from pydantic import Field
from torch import Tensor

from distill.encoders import Encoder
from distill.objectives.masking import (
    MaskFill,
    PixelHead,
    at_pixels,
    random_mask,
    require_multiple,
)
from distill.objectives.protocol import Objective, ObjectiveOptions, Views, register_objective
from edge_runtime.errors import InputError


class SimMIMOptions(ObjectiveOptions):
    """Hyper-parameters of SimMIM; 60% of 32 px cells hidden at 224 px is the paper's choice."""

    min_scale: float = Field(0.67, gt=0, le=1, description="smallest crop, as share of the area")
    mask_ratio: float = Field(0.6, gt=0, lt=1)
    mask_cell: int = Field(32, ge=1, description="side of a hidden cell in pixels")


@register_objective("simmim")
class SimMIM(Objective):
    """L1 regression of hidden pixels by a linear head on the dense map.

    Xie et al. 2022, "SimMIM: a Simple Framework for Masked Image Modeling", section 3. The trunk
    sees whole images whose hidden cells hold a learned content, so that convolutional trunks can be
    trained, too, which cannot leave cells out as MAE does.
    """

    kind = "masked"
    Options = SimMIMOptions
    options: SimMIMOptions

    def __init__(self, encoder: Encoder, options: SimMIMOptions) -> None:
        super().__init__(encoder, options)
        self.fill = MaskFill(encoder)
        self.head = PixelHead(encoder)

    @classmethod
    def views(  # type: ignore[override]
        cls, options: SimMIMOptions, size: tuple[int, int], encoder: Encoder
    ) -> Views:
        """One crop, normalised, and its mask, bool [h, w].

        Raises:
            InputError: size, stride and ``mask_cell`` do not fit each other.
        """
        require_multiple(size, encoder, "simmim")
        cell = options.mask_cell
        patch = encoder.stride if encoder.is_vit else 1
        if cell % patch or any(side % cell for side in size) or max(size) == cell:
            raise InputError(
                f"simmim hides cells of {cell} px in images of {size[0]}x{size[1]} made of patches "
                f"of {patch} px; give options.mask_cell a multiple of {patch} that divides both "
                "sides, and is smaller"
            )
        normalise = {"mean": list(encoder.mean), "std": list(encoder.std)}
        crop = MAETransform(size, options.min_scale, normalise)
        grid = (size[0] // cell, size[1] // cell)
        return lambda image: [*crop(image), random_mask(grid, options.mask_ratio)]

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """Mean absolute error where masks [B, h, w] hide normalised images [B, 3, H, W]."""
        image, mask = batch
        predicted = self.head(self.encoder(self.fill(image, mask))[0]).float()
        hidden = at_pixels(mask, (image.shape[-2], image.shape[-1]))[:, None]
        difference = (predicted - image.float()).abs()
        error = torch.where(hidden, difference, 0).sum() / (hidden.sum() * image.shape[1])
        return {"loss": error}
