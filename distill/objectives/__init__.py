"""Self-supervised objectives, one a file."""

from distill.objectives.features import FeatureDistillation, FeatureWeights

__all__ = ["FeatureDistillation", "FeatureWeights"]
