"""How much of its accuracy a model keeps: an encoder with a linear probe, or a bundle."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.data.images import Images
from distill.data.views import resize_image
from distill.encoders import Encoder
from distill.evaluation.attacks import Classifier, fgsm, pgd
from distill.evaluation.corruptions import (
    Corrupt,
    CorruptionErrors,
    corruption_errors,
    corruption_figures,
)
from distill.evaluation.linear import LinearProbe
from edge_runtime.datasets import Dataset, LabelledFrame
from edge_runtime.errors import InputError

_BATCH = 64


class ProbedEncoder(nn.Module):
    """An encoder with a linear probe as one classifier of images in 0..1."""

    def __init__(self, encoder: Encoder, probe: LinearProbe) -> None:
        super().__init__()
        self.encoder, self.probe = encoder, probe
        device = next(encoder.parameters()).device
        self.register_buffer("mean", torch.tensor(encoder.mean, device=device).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(encoder.std, device=device).view(1, 3, 1, 1))
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, C], on the images' device, of images float [B, 3, H, W] in 0..1."""
        moved = image.to(self.mean.device)
        logits = self.probe.logits(self.encoder.pooled((moved - self.mean) / self.std))
        return logits.to(image.device)


@dataclass(frozen=True)
class JudgedImages:
    """Images uint8 [N, H, W, 3] at network size, and their classes int64 [N]."""

    images: np.ndarray
    labels: Tensor

    @classmethod
    def of(cls, source: Images, indices: np.ndarray, size: tuple[int, int]) -> JudgedImages:
        """Reads the images of some indices.

        Raises:
            InputError: an image cannot be read or has no class.
        """
        labels = [source.label(int(i)) for i in indices]
        if any(label is None for label in labels):
            raise InputError("robustness needs a class for every image; see --data in --help")
        images = np.stack([resize_image(source.read(int(i)), size) for i in indices])
        return cls(images, torch.tensor(labels, dtype=torch.int64))


def as_input(images: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W] in 0..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def classification_errors(
    classify: Classifier, judged: JudgedImages, seed: int = 0, progress: bool = True
) -> CorruptionErrors:
    """Errors of a classifier under all corruptions, applied at network size."""

    @torch.no_grad()
    def error(corrupt: Corrupt) -> float:
        wrong = 0
        for first in range(0, len(judged.images), _BATCH):
            part = judged.images[first : first + _BATCH]
            spoilt = np.stack([corrupt(image, first + i) for i, image in enumerate(part)])
            found = classify(as_input(spoilt)).argmax(1).cpu()
            wrong += int((found != judged.labels[first : first + _BATCH]).sum())
        return wrong / len(judged.images)

    return corruption_errors(error, seed, progress)


def adversarial_accuracy(
    classify: Classifier, judged: JudgedImages, epsilon: float, steps: int = 10, seed: int = 0
) -> dict[str, float]:
    """Accuracy on clean images and under ``fgsm`` and ``pgd`` of a strength, of 1."""
    right = {"clean": 0, "fgsm": 0, "pgd": 0}
    for first in range(0, len(judged.images), _BATCH):
        images = as_input(judged.images[first : first + _BATCH])
        labels = judged.labels[first : first + _BATCH]
        variants = {
            "clean": images,
            "fgsm": fgsm(classify, images, labels, epsilon),
            "pgd": pgd(classify, images, labels, epsilon, steps, seed + first),
        }
        with torch.no_grad():
            for name, variant in variants.items():
                right[name] += int((classify(variant).argmax(1).cpu() == labels).sum())
    return {name: count / len(judged.images) for name, count in right.items()}


def classifier_robustness(
    classify: Classifier,
    judged: JudgedImages,
    epsilon: float,
    baseline: CorruptionErrors | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Corruptions and attacks, as plain values: see `corruption_figures`; ``adversarial``."""
    own = classification_errors(classify, judged, seed, progress)
    figures = corruption_figures(own, baseline)
    figures["adversarial"] = {
        "epsilon": epsilon,
        **adversarial_accuracy(classify, judged, epsilon, seed=seed),
    }
    figures["images"] = len(judged.images)
    return figures


class CorruptedDataset(Dataset):
    """A dataset whose frames are corrupted when read; labels stay."""

    corrupt: Corrupt

    @classmethod
    def of(cls, dataset: Dataset, corrupt: Corrupt) -> CorruptedDataset:
        """The same frames through ``corrupt``."""
        fields = {f.name: getattr(dataset, f.name) for f in dataclasses.fields(dataset)}
        made = cls(**fields)
        made.corrupt = corrupt
        return made

    def read(self, index: int) -> LabelledFrame:
        """One frame, corrupted as its index says, and its labels."""
        frame = super().read(index)
        return dataclasses.replace(frame, image=self.corrupt(frame.image, index))
