"""How far images are from those of a place, as the first adapter point of a network sees them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from edge_runtime.adaptation.reference import Reference
from edge_runtime.adaptation.source import SourceModel, source_threshold
from edge_runtime.bundle import Bundle
from edge_runtime.student import Student


class Likeness:
    """Distances in units of the threshold of drift.

    Args:
        bundle: With statistics of the training domain.
        student: Its network.
    """

    def __init__(self, bundle: Bundle, student: Student) -> None:
        self.student, self.reference = student, Reference.of(bundle)
        self._model = SourceModel(self.reference)
        self._threshold = source_threshold(self.reference)

    def to(self, place: np.ndarray) -> Callable[[np.ndarray], float]:
        """The distance from images uint8 [M, H, W, 3] to those of a place, uint8 [N, H, W, 3]."""
        target = self._features(place)
        return lambda images: self._model.distance(target, self._features(images)) / self._threshold

    @torch.no_grad()
    def _features(self, images: np.ndarray) -> np.ndarray:
        """First-point features; see `SourceModel`."""
        taken = [self.student.trunk(torch.from_numpy(x)[None], None, True)[1] for x in images]
        mean, var = self.reference.first_of(np.stack([t.numpy() for t in taken]))
        return self._model.features(mean.astype(float), var.astype(float))
