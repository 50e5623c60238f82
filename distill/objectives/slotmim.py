"""SlotMIM: masked modelling of prototypes that group patches into objects, for robot data."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightly.models.modules.center import Center
from lightly.models.modules.heads import ProjectionHead
from lightly.utils.dist import world_size
from pydantic import Field
from torch import Tensor, nn

from distill.encoders import Encoder
from distill.objectives.masking import MaskFill, require_multiple
from distill.objectives.momentum import MomentumObjective, MomentumOptions, momentum_copy
from distill.objectives.protocol import Views, register_objective
from distill.objectives.ranks import gathered, own_rows
from distill.objectives.schedules import linear_warmup
from distill.objectives.slotmim_views import AlignedViews, aligned
from distill.objectives.views import ViewOptions


class SlotMIMOptions(ViewOptions, MomentumOptions):
    """Hyper-parameters of SlotMIM; the defaults are those of the authors' training scripts."""

    prototypes: int = Field(512, ge=2, description="few: objects; many: parts")
    hidden: int = Field(2048, ge=8)
    width: int = Field(256, ge=8)
    batch_norm: bool = Field(False, description="in the projector; helps convolutional trunks")
    mask_ratio: float = Field(0.3, gt=0, lt=1)
    student_temperature: float = Field(0.1, gt=0)
    teacher_temperature: tuple[float, float] = Field((0.04, 0.07), description="start and end")
    temperature_warmup: float = Field(0.0625, gt=0, le=1, description="share of the training")
    slot_temperature: float = Field(0.2, gt=0)
    patch_weight: float = Field(0.5, ge=0, le=1, description="of patch losses; the rest: slots")
    center_momentum: float = Field(0.9, ge=0, lt=1)
    freeze: float = Field(0.004, ge=0, lt=1, description="share in which prototypes stay")


class _Grouping(nn.Module):
    """A projector of dense features, and prototypes that they are compared with."""

    def __init__(self, channels: int, options: SlotMIMOptions) -> None:
        super().__init__()
        hidden, width = options.hidden, options.width
        norms = [nn.BatchNorm1d(hidden) if options.batch_norm else None for _ in range(2)]
        self.projector = ProjectionHead(
            [
                (channels, hidden, norms[0], nn.GELU()),
                (hidden, hidden, norms[1], nn.GELU()),
                (hidden, width, None, None),
            ]
        )
        # Without biases at the start, which would point all patches the same way.
        for module in self.projector.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.prototypes = nn.Parameter(torch.randn(options.prototypes, width))

    def forward(self, dense: Tensor, moving: bool = True) -> tuple[Tensor, Tensor]:
        """Projections [B, E, h, w] and cosines with the prototypes [B, K, h, w]."""
        batch, channels = dense.shape[:2]
        rows = self.projector(dense.permute(0, 2, 3, 1).reshape(-1, channels))
        tokens = rows.unflatten(0, (batch, -1))
        # Prototypes that stay have a gradient of zero: none at all would stall other processes.
        prototypes = self.prototypes * moving + self.prototypes.detach() * (not moving)
        cosines = F.normalize(tokens, dim=-1) @ F.normalize(prototypes, dim=-1).T
        grid = dense.shape[-2:]
        return (
            tokens.transpose(1, 2).unflatten(2, grid),
            cosines.transpose(1, 2).unflatten(2, grid),
        )


