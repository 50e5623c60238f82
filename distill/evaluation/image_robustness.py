"""Robustness of a classifier of whole images beside that of a baseline, on the same images."""

from __future__ import annotations

from typing import Any

import numpy as np

from distill.data.images import Images
from distill.evaluation.image_classifiers import ImageClassifier
from distill.evaluation.robustness import (
    JudgedImages,
    classification_errors,
    classifier_robustness,
)
from edge_runtime.errors import InputError


def image_robustness(
    own: ImageClassifier,
    source: Images,
    indices: np.ndarray,
    baseline: ImageClassifier | None,
    epsilon: float,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Corruptions and attacks on some images; see `classifier_robustness`.

    Both see the same images under the same corruptions, each at its own size.

    Args:
        own: what is judged.
        source: images with classes.
        indices: of those to judge by.
        baseline: what the error is relative to.
        epsilon: of the attacks, of 1.
        seed: of what is random.
        progress: show a bar.

    Raises:
        InputError: images without class or too small to corrupt, or other classes.
    """
    reference = None
    if baseline is not None:
        if baseline.classes and own.classes and baseline.classes != own.classes:
            raise InputError(
                f"{own.title} knows the classes {own.classes}, {baseline.title} knows "
                f"{baseline.classes}; compare models of the same classes"
            )
        images = JudgedImages.of(source, indices, baseline.size)
        reference = classification_errors(baseline.classify, images, seed, progress)
    images = JudgedImages.of(source, indices, own.size)
    figures = classifier_robustness(own.classify, images, epsilon, reference, seed, progress)
    if baseline is not None:
        figures["baseline"]["name"] = baseline.title
    return figures


class Chosen:
    """Some images of a source, by their indices."""

    def __init__(self, source: Images, indices: np.ndarray) -> None:
        self.source, self.indices = source, [int(i) for i in indices]
        self.notes: list[str] = source.notes

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> np.ndarray:
        """A picture, uint8 [H, W, 3] RGB."""
        return self.source.read(self.indices[index])

    def label(self, index: int) -> int | None:
        """Its class."""
        return self.source.label(self.indices[index])

    def name(self, index: int) -> str:
        """Where it lies."""
        return self.source.name(self.indices[index])

    def digest(self) -> str:
        """That of the source with the indices."""
        return f"{self.source.digest()}:{self.indices}"
