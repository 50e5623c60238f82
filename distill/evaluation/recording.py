"""Judge a model and keep what it did on each image."""

from __future__ import annotations

from typing import Any

import numpy as np

from distill.evaluation.per_image import PerImage
from distill.evaluation.scores import match_boxes
from edge_runtime.datasets import Dataset
from edge_runtime.evaluation import IOU_THRESHOLDS, MAX_DETECTIONS, coco_results, evaluate
from edge_runtime.frames import Detections, Frame, Result


class _Recorder:
    """Passes frames on to a perception and keeps its detections by index of the sample."""

    def __init__(self, perception: Any) -> None:
        self.perception = perception
        self.found: dict[int, Detections] = {}
        self.seen: list[int] = []

    def __call__(self, frame: Frame) -> Result:
        result: Result = self.perception(frame)
        self.seen.append(frame.stamp_ns)
        if result.detections is not None:
            self.found[frame.stamp_ns] = result.detections
        return result

    def classes(self, task: str) -> list[Any]:
        return list(self.perception.classes(task))

    @property
    def score_threshold(self) -> float:
        return float(self.perception.score_threshold)

    @score_threshold.setter
    def score_threshold(self, value: float) -> None:
        self.perception.score_threshold = value


def judge(
    perception: Any, dataset: Dataset, limit: int | None = None, progress: bool = True
) -> tuple[dict[str, Any], PerImage]:
    """``edge_runtime.evaluation.evaluate``'s figures, and the same image by image.

    Raises:
        InputError: nothing to compare, or the class lists disagree.
    """
    recorder = _Recorder(perception)
    figures = evaluate(recorder, dataset, limit, progress, per_image=True)
    matrices = figures.pop("per_image")
    about = {"name": dataset.name, "split": dataset.split, "digest": dataset.digest()}
    results = PerImage(about, ignore=dataset.ignore_index)
    if "segmentation" in figures:
        names = [dataset.samples[i].stem for i in recorder.seen if dataset.samples[i].mask]
        results.images["segmentation"] = names
        results.classes["segmentation"] = list(dataset.segmentation_classes or [])
        results.arrays["segmentation"] = {"confusion": matrices.astype(np.int32)}
    if "detection" in figures:
        judged = [i for i in recorder.seen if dataset.samples[i].image_id is not None]
        results.images["detection"] = [dataset.samples[i].stem for i in judged]
        results.classes["detection"] = list(dataset.detection_classes or [])
        results.arrays["detection"] = _match(dataset, judged, recorder.found)
    return figures, results


def _match(
    dataset: Dataset, judged: list[int], found: dict[int, Detections]
) -> dict[str, np.ndarray]:
    """Detections matched to objects within their image and class, as COCO's evaluation does."""
    classes = len(dataset.detection_classes or [])
    objects = np.zeros((len(judged), classes), np.int32)
    columns: dict[str, list[np.ndarray]] = {
        "score": [np.zeros(0, np.float32)],
        "image": [np.zeros(0, np.int32)],
        "box_label": [np.zeros(0, np.int32)],
        "hit": [np.zeros((0, len(IOU_THRESHOLDS)), bool)],
        "spared": [np.zeros((0, len(IOU_THRESHOLDS)), bool)],
    }
    for n, index in enumerate(judged):
        boxes = (dataset.boxes or {})[dataset.samples[index].image_id or 0]
        truth = boxes.xyxy.astype(np.float64)
        truth[:, 2:] -= truth[:, :2]
        detections = found[index]
        results = coco_results(detections, 0, list(range(classes)))
        rows = np.array([r["bbox"] for r in results], np.float64).reshape(-1, 4)
        for label in range(classes):
            own = boxes.labels == label
            objects[n, label] = int((own & ~boxes.crowd).sum())
            mine = np.flatnonzero(detections.labels == label)
            mine = mine[np.argsort(-detections.scores[mine], kind="stable")][:MAX_DETECTIONS]
            hit, spared = match_boxes(rows[mine], truth[own], boxes.crowd[own])
            columns["score"].append(detections.scores[mine].astype(np.float32))
            columns["image"].append(np.full(len(mine), n, np.int32))
            columns["box_label"].append(np.full(len(mine), label, np.int32))
            columns["hit"].append(hit)
            columns["spared"].append(spared)
    return {**{k: np.concatenate(v) for k, v in columns.items()}, "objects": objects}
