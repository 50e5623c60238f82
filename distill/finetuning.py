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

from distill.data.images import JoinedImages
from distill.data.labelled import LabelledViews
from distill.encoders import RUN_WEIGHTS
from distill.evaluation.probe import head_miou, probe_frames
from distill.runs import read_config, save_student, write_config
from distill.semi import Consistency, WithUnlabelled
from distill.settings import FinetuneSettings
from distill.tasks.detection import DetectionLoss
from distill.tasks.families import Family, family_for
from distill.tasks.mixing import cut_boxes, paste
from distill.tasks.segmentation import IGNORED, SegmentationLoss, class_frequency
from distill.teachers import load_weights
from distill.training import Trainee, Trainer
from edge_runtime.datasets import Dataset
from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_text
from edge_runtime.student import TASKS, Student, Trunk

HUB = Path("hub")  # --encoder hub: timm's own pretrained weights of the trunk


def trunk_name(model: Any) -> str:
    """timm's name of the trunk of a student or of a workstation's model."""
    return str(model.spec.trunk if isinstance(model, Student) else model.trunk_name)


def load_encoder(student: Any, source: Path) -> None:
    """Loads trunk (and neck) from a run folder, or the trunk from a timm weights file or the hub.

    Raises:
        InputError: nothing readable there, or weights of another architecture.
    """
    if source == HUB:
        _load_from_hub(student)
        return
    if source.is_dir():
        trained = source / "student.safetensors"
        source = trained if trained.is_file() else source / RUN_WEIGHTS
    if not source.is_file():
        raise InputError(f"encoder {source} not found; give a run folder or a .safetensors file")
    try:
        state = load_file(source)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{source} is not a readable safetensors file: {error}") from error
    if not any(k.startswith("trunk.") for k in state):
        load_weights(student.trunk.body, source, f"trunk {trunk_name(student)}")
        return
    shared = ("trunk.", "neck.")
    own = {k: v for k, v in student.state_dict().items() if k.startswith(shared)}
    wrong = [k for k in own if k not in state or state[k].shape != own[k].shape]
    if wrong:
        raise InputError(
            f"{source} does not fit student {trunk_name(student)}: {len(wrong)} of {len(own)} "
            f"tensors differ (first: {wrong[0]}); give a run with the same --student and neck_width"
        )
    student.load_state_dict({k: state[k] for k in own}, strict=False)


def _load_from_hub(student: Any) -> None:
    name = trunk_name(student)
    kind = {"features_only": True} if isinstance(student.trunk, Trunk) else {"num_classes": 0}
    try:
        pretrained = timm.create_model(name, pretrained=True, **kind)
    except Exception as error:
        raise InputError(
            f"weights of {name} cannot be had from the hub ({type(error).__name__}: {error}); "
            "give --encoder FILE.safetensors instead"
        ) from error
    student.trunk.body.load_state_dict(pretrained.state_dict())


class _Module(nn.Module):
    """One step's losses: of the tasks, and of unlabelled views where there are any."""

    def __init__(
        self,
        model: nn.Module,
        heads: type[Family],
        criteria: dict[str, nn.Module],
        settings: FinetuneSettings,
        semi: Consistency | None,
    ) -> None:
        super().__init__()
        self.model, self.heads, self.settings = model, heads, settings
        self.criteria = nn.ModuleDict(criteria)
        self.semi = semi
        self.weights = {"detection": settings.detection_weight}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.settings.mix == "cutmix":
            batch = _cut_mixed(batch)
        parts = self.heads.losses(self.model, batch, self.criteria)
        total = torch.stack([self.weights.get(k, 1.0) * v for k, v in parts.items()]).sum()
        if self.semi is not None:
            loss, sure = self.semi(self.model, batch["weak"], batch["strong"])
            total = total + loss
            parts |= {"unlabelled": loss, "confident": sure}
        return {"loss": total, **parts}


def _cut_mixed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    boxes = cut_boxes(len(batch["image"]), 0.5)
    image = paste(batch["image"].permute(0, 3, 1, 2), boxes).permute(0, 2, 3, 1)
    return {**batch, "image": image, "mask": paste(batch["mask"][:, None], boxes)[:, 0]}


class _Trainee(Trainee):
    def __init__(
        self, module: _Module, val: Dataset | None, settings: FinetuneSettings, pretrained: bool
    ) -> None:
        self.module, self.student, self.val, self.settings = module, module.model, val, settings
        # From random weights there is nothing to protect by freezing.
        frozen = settings.epochs if settings.mode == "linear" else 0
        self.frozen_epochs = frozen or (round(settings.freeze * settings.epochs) * pretrained)
        self.trunk_lr = settings.trunk_lr if pretrained else 1.0
        segments = "segmentation" in module.criteria and val is not None
        self.frames = probe_frames(val, settings.size) if segments and val is not None else []

    def groups(self) -> list[dict[str, Any]]:
        slow = list(self.student.trunk.parameters())
        trunk = set(slow)
        trained = [*self.student.parameters(), *self.module.criteria.parameters()]
        return [
            {"params": [p for p in trained if p not in trunk]},
            {"params": slow, "lr": self.trunk_lr},
        ]

    def begin_epoch(self, epoch: int) -> None:
        self.module.train()
        frozen = epoch < self.frozen_epochs
        self.student.trunk.requires_grad_(not frozen)
        if frozen:
            self.student.trunk.eval()

    def probe(self, student: nn.Module) -> dict[str, float]:
        if not self.frames or self.val is None:
            return {}
        student.eval()
        return {"miou": head_miou(student, self.frames, self.val)}


