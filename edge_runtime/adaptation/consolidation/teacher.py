"""Targets of self-training: what of a teacher's probabilities a student should believe."""

from __future__ import annotations

import torch
from torch import Tensor


def sharpened(probabilities: Tensor, power: float = 2.0) -> Tensor:
    """Probabilities [B, C, h, w] nearer to certainty: raised to a power and normalised."""
    raised = probabilities**power
    return raised / raised.sum(1, keepdim=True)


class ClassThresholds:
    """The confidence that the surest share of each class's pixels reaches, kept as an average.

    Args:
        classes: Number of classes C.
        kept: Share of pixels above the threshold.
    """

    momentum, least_pixels = 0.9, 64

    def __init__(self, classes: int, kept: float) -> None:
        self.kept = kept
        self.values = torch.full((classes,), torch.nan)

    def __call__(self, probabilities: Tensor) -> Tensor:
        """Learn from a batch, and weigh it.

        Args:
            probabilities: float [B, C, h, w].

        Returns:
            float [B, h, w], the confidence where it reaches its class's threshold, else zero.
        """
        confidence, labels = probabilities.max(1)
        for c in labels.unique().tolist():
            values = confidence[labels == c]
            if len(values) < self.least_pixels and not self.values[c].isnan():
                continue
            now = values.quantile(1 - self.kept)
            old = self.values[c]
            self.values[c] = now if old.isnan() else torch.lerp(now, old, self.momentum)
        return confidence * (confidence >= self.values[labels])
