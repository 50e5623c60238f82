"""A fine-tuned run as something that perceives frames, judged like a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.runs import read_config
from distill.settings import FinetuneSettings
from distill.tasks.families import Family, family_for
from distill.teachers import load_weights
from edge_runtime.decode import decode_detections, decode_segmentation
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame, Result
from edge_runtime.geometry import Geometry


def is_run(path: Path) -> bool:
    """Whether a path is the folder of a run rather than a bundle."""
    return (path / "config.json").is_file()


class RunPerception:
    """A run of ``finetune`` for detection or segmentation, frame in, result out.

    Args:
        run: its folder.

    Raises:
        InputError: it is no finished run of those tasks.
    """

    def __init__(self, run: Path, score_threshold: float = 0.3) -> None:
        self.config = read_config(run)
        self.run, self.score_threshold = run, score_threshold
        self.names: dict[str, list[str]] = dict(self.config.get("classes", {}))
        if self.config.get("command") != "finetune" or not self.names:
            raise InputError(
                f"{run} has no detection or segmentation to judge: it was written by "
                f"{self.config.get('command')}"
            )
        self.settings = FinetuneSettings.model_validate(self.config["settings"])
        self.heads, self.model = load_model(run, self.config, self.settings)
        self.size = self.settings.size_at(self.settings.epochs - 1)
        self._geometries: dict[tuple[int, ...], Geometry] = {}

    def classes(self, task: str) -> list[str]:
        """Names of a task's classes."""
        return self.names.get(task, [])

    @torch.no_grad()
    def __call__(self, frame: Frame) -> Result:
        """Perceive one frame; see ``edge_runtime.perception.Perception``."""
        shape = frame.image.shape
        if shape not in self._geometries:
            self._geometries[shape] = Geometry((shape[0], shape[1]), self.size)
        geometry = self._geometries[shape]
        image = torch.from_numpy(geometry.to_network(frame.image))[None]
        outputs = self.heads.outputs(self.model, image)
        detections = segmentation = None
        if "detection" in self.names:
            detections = decode_detections(outputs, geometry, self.score_threshold)
        if "segmentation" in self.names:
            segmentation = decode_segmentation(outputs, geometry)
        return Result(frame.stamp_ns, frame.frame_id, detections, segmentation, None)

    def close(self) -> None:
        """Nothing to free; as a ``Perception`` has it."""


def load_model(
    run: Path, config: dict[str, Any], settings: FinetuneSettings
) -> tuple[type[Family], nn.Module]:
    """The family and the trained model of a run."""
    heads = family_for(config.get("head", "student"), list(config["classes"]))
    model = heads.build(config["student"], config["classes"], settings)
    load_weights(model, run / "student.safetensors", f"{config['student']} of {run}")
    return heads, model.eval()
