"""Robustness of what perceives frames, a bundle or a fine-tuned run, by its mIoU or AP."""

from __future__ import annotations

from typing import Any

from distill.evaluation.corruptions import Corrupt, corruption_errors, corruption_figures
from distill.evaluation.robustness import CorruptedDataset
from edge_runtime.datasets import Dataset
from edge_runtime.evaluation import evaluate

_METRICS = (("segmentation", "miou"), ("detection", "map_50"))


def model_robustness(
    perception: Any,
    dataset: Dataset,
    baseline: Any | None,
    limit: int,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """See `corruption_figures`; the error is 1 - mIoU, or 1 - AP@.5 where there are only boxes.

    Raw frames are corrupted, so that resizing is part of what is judged.

    Args:
        perception: a `Perception`, or what works alike.
        dataset: labelled frames.
        baseline: another one, which the error is relative to.
        limit: frames to judge by, spread evenly.
        seed: of what is random in a corruption.
        progress: show a bar.
    """
    kept = min(limit, len(dataset))
    section, metric = _metric(perception, dataset, kept)

    def errors(model: Any) -> Any:
        def error(corrupt: Corrupt) -> float:
            data = CorruptedDataset.of(dataset, corrupt)
            found = evaluate(model, data, limit=kept, progress=False)[section][metric]
            return 1.0 - float(found or 0.0)

        return corruption_errors(error, seed, progress)

    own = errors(perception)
    figures = corruption_figures(own, errors(baseline) if baseline is not None else None)
    return {**figures, "metric": f"{section}.{metric}", "images": kept}


def _metric(perception: Any, dataset: Dataset, limit: int) -> tuple[str, str]:
    found = evaluate(perception, dataset, limit=limit, progress=False)
    return next((s, m) for s, m in _METRICS if s in found)
