"""``finetune``: the heads, then the whole student, from a few labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.data.labelled import LabelledViews
from distill.evaluation.probe import head_miou, probe_frames
from distill.runs import save_student, write_config
from distill.settings import FinetuneSettings
from distill.tasks.detection import DetectionLoss
from distill.tasks.segmentation import IGNORED, SegmentationLoss, class_frequency
from distill.teachers import load_weights
from distill.training import Trainer
from edge_runtime.datasets import Dataset
from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_text
from edge_runtime.student import TASKS, Student

HUB = Path("hub")  # --encoder hub: timm's own pretrained weights of the trunk


def load_encoder(student: Student, source: Path) -> None:
    """Loads trunk (and neck) from a run folder, or the trunk from a timm weights file or the hub.

    Raises:
        InputError: nothing readable there, or weights of another architecture.
    """
    if source == HUB:
        _load_from_hub(student)
        return
    if source.is_dir():
        source = source / "student.safetensors"
    if not source.is_file():
        raise InputError(f"encoder {source} not found; give a run folder or a .safetensors file")
    try:
        state = load_file(source)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{source} is not a readable safetensors file: {error}") from error
    if not any(k.startswith("trunk.") for k in state):
        load_weights(student.trunk.body, source, f"trunk {student.spec.trunk}")
        return
    own = {k: v for k, v in student.state_dict().items() if not k.startswith("heads.")}
    wrong = [k for k in own if k not in state or state[k].shape != own[k].shape]
    if wrong:
        raise InputError(
            f"{source} does not fit student {student.spec.trunk}: {len(wrong)} of {len(own)} "
            f"tensors differ (first: {wrong[0]}); give a run with the same --student and neck_width"
        )
    student.load_state_dict({k: state[k] for k in own}, strict=False)


def _load_from_hub(student: Student) -> None:
    name = student.spec.trunk
    try:
        pretrained = timm.create_model(name, features_only=True, pretrained=True)
    except Exception as error:
        raise InputError(
            f"weights of {name} cannot be had from the hub ({type(error).__name__}: {error}); "
            "give --encoder FILE.safetensors instead"
        ) from error
    student.trunk.body.load_state_dict(pretrained.state_dict())


class _Module(nn.Module):
    def __init__(
        self, student: Student, losses: dict[str, nn.Module], weights: dict[str, float]
    ) -> None:
        super().__init__()
        self.student = student
        self.losses = nn.ModuleDict(losses)
        self.weights = weights

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = self.student(batch["image"])
        parts: dict[str, Tensor] = {}
        if "segmentation" in self.losses:
            parts["segmentation"] = self.losses["segmentation"](
                outputs["segmentation"], batch["mask"]
            )
        if "detection" in self.losses:
            rows = [b[b[:, 0] >= 0] for b in batch["boxes"]]
            parts["detection"] = self.losses["detection"](
                outputs["detection"], [r[:, 1:] for r in rows], [r[:, 0] for r in rows]
            )
        total = sum(self.weights[k] * v for k, v in parts.items())
        return {"loss": total, **parts}  # type: ignore[dict-item]


class _Trainee:
    def __init__(
        self, module: _Module, val: Dataset | None, settings: FinetuneSettings, pretrained: bool
    ) -> None:
        self.module, self.student, self.val, self.settings = module, module.student, val, settings
        # From random weights there is nothing to protect by freezing.
        self.frozen_epochs = round(settings.freeze * settings.epochs) if pretrained else 0
        self.trunk_lr = settings.trunk_lr if pretrained else 1.0
        segments = "segmentation" in self.student.heads and val is not None
        self.frames = probe_frames(val, settings.size) if segments and val is not None else []

    def groups(self) -> list[dict[str, Any]]:
        trunk = set(self.student.trunk.parameters())
        rest = [p for p in self.module.parameters() if p not in trunk]
        slow = list(self.student.trunk.parameters())
        return [{"params": rest}, {"params": slow, "lr": self.trunk_lr}]

    def begin_epoch(self, epoch: int) -> None:
        self.module.train()
        frozen = epoch < self.frozen_epochs
        self.student.trunk.requires_grad_(not frozen)
        if frozen:
            self.student.trunk.eval()

    def probe(self, student: nn.Module) -> dict[str, float]:
        if not self.frames or self.val is None:
            return {}
        return {"miou": head_miou(student, self.frames, self.val)}


def _classes(data: Dataset, tasks: list[str]) -> dict[str, list[str]]:
    offered = {"detection": data.detection_classes, "segmentation": data.segmentation_classes}
    unknown = [t for t in tasks if t not in TASKS]
    if unknown:
        raise InputError(f"unknown tasks {unknown}; known are {', '.join(TASKS)}")
    lacking = [t for t in tasks if not offered[t]]
    if lacking:
        names = ", ".join(lacking)
        raise InputError(f"{data.name} has no labels for {names}; choose other --tasks")
    return {t: list(offered[t] or []) for t in TASKS if t in tasks}


def finetune(
    data: Dataset,
    student_name: str,
    out: Path,
    settings: FinetuneSettings,
    tasks: list[str],
    val: Dataset | None = None,
    encoder: Path | None = None,
    extra_data: list[Dataset] | None = None,
    resume: bool = False,
    devices: int = 1,
    accelerator: str = "auto",
) -> dict[str, Any]:
    """Trains heads (trunk frozen first) on labelled data and writes the student to ``out``.

    Args:
        encoder: run folder, trunk weights or ``HUB`` to start from; None is random initialisation.
        extra_data: further data with the same classes, for instance pseudo-labelled.
    """
    classes = _classes(data, tasks)
    trainer = Trainer(settings, out, accelerator, devices)
    student = Student(
        student_name,
        {t: len(c) for t, c in classes.items()},
        settings.neck_width,
        settings.head_width,
        settings.head_depth,
    )
    if encoder is not None:
        load_encoder(student, encoder)
    losses: dict[str, nn.Module] = {}
    if "segmentation" in classes:
        masks = [data.read(i).mask for i in range(len(data.samples))]
        kept = [torch.from_numpy(m[m != _ignored(data)]) for m in masks if m is not None]
        frequency = class_frequency(kept, len(classes["segmentation"]))
        losses["segmentation"] = SegmentationLoss(frequency, settings.class_balance)
    if "detection" in classes:
        losses["detection"] = DetectionLoss()
    extra = {
        "student": student_name,
        "classes": classes,
        "ignore_index": data.ignore_index,
        "encoder": str(encoder) if encoder else None,
        "images": len(data.samples),
        "data": [{"name": data.name, "digest": data.digest()}],
    }
    if encoder is not None and encoder.is_dir():
        from distill.runs import read_config

        extra["teachers"] = read_config(encoder).get("teachers", [])
    if trainer.fabric.is_global_zero:
        write_config(out, "finetune", settings, extra)
    weights = {"segmentation": 1.0, "detection": settings.detection_weight}
    trainee = _Trainee(_Module(student, losses, weights), val, settings, encoder is not None)
    identity = {"settings": settings.model_dump(mode="json"), "student": student_name}
    views = LabelledViews([data, *(extra_data or [])], settings)
    averaged = trainer.fit(trainee, views, resume, identity)
    summary = {**extra, "probe": trainee.probe(averaged)}
    if trainer.fabric.is_global_zero:
        save_student(out, averaged)
        atomic_write_text(out / "summary.json", json.dumps(summary, indent=2))
    return summary


def _ignored(data: Dataset) -> int:
    return IGNORED if data.ignore_index is None else data.ignore_index