def _classes(data: Dataset, tasks: list[str]) -> dict[str, list[str]]:
    offered = {"detection": data.detection_classes, "segmentation": data.segmentation_classes}
    unknown = [t for t in tasks if t not in TASKS]
    if unknown:
        raise InputError(f"unknown tasks {unknown}; known are {', '.join(TASKS)}")
    lacking = [t for t in tasks if not offered[t]]
    if lacking:
        names = ", ".join(lacking)
        raise InputError(f"{data.name} has no labels for {names}; choose another --task")
    return {t: list(offered[t] or []) for t in TASKS if t in tasks}


def _check_settings(settings: FinetuneSettings, tasks: list[str], unlabelled: bool) -> None:
    """Refuses what is for classification only, and what boxes cannot take part in."""
    if settings.mode == "prototype":
        raise InputError("mode=prototype is for --task classification; choose full or linear")
    if settings.mix in ("mixup", "manifold"):
        raise InputError(
            f"mix={settings.mix} is for --task classification; for masks there is mix=cutmix"
        )
    if settings.mix == "cutmix" and "detection" in tasks:
        raise InputError("mix=cutmix cuts through boxes; leave it out or train segmentation alone")
    if unlabelled and "segmentation" not in tasks:
        raise InputError(
            "--unlabelled needs --task segmentation or classification; boxes are learnt from "
            "unlabelled images with --pseudo-labels"
        )


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
    head: str = "student",
    unlabelled: JoinedImages | None = None,
) -> dict[str, Any]:
    """Trains heads (trunk frozen first) on labelled data and writes the model to ``out``.

    Args:
        encoder: run folder, trunk weights or ``HUB`` to start from; None is random initialisation.
        extra_data: further data with the same classes, for instance pseudo-labelled.
        head: family of heads, see ``distill.tasks.families``.
        unlabelled: images to learn from beside the labelled ones, see ``distill.semi``.
    """
    classes = _classes(data, tasks)
    heads = family_for(head, list(classes))
    _check_settings(settings, list(classes), bool(unlabelled))
    trainer = Trainer(settings, out, accelerator, devices)
    model = heads.build(student_name, classes, settings)
    heads.prepare(model, data)
    if encoder is not None:
        load_encoder(model, encoder)
    semi = Consistency(model, settings.semi, heads.logits) if unlabelled else None
    module = _Module(model, heads, _criteria(data, classes, settings), settings, semi)
    extra: dict[str, Any] = {
        "student": student_name,
        "head": head,
        "classes": classes,
        "ignore_index": data.ignore_index,
        "encoder": str(encoder) if encoder else None,
        "images": len(data.samples),
        "data": [{"name": data.name, "digest": data.digest()}],
        "unlabelled": len(unlabelled) if unlabelled else 0,
    }
    if encoder is not None and encoder.is_dir():
        extra["teachers"] = _teachers_behind(encoder)
    if trainer.fabric.is_global_zero:
        write_config(out, "finetune", settings, extra)
    trainee = _Trainee(module, val, settings, encoder is not None)
    identity = {"settings": settings.model_dump(mode="json"), "student": student_name, "head": head}
    views: Any = LabelledViews([data, *(extra_data or [])], settings)
    if unlabelled:
        views = WithUnlabelled(views, unlabelled.read, len(unlabelled), settings)
    averaged = trainer.fit(trainee, views, resume, identity)
    summary = {**extra, "probe": trainee.probe(averaged)}
    if trainer.fabric.is_global_zero:
        save_student(out, averaged)
        atomic_write_text(out / "summary.json", json.dumps(summary, indent=2))
    return summary


def _teachers_behind(run: Path) -> list[str]:
    """Teachers of a run of ``distill`` or ``finetune``; one of ``pretrain`` has none."""
    if (run / RUN_WEIGHTS).is_file():
        return []
    teachers: list[str] = read_config(run).get("teachers", [])
    return teachers


def _criteria(
    data: Dataset, classes: dict[str, list[str]], settings: FinetuneSettings
) -> dict[str, nn.Module]:
    criteria: dict[str, nn.Module] = {}
    if "segmentation" in classes:
        ignored = IGNORED if data.ignore_index is None else data.ignore_index
        masks = [data.read(i).mask for i in range(len(data.samples))]
        kept = [torch.from_numpy(m[m != ignored]) for m in masks if m is not None]
        frequency = class_frequency(kept, len(classes["segmentation"]))
        criteria["segmentation"] = SegmentationLoss(frequency, settings.class_balance)
    if "detection" in classes:
        criteria["detection"] = DetectionLoss()
    return criteria
