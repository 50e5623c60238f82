"""`fieldsight-distill evaluate --robustness` on a bundle or a fine-tuned run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.cli.app import open_data

_FRAMES = 40
_IMAGES = 200


def opened_model(model: Path) -> Any:
    """A run or a bundle as something that perceives frames."""
    from distill.evaluation.running import RunPerception, is_run
    from edge_runtime.perception import Perception

    return RunPerception(model) if is_run(model) else Perception(model)


def robustness_of(
    model: Path, data: str, baseline: Path | None, images: int | None, epsilon: float, seed: int
) -> dict[str, Any]:
    """Figures of a classifier by its accuracy, of what perceives frames by its mIoU or AP.

    Args:
        images: to judge by; None is 200 images, or 40 frames.
        epsilon: of attacks on a classifier, of 1.
    """
    from distill.evaluation.classified import is_classifier
    from distill.evaluation.running import is_run

    if is_run(model) and is_classifier(model):
        return _of_classifier(model, data, baseline, images or _IMAGES, epsilon, seed)
    from distill.evaluation.model_robustness import model_robustness

    return model_robustness(
        opened_model(model),
        open_data(data, "val"),
        opened_model(baseline) if baseline else None,
        images or _FRAMES,
        seed,
    )


def _of_classifier(
    model: Path, data: str, baseline: Path | None, images: int, epsilon: float, seed: int
) -> dict[str, Any]:
    import torch

    from distill.data.class_folders import open_classified
    from distill.evaluation.features import drawn
    from distill.evaluation.image_classifiers import tuned_run
    from distill.evaluation.image_robustness import image_robustness

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = open_classified(data, "val")
    return image_robustness(
        tuned_run(model, device),
        source,
        drawn(len(source), images, seed),
        tuned_run(baseline, device) if baseline else None,
        epsilon,
        seed,
    )
