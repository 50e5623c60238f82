"""DINOv2: self-distillation of images and of hidden cells, spread evenly over the sphere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightly.loss import KoLeoLoss
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.encoders import Encoder
from distill.objectives.masking import MaskFill, block_mask, require_multiple
from distill.objectives.momentum import MomentumObjective, momentum_copy
from distill.objectives.protocol import Views, register_objective
from distill.objectives.prototypes import PrototypeHead, PrototypeOptions, assign
from distill.objectives.ranks import gathered
from distill.objectives.views import MultiCrop
from edge_runtime.errors import InputError


class DinoV2Options(PrototypeOptions):
    """Settings of section 4 and appendix B.1; the heads of images and of cells are untied."""

    momentum: float = Field(0.992, ge=0, lt=1)
    min_scale: float = Field(0.32, gt=0, le=1)
    local_scale: tuple[float, float] = (0.05, 0.32)
    local_views: int = Field(8, ge=0)
    norm_last_layer: bool = False
    patch_weight: float = Field(1.0, ge=0, description="of hidden cells: iBOT")
    koleo_weight: float = Field(0.1, ge=0, description="of the spread of images: KoLeo")
    mask_ratio: tuple[float, float] = Field((0.1, 0.5), description="smallest and largest share")

    @model_validator(mode="after")
    def _ordered(self) -> DinoV2Options:
        low, high = self.mask_ratio
        if not 0 < low <= high < 1:
            raise ValueError(f"mask_ratio must rise within 0 and 1, got {low} to {high}")
        return self


class MaskedCrops(MultiCrop):
    """Two global views, local ones, and per global view what the student does not see of it.

    Masks are bool [h, w] in cells of the dense map. One of the two, drawn at random, hides a random
    share in rectangles, the other nothing: half of the global views are masked (section 4).
    """

    def __init__(self, options: DinoV2Options, size: tuple[int, int], encoder: Encoder) -> None:
        super().__init__(options, size, encoder)
        self.grid = (size[0] // encoder.stride, size[1] // encoder.stride)
        self.ratio = options.mask_ratio

    def __call__(self, image: Tensor) -> list[Tensor]:
        low, high = self.ratio
        mask = block_mask(self.grid, low + (high - low) * float(torch.rand(())))
        masks = [mask, torch.zeros_like(mask)]
        return super().__call__(image) + (masks if torch.rand(()) < 0.5 else masks[::-1])


@register_objective("dinov2")
class DinoV2(MomentumObjective):
    """DINO, iBOT and KoLeo together (Oquab et al. 2023, section 4).

    The student matches the teacher's assignment of other views of an image (DINO), and the
    teacher's assignment of cells that are hidden from the student (iBOT, Zhou et al. 2022, section
    3.2). Assignments are balanced by Sinkhorn-Knopp. KoLeo pushes every image from its nearest
    neighbour in the batch of all processes (Sablayrolles et al. 2019). The momentum teacher is
    kept. Convolutional trunks have no tokens: their hidden cells show a learned colour instead.
    """

    kind = "self-distillation"
    Options = DinoV2Options
    options: DinoV2Options

    def __init__(self, encoder: Encoder, options: DinoV2Options) -> None:
        super().__init__(encoder, options)
        self.fill = MaskFill(encoder)
        self.head = PrototypeHead(encoder.channels, options)
        self.patch_head = PrototypeHead(encoder.dense_channels, options)
        self.teacher = momentum_copy(encoder)
        self.teacher_head = momentum_copy(self.head)
        self.teacher_patch_head = momentum_copy(self.patch_head)
        self.koleo = KoLeoLoss()
        self.begin_step(0.0)

    @classmethod
    def views(  # type: ignore[override]
        cls, options: DinoV2Options, size: tuple[int, int], encoder: Encoder
    ) -> Views:
        """Two global views, some local ones, and two masks.

        Raises:
            InputError: the size has no whole number of cells, or fewer than two a side.
        """
        require_multiple(size, encoder, "dinov2")
        if min(size) < 2 * encoder.stride:
            raise InputError(
                f"dinov2 hides cells of a dense map, and {encoder.spec.name} makes one cell of "
                f"{encoder.stride} pixels a side: give a size of at least {2 * encoder.stride}, a "
                "transformer, or a ResNet with encoder_args output_stride: 8"
            )
        return MaskedCrops(options, size, encoder)

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Encoder and both heads."""
        return [
            (self.encoder, self.teacher),
            (self.head, self.teacher_head),
            (self.patch_head, self.teacher_patch_head),
        ]

    def kept(self) -> Encoder:
        """The teacher."""
        return self.teacher

    def begin_step(self, progress: float) -> None:
        """Sets the teacher's temperature, and whether the prototypes rest."""
        self.temperature = self.options.temperature_at(progress)
        self.head.held = self.patch_head.held = progress < self.options.freeze_last_layer

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """The terms for global views [B, 3, H, W], smaller ones, and two masks [B, h, w]."""
        wide, local, mask = torch.cat(batch[:2]), batch[2:-2], torch.cat(batch[-2:])
        dense, pooled = self.encoder(self.fill(wide, mask))
        with torch.no_grad():
            taught_dense, taught_pooled = self.teacher(wide)
            taught = assign(self.teacher_head(taught_pooled), self.temperature).chunk(2)
            cells = assign(self.teacher_patch_head(_hidden(taught_dense, mask)), self.temperature)
        learnt = list(self.head(pooled).chunk(2))
        if local:
            learnt += self.head(self.encoder.pooled(torch.cat(local))).chunk(len(local))
        image = self._between_views(taught, learnt)
        patch = self._cross_entropy(cells, self.patch_head(_hidden(dense, mask)))
        # Every masked image counts the same, however much of it is hidden (iBOT, equation 2).
        per_image = mask.flatten(1).sum(1)
        weight = (1.0 / per_image.clamp(min=1)).repeat_interleave(per_image)
        patch = (patch * weight).sum() / (per_image > 0).sum().clamp(min=1)
        koleo = torch.stack([self.koleo(gathered(p.float())) for p in pooled.chunk(2)]).sum()
        o = self.options
        loss = image + o.patch_weight * patch + o.koleo_weight * koleo
        return {"loss": loss, "image": image, "patch": patch, "koleo": koleo}

    def _between_views(self, taught: tuple[Tensor, ...], learnt: list[Tensor]) -> Tensor:
        """Mean cross-entropy over pairs of a teacher's view and another one of the student."""
        pairs = [
            self._cross_entropy(target, scores).mean()
            for i, target in enumerate(taught)
            for j, scores in enumerate(learnt)
            if i != j
        ]
        return torch.stack(pairs).mean()

    def _cross_entropy(self, target: Tensor, scores: Tensor) -> Tensor:
        """Of every row [N, K]."""
        log = F.log_softmax(scores.float() / self.options.student_temperature, dim=-1)
        return -(target * log).sum(-1)


def _hidden(dense: Tensor, mask: Tensor) -> Tensor:
    """Features [N, C] of the masked cells of dense maps [B, C, h, w]."""
    return dense.permute(0, 2, 3, 1)[mask]
