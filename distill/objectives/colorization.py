"""Colorization: the colours of a grey image, as classes of quantised chroma."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from lightly.utils.dist import world_size
from pydantic import Field
from torch import Tensor, nn
from torchvision.transforms import v2 as T

from distill.encoders import Encoder
from distill.objectives.masking import require_multiple
from distill.objectives.protocol import Objective, ObjectiveOptions, Views, register_objective

_STEP = 10.0  # side of a bin in the ab plane of CIE Lab
_SIGMA = 5.0  # of the Gaussians that spread a colour over bins, and that smooth the prior
_NEIGHBOURS = 5


class ColorizationOptions(ObjectiveOptions):
    """Hyper-parameters of colorization."""

    min_scale: float = Field(0.3, gt=0, le=1, description="smallest crop, as share of the area")
    uniform: float = Field(
        0.5, ge=0, le=1, description="share of the uniform distribution in what rebalances classes"
    )
    width: int = Field(128, ge=8, description="channels before the classes")
    prior_momentum: float = Field(0.99, ge=0, lt=1)


@lru_cache(maxsize=1)
def chroma_bins() -> Tensor:
    """Centres [Q, 2] of the cells of the ab plane, 10 apart, that RGB colours lie in.

    Those are 261, by OpenCV's Lab under D65; the paper counts 313.
    """
    level = np.arange(0, 256, 3, dtype=np.float32) / 255
    colours = np.stack(np.meshgrid(level, level, level), axis=-1).reshape(1, -1, 3)
    ab = cv2.cvtColor(colours, cv2.COLOR_RGB2Lab)[0, :, 1:]
    return torch.from_numpy(np.unique(np.round(ab / _STEP), axis=0) * _STEP).float()


def soft_bins(ab: Tensor, bins: Tensor) -> Tensor:
    """Colours [N, 2] as weights [N, Q] of their five nearest bins, summing to 1.

    Zhang et al. 2016, section 2.1: Gaussian weights with sigma 5.
    """
    out = ab.new_zeros(len(ab), len(bins))
    for part, rows in zip(ab.split(65536), out.split(65536), strict=True):
        distance, index = torch.cdist(part, bins).topk(_NEIGHBOURS, dim=1, largest=False)
        weight = (distance.square() / (-2 * _SIGMA**2)).softmax(1)
        rows.scatter_(1, index, weight)
    return out


class _GreyAndColour:
    """An image to its lightness as a grey RGB image and its chroma at the resolution predicted."""

    def __init__(self, scale: float, size: tuple[int, int], encoder: Encoder, cell: int) -> None:
        self.crop = T.Compose(
            [T.RandomResizedCrop(size, (scale, 1.0), antialias=True), T.RandomHorizontalFlip()]
        )
        self.normalise = T.Normalize(list(encoder.mean), list(encoder.std))
        self.coarse = (size[1] // cell, size[0] // cell)

    def __call__(self, image: Tensor) -> list[Tensor]:
        colour = self.crop(image).permute(1, 2, 0).numpy().astype(np.float32) / 255
        lab = cv2.cvtColor(colour, cv2.COLOR_RGB2Lab)
        grey = cv2.cvtColor(lab * np.array([1, 0, 0], np.float32), cv2.COLOR_Lab2RGB)
        ab = cv2.resize(lab[..., 1:], self.coarse, interpolation=cv2.INTER_AREA)
        view = self.normalise(torch.from_numpy(grey).permute(2, 0, 1).contiguous())
        return [view, torch.from_numpy(ab).permute(2, 0, 1).contiguous()]


@register_objective("colorization")
class Colorization(Objective):
    """Cross-entropy over quantised chroma, rare colours weighted up.

    Zhang et al. 2016, "Colorful Image Colorization", sections 2.1 and 2.2. The distribution of
    colours that rebalances the classes is averaged over the training batches, where the paper
    counts ImageNet once. Takes any trunk, which sees grey images with three equal channels.
    """

    kind = "pretext"
    Options = ColorizationOptions
    options: ColorizationOptions
    bins: Tensor
    prior: Tensor

    def __init__(self, encoder: Encoder, options: ColorizationOptions) -> None:
        super().__init__(encoder, options)
        self.register_buffer("bins", chroma_bins(), persistent=False)
        count = len(self.bins)
        self.register_buffer("prior", torch.full((count,), 1 / count))
        up = encoder.stride // colour_cell(encoder)
        self.head = nn.Sequential(
            nn.Conv2d(encoder.dense_channels, options.width * up**2, 1),
            nn.PixelShuffle(up),
            nn.ReLU(inplace=True),
            nn.Conv2d(options.width, count, 1),
        )

    @classmethod
    def views(  # type: ignore[override]
        cls, options: ColorizationOptions, size: tuple[int, int], encoder: Encoder
    ) -> Views:
        """One grey crop, normalised, and its chroma ab [2, H / cell, W / cell].

        Raises:
            InputError: the size is not made of whole cells of the trunk.
        """
        require_multiple(size, encoder, "colorization")
        return _GreyAndColour(options.min_scale, size, encoder, colour_cell(encoder))

    def weights(self) -> Tensor:
        """Weight of each class [Q], with expectation 1 under the smoothed prior (equation 4)."""
        near = torch.cdist(self.bins, self.bins).square().div(-2 * _SIGMA**2).exp()
        smooth = self.prior @ (near / near.sum(1, keepdim=True))
        uniform = self.options.uniform
        weight = 1 / ((1 - uniform) * smooth + uniform / len(smooth))
        return weight / (weight * smooth).sum()

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """Loss of grey images [B, 3, H, W] and their chroma [B, 2, h, w]."""
        grey, ab = batch
        logits = self.head(self.encoder(grey)[0]).float()
        target = soft_bins(ab.float().permute(0, 2, 3, 1).flatten(0, 2), self.bins)
        if self.training:
            self._observe(target)
        entropy = F.cross_entropy(
            logits.permute(0, 2, 3, 1).flatten(0, 2), target, reduction="none"
        )
        return {"loss": (self.weights()[target.argmax(1)] * entropy).mean()}

    @torch.no_grad()
    def _observe(self, target: Tensor) -> None:
        seen = target.mean(0)
        if world_size() > 1:
            torch.distributed.all_reduce(seen)
            seen /= world_size()
        self.prior.lerp_(seen, 1 - self.options.prior_momentum)


def colour_cell(encoder: Encoder) -> int:
    """Pixels a side that share one predicted colour: 4, as in the paper, where that is possible."""
    return 4 if encoder.stride % 4 == 0 else encoder.stride