@register_objective("slotmim")
class SlotMIM(MomentumObjective):
    """Patches of two views are assigned to prototypes; what a prototype holds makes a slot.

    Wen et al. 2025, "A Data-Centric Revisit of Pre-Trained Vision Models for Robot Learning",
    section 3: the student, which sees masked views, matches the momentum teacher's assignments of
    hidden patches and of the other view's patches at the same place, and slots are contrasted
    across views. Takes transformers and, with masks on the image, convolutional trunks.
    """

    kind = "masked"
    Options = SlotMIMOptions
    options: SlotMIMOptions

    def __init__(self, encoder: Encoder, options: SlotMIMOptions) -> None:
        super().__init__(encoder, options)
        self.grouping = _Grouping(encoder.dense_channels, options)
        self.teacher = momentum_copy(encoder)
        self.teacher_grouping = momentum_copy(self.grouping)
        self.fill = MaskFill(encoder)
        width = options.width
        self.predictor = ProjectionHead(
            [(width, options.hidden, None, nn.GELU()), (options.hidden, width, None, None)]
        )
        self.center = Center((1, options.prototypes, 1, 1), momentum=options.center_momentum)
        self.temperature, self.moving = options.teacher_temperature[0], True

    @classmethod
    def views(  # type: ignore[override]
        cls, options: SlotMIMOptions, size: tuple[int, int], encoder: Encoder
    ) -> Views:
        """Two views with the region that they share and their masks.

        Raises:
            InputError: the size is not made of whole cells of the trunk.
        """
        require_multiple(size, encoder, "slotmim")
        return AlignedViews(options, options.mask_ratio, size, encoder)

    def begin_step(self, progress: float) -> None:
        """Temperature of the teacher, and whether prototypes move."""
        o = self.options
        self.temperature = linear_warmup(progress, o.temperature_warmup, *o.teacher_temperature)
        self.moving = progress >= o.freeze

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Trunk and grouping."""
        return [(self.encoder, self.teacher), (self.grouping, self.teacher_grouping)]

    def kept(self) -> Encoder:
        """The teacher's trunk."""
        return self.teacher  # type: ignore[return-value]

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """Losses of ``AlignedViews``' batch; ``slots`` is how many an image has on average."""
        images, regions, masks = batch[:2], batch[2:4], batch[4:]
        with torch.no_grad():
            seen = [self.teacher_grouping(self.teacher(image)[0]) for image in images]
        guessed = [
            self.grouping(self.encoder(self.fill(image, mask))[0], self.moving)
            for image, mask in zip(images, masks, strict=True)
        ]
        masked, cross, slots = [], [], []
        for own, other in ((0, 1), (1, 0)):
            entropy = self._entropy(guessed[own][1], seen[own][1])
            masked.append(entropy[masks[own]].mean())
            pair = [
                aligned(s[1], r)
                for s, r in ((guessed[own], regions[own]), (seen[other], regions[other]))
            ]
            cross.append(self._entropy(*pair).mean())
            slots.append(self._contrast(guessed[own], seen[other]))
        if self.training:
            self.center.update(torch.cat([cosines for _, cosines in seen]))
        terms = {
            k: torch.stack(v).mean()
            for k, v in (("masked", masked), ("cross", cross), ("slot", slots))
        }
        weight = self.options.patch_weight
        loss = weight * (terms["masked"] + terms["cross"]) + (1 - weight) * terms["slot"]
        found = torch.stack([occupied(cosines).sum(1).float().mean() for _, cosines in seen])
        return {"loss": loss, **terms, "slots": found.mean()}

    def _entropy(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Cross-entropy of prototype assignments per cell, [B, h, w]."""
        with torch.no_grad():
            target = ((teacher - self.center.value) / self.temperature).float().softmax(1)
        logits = (student / self.options.student_temperature).float().log_softmax(1)
        return -(target * logits).sum(1)

    def _contrast(self, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
        """InfoNCE of the slots that both views have, against those of all images and processes."""
        tau = self.options.slot_temperature
        query, key = slots_of(*student, self.temperature), slots_of(*teacher, self.temperature)
        there = occupied(teacher[1])
        both = (there & occupied(student[1])).flatten()
        keys = F.normalize(gathered(key.flatten(0, 1)), dim=1)
        exists = gathered(there.flatten())
        queries = F.normalize(self.predictor(query.flatten(0, 1)[both]), dim=1)
        logits = (queries @ keys.T / tau).float().masked_fill(~exists, -torch.inf)
        target = own_rows(len(both), both.device)[both]
        total = F.cross_entropy(logits, target, reduction="sum") * (2 * tau)
        # The mean over slots of all processes, which have different numbers of them.
        count = both.sum().float()
        if world_size() > 1:
            torch.distributed.all_reduce(count)
        return total * world_size() / count.clamp(min=1)

    @torch.no_grad()
    def assign(self, image: Tensor) -> Tensor:
        """The teacher's cosines with the prototypes [B, K, h, w] of normalised images."""
        cosines: Tensor = self.teacher_grouping(self.teacher(image)[0])[1]
        return cosines


def slots_of(tokens: Tensor, cosines: Tensor, temperature: float) -> Tensor:
    """Per prototype the mean of the tokens assigned to it, [B, K, E].

    Args:
        tokens: projections [B, E, h, w].
        cosines: [B, K, h, w].
    """
    share = (cosines / temperature).softmax(1).flatten(2) + 1e-6
    share = share / share.sum(2, keepdim=True)
    return share @ tokens.flatten(2).transpose(1, 2)


def occupied(cosines: Tensor) -> Tensor:
    """Bool [B, K]: prototypes that are the nearest of at least one cell."""
    nearest = cosines.flatten(2).argmax(1)
    return torch.zeros(cosines.shape[:2], dtype=torch.bool, device=cosines.device).scatter_(
        1, nearest, True
    )
