"""Rotation: which of four quarter turns an image was given."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightly.transforms.mae_transform import MAETransform
from pydantic import Field
from torch import Tensor, nn

from distill.encoders import Encoder
from distill.objectives.protocol import Objective, ObjectiveOptions, Views, register_objective
from edge_runtime.errors import InputError


class RotationOptions(ObjectiveOptions):
    """Hyper-parameters of rotation."""

    min_scale: float = Field(0.4, gt=0, le=1, description="smallest crop, as share of the area")


@register_objective("rotation")
class Rotation(Objective):
    """Predicts the rotation of an image from its pooled features.

    Gidaris et al. 2018, "Unsupervised Representation Learning by Predicting Image Rotations":
    all four rotations of every image are in one batch (section 2.2), which they found better than
    one drawn at random. Takes any trunk.
    """

    kind = "pretext"
    Options = RotationOptions
    options: RotationOptions

    def __init__(self, encoder: Encoder, options: RotationOptions) -> None:
        super().__init__(encoder, options)
        self.head = nn.Linear(encoder.channels, 4)

    @classmethod
    def views(  # type: ignore[override]
        cls, options: RotationOptions, size: tuple[int, int], encoder: Encoder
    ) -> Views:
        """One crop, normalised.

        Raises:
            InputError: the size is not square, so that its quarter turns differ in shape.
        """
        if size[0] != size[1]:
            raise InputError(
                f"rotation needs square images, not {size[0]}x{size[1]}; "
                f"give size=[{min(size)},{min(size)}]"
            )
        normalise = {"mean": list(encoder.mean), "std": list(encoder.std)}
        return MAETransform(size, options.min_scale, normalise)

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """Cross-entropy and accuracy over the four turns of images [B, 3, H, H]."""
        turned, label = four_turns(batch[0])
        logits = self.head(self.encoder.pooled(turned)).float()
        return {
            "loss": F.cross_entropy(logits, label),
            "accuracy": (logits.argmax(1) == label).float().mean(),
        }


def four_turns(image: Tensor) -> tuple[Tensor, Tensor]:
    """Images [4 B, 3, H, H] turned k = 0, 1, 2, 3 quarters counter-clockwise, and k [4 B]."""
    turned = torch.cat([torch.rot90(image, k, (2, 3)) for k in range(4)])
    return turned, torch.arange(4, device=image.device).repeat_interleave(len(image))
