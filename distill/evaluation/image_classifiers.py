"""What classifies images where robustness is judged: an encoder with a probe, or a tuned run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distill.data.images import Images
from distill.evaluation.attacks import Classifier
from distill.evaluation.features import extract
from distill.evaluation.linear import LinearProbe, fit_linear
from distill.evaluation.opening import OpenedEncoder
from distill.evaluation.robustness import ProbedEncoder
from distill.settings import FinetuneSettings


@dataclass(frozen=True)
class ImageClassifier:
    """A model of whole images.

    Attributes:
        title: what it was opened from.
        classify: float images [B, 3, H, W] in 0..1 to logits [B, C], on the images' device.
        size: (height, width) it takes.
        classes: names of its classes, where it has them.
    """

    title: str
    classify: Classifier
    size: tuple[int, int]
    classes: list[str] | None = None


def probed_encoder(opened: OpenedEncoder, probe: LinearProbe) -> ImageClassifier:
    """An encoder with a linear probe."""
    return ImageClassifier(opened.title, ProbedEncoder(opened.encoder, probe), opened.size)


def probed_on(
    opened: OpenedEncoder, images: Images, seed: int = 0, progress: bool = True
) -> ImageClassifier:
    """An encoder with a linear probe fitted on images."""
    found = extract(opened.encoder, images, opened.size, progress=progress)
    return probed_encoder(opened, fit_linear(found.pooled, found.labels, seed))


def tuned_run(run: Path, device: torch.device) -> ImageClassifier:
    """A run of ``finetune --task classification``.

    Raises:
        InputError: it is none.
    """
    from distill.evaluation.classified import open_classifier

    model, config = open_classifier(run)
    model.to(device)
    settings = FinetuneSettings.model_validate(config["settings"])

    def classify(images: Tensor) -> Tensor:
        logits: Tensor = model(images.to(device).permute(0, 2, 3, 1) * 255)
        return logits.to(images.device)

    size = settings.size_at(settings.epochs - 1)
    return ImageClassifier(str(run), classify, size, config["classes"]["classification"])
