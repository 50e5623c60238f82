"""A fine-tuned classifier against labels, image by image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distill.data.images import Images
from distill.data.views import resize_image
from distill.encoders import Encoder, EncoderSpec
from distill.evaluation.per_image import PerImage
from distill.runs import read_config
from distill.settings import FinetuneSettings
from distill.tasks.classification import Classifier
from distill.teachers import load_weights
from edge_runtime.errors import InputError
from edge_runtime.terminal import progress_bar

_BATCH = 64


def is_classifier(run: Path) -> bool:
    """Whether a run folder is that of a classifier."""
    return "classification" in read_config(run).get("classes", {})


def open_classifier(run: Path) -> tuple[Classifier, dict[str, Any]]:
    """The trained classifier of a run and its configuration.

    Raises:
        InputError: it is no finished run of classification.
    """
    config = read_config(run)
    names = config.get("classes", {}).get("classification")
    if not names:
        raise InputError(f"{run} is no classifier: it was written by {config.get('command')}")
    encoder = Encoder(EncoderSpec(config["student"], dict(config.get("student_args") or {})))
    model = Classifier(encoder, len(names), config["settings"]["mode"] == "prototype")
    load_weights(model, run / "student.safetensors", f"classifier of {run}")
    return model.eval(), config


@torch.no_grad()
def predict(
    model: nn.Module, images: Images, rows: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Class of each image, int64 [N]."""
    device = next(model.parameters()).device
    model.eval()
    found = [np.zeros(0, np.int64)]
    with progress_bar() as bar:
        task = bar.add_task("classifying", total=len(rows))
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            shown = np.stack([resize_image(images.read(int(r)), size) for r in part])
            found.append(model(torch.from_numpy(shown).to(device)).argmax(1).cpu().numpy())
            bar.advance(task, len(part))
    return np.concatenate(found)


def accuracy(images: Images, rows: np.ndarray, found: np.ndarray) -> float:
    """Share of images whose class was found."""
    return float(np.mean([images.label(int(r)) == f for r, f in zip(rows, found, strict=True)]))


def judge_classifier(
    run: Path, images: Images, names: list[str], source: str, limit: int | None = None
) -> tuple[dict[str, Any], PerImage]:
    """Accuracy, and recall by class, of a run; the same image by image.

    Args:
        names: of the classes that the images are labelled by.
        source: what the images were opened from.

    Raises:
        InputError: other classes than the run's.
    """
    model, config = open_classifier(run)
    if config["classes"]["classification"] != names:
        raise InputError(
            f"{run} knows the classes {config['classes']['classification']}, but {source} has "
            f"{names}; evaluate on data with the classes it was trained on"
        )
    settings = FinetuneSettings.model_validate(config["settings"])
    size = settings.size_at(settings.epochs - 1)
    count = min(len(images), limit or len(images))
    rows = np.linspace(0, len(images) - 1, count).round().astype(int)
    found = predict(model, images, rows, size)
    label = np.array([images.label(int(r)) for r in rows], np.int64)
    recall = {
        name: float((found[label == c] == c).mean()) if (label == c).any() else None
        for c, name in enumerate(names)
    }
    figures = {
        "classification": {"accuracy": float((found == label).mean()), "recall": recall},
        "frames": count,
    }
    results = PerImage({"name": source, "split": "", "digest": images.digest()})
    results.images["classification"] = [images.name(int(r)) for r in rows]
    results.classes["classification"] = names
    results.arrays["classification"] = {"label": label, "predicted": found}
    return figures, results
