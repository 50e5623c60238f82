"""torchvision's Faster R-CNN and Mask R-CNN on any trunk, for workstations."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork

from distill.reference.pyramid import STRIDES, Levels, build_trunk
from distill.settings import FinetuneSettings
from distill.tasks.families import Family, plain, register_family
from edge_runtime.datasets import Dataset
from edge_runtime.errors import InputError

_WIDTH = 128  # channels of the pyramid network
_SMALLEST = 4  # anchors are so many strides wide


class _Backbone(nn.Module):
    """What torchvision's detectors take: named maps of one width."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.levels = Levels(trunk)
        self.fpn = FeaturePyramidNetwork(self.levels.channels, _WIDTH)
        self.out_channels = _WIDTH

    def forward(self, given: Any, size: tuple[int, int]) -> OrderedDict[str, Tensor]:
        maps = self.levels(given, size)
        named = OrderedDict((str(i), m) for i, m in enumerate(maps))
        found: OrderedDict[str, Tensor] = self.fpn(named)
        return found


class Detector(nn.Module):
    """A trunk and the two-stage head of Faster R-CNN (Ren et al. 2015) or Mask R-CNN (He et al.
    2017), through a feature pyramid network (Lin et al. 2017).

    torchvision's own resizing and normalisation are left out: images come at the network's size,
    the trunk normalises.
    """

    def __init__(self, trunk: str, kind: type[FasterRCNN], classes: int) -> None:
        super().__init__()
        self.trunk_name, self.trunk = trunk, build_trunk(trunk)
        self.backbone = _Backbone(self.trunk)
        anchors = AnchorGenerator(
            tuple((_SMALLEST * s,) for s in STRIDES), ((0.5, 1.0, 2.0),) * len(STRIDES)
        )
        placeholder = nn.Identity()
        placeholder.out_channels = _WIDTH  # type: ignore[assignment]
        whole = kind(
            placeholder,
            num_classes=classes + 1,
            rpn_anchor_generator=anchors,
            box_score_thresh=0.01,
            box_detections_per_img=100,
        )
        self.rpn, self.roi_heads = whole.rpn, whole.roi_heads

    def forward(
        self, image: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of each image and, while training, torchvision's losses.

        Args:
            image: uint8 [B, H, W, 3].
            targets: per image ``boxes`` [N, 4], ``labels`` [N] from 1, for Mask R-CNN ``masks``
                [N, H, W].
        """
        height, width = image.shape[1:3]
        features = self.backbone(self.trunk(image), (height, width))
        sizes = [(int(height), int(width))] * len(image)
        images = ImageList(image.permute(0, 3, 1, 2), sizes)
        proposals, first = self.rpn(images, features, targets)
        found, second = self.roi_heads(features, proposals, sizes, targets)
        return found, {**first, **second}


class _Detectors(Family):
    tasks = ("detection",)
    kind: ClassVar[type[FasterRCNN]]

    @classmethod
    def build(
        cls, trunk: str, classes: Mapping[str, list[str]], settings: FinetuneSettings
    ) -> Detector:
        return Detector(trunk, cls.kind, len(classes["detection"]))

    @classmethod
    def targets(cls, model: nn.Module, batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Per image what torchvision learns from; labels count from 1."""
        rows = [b[b[:, 0] >= 0] for b in batch["boxes"]]
        return [{"boxes": r[:, 1:], "labels": r[:, 0].long() + 1} for r in rows]

    @classmethod
    def losses(
        cls, model: nn.Module, batch: Mapping[str, Tensor], criteria: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        _, parts = model(batch["image"], cls.targets(model, batch))
        return {name.removeprefix("loss_"): value for name, value in parts.items()}

    @classmethod
    @torch.no_grad()
    def outputs(cls, model: nn.Module, image: Tensor) -> dict[str, np.ndarray]:
        found = model(image)[0][0]
        return plain(
            {
                "boxes": found["boxes"],
                "scores": found["scores"],
                "labels": (found["labels"] - 1).int(),
            }
        )


@register_family("faster-rcnn")
class FasterRcnn(_Detectors):
    """Boxes."""

    kind = FasterRCNN


@register_family("mask-rcnn")
class MaskRcnn(_Detectors):
    """Boxes, learnt together with a mask of each object.

    The dataset format has no masks of single objects: an object's mask is the pixels of its class
    within its box, so its class must be among the segmentation classes, too.
    """

    kind = MaskRCNN

    @classmethod
    def prepare(cls, model: nn.Module, data: Dataset) -> None:
        masks = list(data.segmentation_classes or [])
        lacking = [n for n in data.detection_classes or [] if n not in masks]
        if lacking or not any(s.mask for s in data.samples):
            raise InputError(
                f"mask-rcnn learns objects' masks from the label map, but {data.name} has none "
                f"of {', '.join(lacking) or 'its images'}; choose faster-rcnn"
            )
        found = [masks.index(n) for n in data.detection_classes or []]
        model.register_buffer("mask_class", torch.tensor(found), persistent=False)

    @classmethod
    def targets(cls, model: nn.Module, batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        targets = super().targets(model, batch)
        for target, mask in zip(targets, batch["mask"], strict=True):
            wanted = model.mask_class[target["labels"] - 1]  # type: ignore[index]
            target["masks"] = _object_masks(mask, target["boxes"], wanted)
        return targets


def _object_masks(mask: Tensor, boxes: Tensor, wanted: Tensor) -> Tensor:
    """uint8 [N, H, W]: the pixels of each object's class within its box."""
    ys = torch.arange(mask.shape[0], device=mask.device)[None, :, None] + 0.5
    xs = torch.arange(mask.shape[1], device=mask.device)[None, None, :] + 0.5
    x1, y1, x2, y2 = (side[:, None, None] for side in boxes.unbind(1))
    inside = (xs >= x1) & (xs <= x2) & (ys >= y1) & (ys <= y2)
    return ((mask[None] == wanted[:, None, None]) & inside).to(torch.uint8)
