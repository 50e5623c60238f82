"""DenseCL: contrast every cell of one view with its counterpart in the other view."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import DenseCLProjectionHead
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.models.utils import select_most_similar
from pydantic import Field
from torch import Tensor, nn

from distill.encoders import Encoder
from distill.objectives.collapse import embedding_spread
from distill.objectives.momentum import MomentumObjective, MomentumOptions, momentum_copy
from distill.objectives.protocol import Views, register_objective
from distill.objectives.views import TwoViewObjective, ViewOptions
from edge_runtime.errors import InputError


class DenseClOptions(ViewOptions, MomentumOptions):
    """MoCo v2's views, queue and temperature, as in section 4.1."""

    min_scale: float = Field(0.2, gt=0, le=1)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    blur: tuple[float, float] = (0.5, 0.5)
    solarize: tuple[float, float] = (0.0, 0.0)
    momentum: float = Field(0.999, ge=0, lt=1)
    temperature: float = Field(0.2, gt=0)
    queue: int = Field(65536, ge=1, description="negatives, of the images seen last")
    hidden: int = Field(2048, ge=1, description="width of the hidden layer of both heads")
    projection: int = Field(128, ge=1)
    dense: float = Field(0.5, ge=0, le=1, description="weight of the dense term: lambda")
    grid: int = Field(7, ge=2, description="a larger dense map is averaged to this side")


class _Queue(MemoryBankModule):
    """The keys seen last, of all processes, in a checkpoint as well."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__((count, width), gather_distributed=True)
        _persist(self)


def _persist(bank: MemoryBankModule) -> None:
    # lightly leaves them out of the state: a resumed run would start on random negatives.
    bank.register_buffer("bank", bank.bank, persistent=True)
    bank.register_buffer("bank_ptr", bank.bank_ptr, persistent=True)


@register_objective("densecl")
class DenseCl(MomentumObjective, TwoViewObjective):
    """Dense contrastive learning (Wang et al. 2021, section 3, equations 1 to 4).

    The global term is MoCo v2's. In the dense term the positive of a cell is that cell of the other
    view whose features in the encoder are the most similar (section 3.3), and negatives are the
    averaged dense keys of other images (section 3.2). Only the first view has queries.
    """

    kind = "contrastive"
    Options = DenseClOptions
    options: DenseClOptions

    def __init__(self, encoder: Encoder, options: DenseClOptions) -> None:
        super().__init__(encoder, options)
        hidden, width = options.hidden, options.projection
        self.projector = DenseCLProjectionHead(encoder.channels, hidden, width)
        self.dense_projector = DenseCLProjectionHead(encoder.dense_channels, hidden, width)
        self.momentum_encoder = momentum_copy(encoder)
        self.momentum_projector = momentum_copy(self.projector)
        self.momentum_dense_projector = momentum_copy(self.dense_projector)
        self.criterion = NTXentLoss(
            options.temperature, (options.queue, width), gather_distributed=True
        )
        _persist(self.criterion.memory_bank)
        self.dense_queue = _Queue(options.queue, width)

    @classmethod
    def views(  # type: ignore[override]
        cls, options: DenseClOptions, size: tuple[int, int], encoder: Encoder
    ) -> Views:
        """Two views of an image.

        Raises:
            InputError: the dense map of such views would be a single cell.
        """
        if min(size) < 2 * encoder.stride:
            raise InputError(
                f"densecl contrasts the cells of a dense map, and {encoder.spec.name} has stride "
                f"{encoder.stride}: images of {size[0]}x{size[1]} give no more than one. Give size="
                f"[{2 * encoder.stride}, {2 * encoder.stride}] or larger, or a trunk of smaller "
                "stride (encoder_args output_stride: 8 of a ResNet, patch_size of a transformer)"
            )
        return super().views(options, size, encoder)

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Encoder and both projectors."""
        return [
            (self.encoder, self.momentum_encoder),
            (self.projector, self.momentum_projector),
            (self.dense_projector, self.momentum_dense_projector),
        ]

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """Both terms for two views, each [B, 3, H, W]."""
        cells, pooled = self._cells(self.encoder, batch[0])
        with torch.no_grad():
            key_cells, key_pooled = self._cells(self.momentum_encoder, batch[1])
            key = self.momentum_projector(key_pooled).float()
            dense_key = F.normalize(self.momentum_dense_projector(key_cells).float(), dim=-1)
            positive = select_most_similar(cells, key_cells, dense_key)
        whole = self.criterion(self.projector(pooled).float(), key)
        query = F.normalize(self.dense_projector(cells).float(), dim=-1)
        dense = self._contrast(query, positive, dense_key)
        weight = self.options.dense
        loss = (1 - weight) * whole + weight * dense
        spread = embedding_spread(key)
        return {"loss": loss, "global": whole, "dense": dense, "spread": spread}

    def _cells(self, encoder: Encoder, view: Tensor) -> tuple[Tensor, Tensor]:
        """Dense features as rows [B, cells, C], and pooled ones."""
        dense, pooled = encoder(view)
        side = [min(self.options.grid, s) for s in dense.shape[-2:]]
        return F.adaptive_avg_pool2d(dense, side).flatten(2).transpose(1, 2), pooled

    def _contrast(self, query: Tensor, positive: Tensor, keys: Tensor) -> Tensor:
        """InfoNCE of queries [B, cells, D], their positives, and the queue; queues ``keys``."""
        pooled = F.normalize(keys.mean(1), dim=-1)
        _, negatives = self.dense_queue(pooled, update=self.training)
        logits = torch.cat([(query * positive).sum(-1, keepdim=True), query @ negatives], dim=-1)
        logits = (logits / self.options.temperature).flatten(0, 1)
        return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))
