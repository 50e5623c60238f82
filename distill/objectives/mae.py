"""MAE: normalised pixels of hidden patches, from a transformer that sees the others only."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightly.models.utils import (
    get_2d_sine_cosine_positional_embedding_from_grid,
    get_at_index,
    normalize_mean_var,
    set_at_index,
)
from lightly.transforms.mae_transform import MAETransform
from pydantic import Field
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from distill.encoders import Encoder
from distill.objectives.masking import require_multiple
from distill.objectives.protocol import Objective, ObjectiveOptions, Views, register_objective
from edge_runtime.errors import InputError


class MAEOptions(ObjectiveOptions):
    """Hyper-parameters of MAE; the decoder is the paper's, 8 blocks of width 512."""

    min_scale: float = Field(0.2, gt=0, le=1, description="smallest crop, as share of the area")
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    decoder_width: int = Field(512, ge=16, multiple_of=16)
    decoder_depth: int = Field(8, ge=1)
    decoder_heads: int = Field(16, ge=1)


class _Keep(nn.Module):
    """Takes the place of timm's patch dropout: keeps the chosen patches, all where none are."""

    chosen: Tensor | None = None

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, tokens: Tensor) -> Tensor:
        if self.chosen is None:
            return tokens
        patches = get_at_index(tokens[:, self.prefix :], self.chosen)
        return torch.cat([tokens[:, : self.prefix], patches], dim=1)


class _Decoder(nn.Module):
    """Encoded visible patches to pixels of all patches.

    lightly's decoder is for one square grid that is known when it is built; this one adds the
    position of whatever grid it meets.
    """

    def __init__(self, encoder: Encoder, options: MAEOptions) -> None:
        super().__init__()
        width = options.decoder_width
        self.embed = nn.Linear(encoder.dense_channels, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.blocks = nn.Sequential(
            *[
                Block(width, options.decoder_heads, qkv_bias=True)
                for _ in range(options.decoder_depth)
            ]
        )
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, 3 * encoder.stride**2)

    def forward(self, visible: Tensor, keep: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pixels [B, h * w, 3 * patch**2] from tokens [B, n, C] of the patches ``keep`` [B, n]."""
        tokens = self.embed(visible)
        whole = self.mask_token.to(tokens.dtype).repeat(len(tokens), grid[0] * grid[1], 1)
        whole = set_at_index(whole, keep, tokens) + _positions(grid, whole.shape[-1]).to(whole)
        pixels: Tensor = self.predict(self.norm(self.blocks(whole)))
        return pixels


@lru_cache(maxsize=8)
def _positions(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed sine-cosine embedding [1, h * w, width] of a grid."""
    rows, columns = np.mgrid[: grid[0], : grid[1]].astype(np.float32)
    table = get_2d_sine_cosine_positional_embedding_from_grid(width, np.stack([columns, rows]))
    return torch.from_numpy(table).float()[None]


@register_objective("mae")
class MAE(Objective):
    """Masked autoencoder.

    He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners": most patches are left out of
    the encoder, a small decoder predicts the pixels of those, each patch normalised by its own mean
    and variance (section 4.1). The loss is on hidden patches only.
    """

    kind = "masked"
    Options = MAEOptions
    options: MAEOptions

    def __init__(self, encoder: Encoder, options: MAEOptions) -> None:
        super().__init__(encoder, options)
        if options.decoder_width % options.decoder_heads:
            raise InputError(
                f"options.decoder_width={options.decoder_width} cannot be divided among "
                f"{options.decoder_heads} heads; change one of them"
            )
        self.decoder = _Decoder(encoder, options)

    @classmethod
    def check(cls, encoder: Encoder) -> None:
        """Refuses trunks that cannot leave patches out.

        Raises:
            InputError: the trunk is not one of timm's plain vision transformers.
        """
        if not isinstance(encoder.model, VisionTransformer):
            raise InputError(
                f"mae leaves patches out of the trunk, which {encoder.spec.name} cannot; take a "
                "plain vision transformer of timm (vit_*, deit_*), or the method simmim"
            )

    @classmethod
    def views(  # type: ignore[override]
        cls, options: MAEOptions, size: tuple[int, int], encoder: Encoder
    ) -> Views:
        """One crop, normalised, and an order of its patches [h * w], the visible ones first.

        Raises:
            InputError: the size is not made of whole patches.
        """
        require_multiple(size, encoder, "mae")
        normalise = {"mean": list(encoder.mean), "std": list(encoder.std)}
        crop = MAETransform(size, options.min_scale, normalise)
        count = (size[0] // encoder.stride) * (size[1] // encoder.stride)
        return lambda image: [*crop(image), torch.randperm(count)]

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """Mean squared error over hidden patches of normalised images [B, 3, H, W]."""
        image, order = batch
        visible = max(1, int(order.shape[1] * (1 - self.options.mask_ratio)))
        return {"loss": self.error(image, order[:, :visible], order[:, visible:])}

    def error(self, image: Tensor, keep: Tensor, hidden: Tensor) -> Tensor:
        """The loss for given indices of visible [B, n] and hidden [B, m] patches."""
        patch = self.encoder.stride
        grid = (image.shape[-2] // patch, image.shape[-1] // patch)
        predicted = self.decoder(self.visible(image, keep), keep, grid)
        # pixel_unshuffle is the inverse of the pixel shuffle that makes an image of patches.
        target = F.pixel_unshuffle(image.float(), patch).flatten(2).transpose(1, 2)
        target = normalize_mean_var(get_at_index(target, hidden))
        return F.mse_loss(get_at_index(predicted, hidden).float(), target)

    def visible(self, image: Tensor, keep: Tensor) -> Tensor:
        """Encoded patch tokens [B, n, C] of a trunk that was given the patches ``keep`` only."""
        model: Any = self.encoder.model
        dropout, prefix = model.patch_drop, model.num_prefix_tokens
        model.patch_drop = _Keep(prefix)
        model.patch_drop.chosen = keep
        try:
            tokens: Tensor = model.forward_features(image)
        finally:
            model.patch_drop = dropout
        return tokens[:, prefix:]
