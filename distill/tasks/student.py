"""The family of the robot's own student."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from distill.settings import FinetuneSettings
from distill.tasks.families import Family, plain, register_family
from edge_runtime.student import DeployedNetwork, Student


@register_family("student")
class StudentFamily(Family):
    """Light heads on one neck: detection, segmentation or both."""

    tasks = ("detection", "segmentation")
    robot = True

    @classmethod
    def build(
        cls, trunk: str, classes: Mapping[str, list[str]], settings: FinetuneSettings
    ) -> Student:
        return Student(
            trunk,
            {task: len(names) for task, names in classes.items()},
            settings.neck_width,
            settings.head_width,
            settings.head_depth,
        )

    @classmethod
    def losses(
        cls, model: nn.Module, batch: Mapping[str, Tensor], criteria: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        outputs = model(batch["image"])
        parts: dict[str, Tensor] = {}
        if "segmentation" in outputs:
            parts["segmentation"] = criteria["segmentation"](outputs["segmentation"], batch["mask"])
        if "detection" in outputs:
            rows = [b[b[:, 0] >= 0] for b in batch["boxes"]]
            parts["detection"] = criteria["detection"](
                outputs["detection"], [r[:, 1:] for r in rows], [r[:, 0] for r in rows]
            )
        return parts

    @classmethod
    @torch.no_grad()
    def outputs(cls, model: nn.Module, image: Tensor) -> dict[str, np.ndarray]:
        assert isinstance(model, Student)
        network = DeployedNetwork(model, mask_confidence=True, adaptive=False)
        return plain(dict(zip(network.output_names, network(image), strict=True)))
