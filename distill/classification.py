"""``finetune --task classification``: a classifier on any encoder, from few labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.data.class_folders import open_classified
from distill.data.images import Images, JoinedImages
from distill.data.shards import ShardImages
from distill.evaluation.classified import accuracy, predict
from distill.evaluation.opening import RANDOM, open_encoder
from distill.runs import save_student, write_config
from distill.semi import Consistency, WithUnlabelled
from distill.settings import FinetuneSettings
from distill.tasks.classification import (
    ClassifiedViews,
    Classifier,
    MixedLoss,
    StrongImage,
    class_means,
)
from distill.training import Trainee, Trainer
from edge_runtime.errors import InputError
from edge_runtime.files import atomic_write_text

_PROBED = 1000  # held-back images that are looked at while training


def open_classes(spec: str, split: str = "train") -> tuple[Images, list[str]]:
    """Images with a class each, and the classes' names.

    Shards have numbers; names come from a ``classes.json`` beside them, where there is one.

    Raises:
        InputError: images without class, or a class without name.
    """
    images = open_classified(spec, split)
    labels = [images.label(i) for i in range(len(images))]
    missing = [i for i, label in enumerate(labels) if label is None]
    if missing:
        raise InputError(
            f"{spec}: {len(missing)} of {len(labels)} images have no class (first: "
            f"{images.name(missing[0])}); give a folder with one subfolder a class, or shards "
            "with .cls"
        )
    names = list(getattr(images, "classes", None) or [])
    highest = max(label for label in labels if label is not None)
    if isinstance(images, ShardImages):
        names = _names_beside(images.paths[0]) or [str(i) for i in range(highest + 1)]
    if highest >= len(names):
        raise InputError(f"{spec}: class {highest} has no name among {names}")
    return images, names


def _names_beside(shard: Path) -> list[str]:
    path = shard.with_name("classes.json")
    if not path.is_file():
        return []
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable JSON file: {error}") from None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise InputError(f"{path}: expected a list of the classes' names in order")
    return names


def stratified(images: Images, amount: str | None, classes: int, seed: int) -> np.ndarray:
    """Numbers of a random part of the images, every class with its share, at least one.

    Args:
        amount: a count (40), a share ("10%"), or None for all. Smaller parts lie within larger.

    Raises:
        InputError: no number, or less than one image a class, or more than there are.
    """
    labels = np.array([images.label(i) for i in range(len(images))])
    total = len(labels)
    if amount is None:
        return np.arange(total)
    text = str(amount).strip()
    try:
        count = round(total * float(text[:-1]) / 100) if text.endswith("%") else int(text)
    except (ValueError, OverflowError):
        raise InputError(f"{text!r} is no amount; write a count like 40 or 10%") from None
    present = [c for c in range(classes) if (labels == c).any()]
    if not len(present) <= count <= total:
        raise InputError(
            f"{text} is {count} images, but there are {total} of {len(present)} classes; take one "
            "a class at least"
        )
    # The k-th image of a class of n comes at (k + 1/2) / n: every prefix is as balanced as can be.
    rng, places = np.random.default_rng(seed), np.empty(total)
    for c in present:
        own = rng.permutation(np.flatnonzero(labels == c))
        places[own] = (np.arange(len(own)) + 0.5) / len(own)
        places[own[0]] = -1  # first of all, so that no class is left out
    order = np.lexsort((rng.permutation(total), places))
    return np.sort(order[:count])


class _Module(nn.Module):
    def __init__(self, model: Classifier, loss: MixedLoss, semi: Consistency | None) -> None:
        super().__init__()
        self.model, self.loss, self.semi = model, loss, semi

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        parts = {"classification": self.loss(self.model, batch["image"], batch["label"])}
        total = parts["classification"]
        if self.semi is not None:
            loss, sure = self.semi(self.model, batch["weak"], batch["strong"])
            total = total + loss
            parts |= {"unlabelled": loss, "confident": sure}
        return {"loss": total, **parts}


class _Trainee(Trainee):
    def __init__(
        self,
        module: _Module,
        settings: FinetuneSettings,
        pretrained: bool,
        val: Images | None,
    ) -> None:
        self.module, self.student, self.settings = module, module.model, settings
        linear = settings.mode == "linear"
        share = 1.0 if linear else settings.freeze * pretrained
        self.frozen_epochs = round(share * settings.epochs)
        self.trunk_lr = settings.trunk_lr if pretrained else 1.0
        self.val = val
        count = 0 if val is None else len(val)
        self.rows = np.unique(np.linspace(0, count - 1, min(count, _PROBED)).astype(int))

    def groups(self) -> list[dict[str, Any]]:
        head = self.student.classify.parameters()
        trunk = self.student.trunk.parameters()
        return [{"params": list(head)}, {"params": list(trunk), "lr": self.trunk_lr}]

    def begin_epoch(self, epoch: int) -> None:
        self.module.train()
        frozen = epoch < self.frozen_epochs
        self.student.trunk.requires_grad_(not frozen)
        if frozen:
            self.student.trunk.eval()

    def probe(self, student: nn.Module) -> dict[str, float]:
        if self.val is None:
            return {}
        size = self.settings.size_at(self.settings.epochs - 1)
        found = predict(student, self.val, self.rows, size)
        return {"accuracy": accuracy(self.val, self.rows, found)}


def encoder_spec(student: str, encoder: Path | None) -> str:
    """What ``open_encoder`` opens for ``--student`` and ``--encoder``."""
    if encoder is None:
        return f"{student}@{RANDOM}"
    if str(encoder) == "hub":
        return student
    return str(encoder) if encoder.is_dir() else f"{student}@{encoder}"


def finetune_classifier(
    data: str,
    labels: str | None,
    student: str,
    out: Path,
    settings: FinetuneSettings,
    val: str | None = None,
    encoder: Path | None = None,
    unlabelled: list[str] | None = None,
    resume: bool = False,
    devices: int = 1,
    accelerator: str = "auto",
) -> dict[str, Any]:
    """Trains a linear layer, or it and the encoder, or takes class means; writes it to ``out``.

    Args:
        data: images with classes: a folder with one subfolder a class, or shards.
        labels: a count or share of them that is used, the same share of every class.
        encoder: run of ``pretrain``, weights of ``student``, or ``hub``; None is random.
        unlabelled: images to learn from beside the labelled ones (FixMatch).
    """
    if unlabelled and settings.mode == "prototype":
        raise InputError("mode=prototype takes class means of labelled images; no --unlabelled")
    images, names = open_classes(data)
    rows = stratified(images, labels, len(names), settings.seed)
    held_back = _same_classes(val, names) if val else None
    trainer = Trainer(settings, out, accelerator, devices)
    opened = open_encoder(encoder_spec(student, encoder), settings.seed)
    model = Classifier(opened.encoder, len(names), cosine=settings.mode == "prototype")
    extra = {
        "student": opened.encoder.spec.name,
        "student_args": opened.encoder.spec.arguments,
        "head": "linear",
        "classes": {"classification": names},
        "encoder": str(encoder) if encoder else None,
        "images": len(rows),
        "data": [{"name": data, "digest": images.digest()}],
        "unlabelled": unlabelled or [],
    }
    if trainer.fabric.is_global_zero:
        write_config(out, "finetune", settings, extra)
    trainee = _trainee(model, settings, encoder is not None, held_back, bool(unlabelled))
    if settings.mode == "prototype":
        with torch.no_grad():
            size = settings.size_at(settings.epochs - 1)
            model.classify.weight.copy_(class_means(model, images, rows, size))
        trained: nn.Module = model
    else:
        identity = {"settings": settings.model_dump(mode="json"), "student": extra["student"]}
        views: Any = ClassifiedViews(images, rows, settings)
        if unlabelled:
            pool = JoinedImages([open_classified(u) for u in unlabelled])
            views = WithUnlabelled(views, pool.read, len(pool), settings, StrongImage())
        trained = trainer.fit(trainee, views, resume, identity)
    summary = {**extra, "probe": trainee.probe(trained)}
    if trainer.fabric.is_global_zero:
        save_student(out, trained)
        atomic_write_text(out / "summary.json", json.dumps(summary, indent=2))
    return summary


def _trainee(
    model: Classifier, settings: FinetuneSettings, pretrained: bool, val: Images | None, semi: bool
) -> _Trainee:
    teacher = Consistency(model, settings.semi, lambda m, x: m(x)) if semi else None
    loss = MixedLoss(settings, model.classify.out_features)
    return _Trainee(_Module(model, loss, teacher), settings, pretrained, val)


def _same_classes(spec: str, names: list[str]) -> Images:
    images, found = open_classes(spec, "val")
    if found != names:
        raise InputError(f"{spec} has classes {found}, but was to have {names}")
    return images
