"""Perception judged against labels: mIoU over pixels, average precision over boxes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from edge_runtime.datasets import Dataset
from edge_runtime.errors import InputError
from edge_runtime.frames import Detections, Frame

EVALUATION_SCORE_THRESHOLD = 0.0  # average precision is of the order of scores, not their size
IOU_THRESHOLDS = np.array([0.3, *np.linspace(0.5, 0.95, 10)])
MAX_DETECTIONS = 100


def confusion(
    predicted: np.ndarray, label: np.ndarray, classes: int, ignore: int | None = None
) -> np.ndarray:
    """Count pixels by true and predicted class.

    Args:
        predicted: Integer class indices of any shape; values of `classes` and above (pixels the
            network's view does not reach) are left out.
        label: The same shape; values of `classes` and above, and `ignore`, are left out.
        classes: Number of classes C.
        ignore: Label value that is not judged.

    Returns:
        int64 [C, C], row true class, column predicted class.
    """
    if predicted.shape != label.shape:
        raise ValueError(f"prediction {predicted.shape} and label {label.shape} differ in shape")
    true, found = label.astype(np.int64).ravel(), predicted.astype(np.int64).ravel()
    judged = (true >= 0) & (true < classes) & (found >= 0) & (found < classes)
    if ignore is not None:
        judged &= true != ignore
    pairs = true[judged] * classes + found[judged]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_iou(matrix: np.ndarray, ignore: int | None = None) -> np.ndarray:
    """Intersection over union per class, float64 [C].

    Args:
        matrix: [C, C] from `confusion`.
        ignore: A class that is not judged.

    Returns:
        NaN for the ignored class and for those that occur neither in labels nor in predictions.
    """
    hit = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - hit
    result = np.full(len(hit), np.nan)
    np.divide(hit, union, out=result, where=union > 0)
    if ignore is not None and ignore < len(result):
        result[ignore] = np.nan
    return result


def miou(matrix: np.ndarray, ignore: int | None = None) -> float:
    """Mean of `class_iou` over the classes that occur; NaN if none does."""
    ious = class_iou(matrix, ignore)
    return float(np.nanmean(ious)) if np.isfinite(ious).any() else math.nan


def evaluate(
    perception: Any,
    dataset: Dataset,
    limit: int | None = None,
    progress: bool = True,
    per_image: bool = False,
) -> dict[str, Any]:
    """Run perception over a labelled dataset and compare.

    Args:
        perception: A `Perception`, or anything that maps a `Frame` to a `Result` and has
            ``classes(task)``. Its ``score_threshold`` is lowered meanwhile.
        dataset: With masks, boxes or both; its classes must be those of the bundle.
        limit: Judge only so many frames, spread evenly.
        progress: Show a progress bar.
        per_image: Add ``per_image``: int64 [N, C, C], one confusion matrix a frame with a mask.

    Returns:
        ``segmentation`` (miou, iou by class, coverage: share of labelled pixels that got a
        class), ``detection`` (map, map_50, ap_30, ap by class), ``frames``. Fractions; None
        where nothing occurred to judge.

    Raises:
        InputError: Nothing to compare, or the class lists disagree.
    """
    indices = _spread(len(dataset), limit)
    segmenter, detector = _PixelJudge(dataset), _BoxJudge(dataset)
    with _low_threshold(perception):
        for index in _tracked(indices, progress):
            labelled = dataset.read(index)
            sample = dataset.samples[index]
            result = perception(Frame(labelled.image, index, sample.stem))
            if result.segmentation is not None and labelled.mask is not None:
                segmenter.add(result.segmentation.mask, labelled.mask, perception)
            if result.detections is not None and dataset.boxes is not None:
                detector.add(result.detections, sample.image_id, perception)
    figures: dict[str, Any] = {}
    if segmenter.matrices:
        figures["segmentation"] = segmenter.figures()
    if detector.image_ids:
        figures["detection"] = detector.figures()
    if not figures:
        raise InputError(
            f"{dataset.source}: split '{dataset.split}' has no labels for what the bundle finds; "
            "evaluate on a split with masks or boxes"
        )
    figures["frames"] = len(indices)
    if per_image:
        figures["per_image"] = np.array(segmenter.matrices)
    return figures


class _PixelJudge:
    """Collects one confusion matrix a frame."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.classes = dataset.segmentation_classes or []
        self.matrices: list[np.ndarray] = []
        self.labelled = 0

    def add(self, predicted: np.ndarray, label: np.ndarray, perception: Any) -> None:
        if not self.matrices:
            _check_classes(perception, "segmentation", self.classes, self.dataset)
        ignore = self.dataset.ignore_index
        self.matrices.append(confusion(predicted, label, len(self.classes), ignore))
        self.labelled += int((label != ignore).sum()) if ignore is not None else label.size

    def figures(self) -> dict[str, Any]:
        matrix = np.sum(self.matrices, axis=0)
        ignore = self.dataset.ignore_index
        ious = class_iou(matrix, ignore)
        return {
            "miou": _number(miou(matrix, ignore)),
            "iou": _by_class(self.classes, ious),
            "coverage": float(matrix.sum()) / max(self.labelled, 1),
        }


class _BoxJudge:
    """Collects detections in COCO's result format."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.classes = dataset.detection_classes or []
        self.image_ids: list[int] = []
        self.results: list[dict[str, Any]] = []

    def add(self, found: Detections, image_id: int | None, perception: Any) -> None:
        if image_id is None:
            return
        if not self.image_ids:
            _check_classes(perception, "detection", self.classes, self.dataset)
        self.image_ids.append(image_id)
        self.results += coco_results(found, image_id, self.dataset.category_ids)

    def figures(self) -> dict[str, Any]:
        judged = set(self.image_ids)
        truth = self.dataset.coco or {}
        for key, name in (("images", "id"), ("annotations", "image_id")):
            truth[key] = [entry for entry in truth[key] if entry[name] in judged]
        return average_precision(truth, self.results)


def coco_results(found: Detections, image_id: int, category_ids: list[int]) -> list[dict[str, Any]]:
    """Detections of one image in COCO's result format (bbox: x, y, width, height in pixels)."""
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[int(label)],
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "score": float(score),
        }
        for (x1, y1, x2, y2), score, label in zip(
            found.boxes, found.scores, found.labels, strict=True
        )
    ]


def average_precision(truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """COCO's average precision, 101-point interpolated, at most 100 detections an image.

    Args:
        truth: COCO content with images, annotations and categories.
        results: COCO results.

    Returns:
        ``map`` (IoU 0.50:0.95), ``map_50``, ``ap_30`` (IoU 0.30) and ``ap`` (as map, by class);
        None where there is no object to find.
    """
    names = [category["name"] for category in truth["categories"]]
    curves = np.full((len(IOU_THRESHOLDS), 1, len(names)), -1.0)
    if truth["annotations"]:
        present = {a["category_id"] for a in truth["annotations"] if not a["iscrowd"]}
        curves[..., [c["id"] in present for c in truth["categories"]]] = 0.0
    if truth["annotations"] and results:
        curves = _precision_curves(truth, results)
    kept = np.where(curves >= 0, curves, np.nan)
    return {
        "map": _mean(kept[1:]),
        "map_50": _mean(kept[1]),
        "ap_30": _mean(kept[0]),
        "ap": _by_class(names, [_mean(kept[1:, :, i]) for i in range(len(names))]),
    }


def _precision_curves(truth: dict[str, Any], results: list[dict[str, Any]]) -> np.ndarray:
    """Precision [IoU threshold, recall, class] over boxes of every size; -1 where undefined."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise InputError(
            "average precision needs faster-coco-eval; pip install 'fieldsight[eval]'"
        ) from None
    reference = COCO(truth)
    judge = COCOeval_faster(reference, reference.loadRes(results), iouType="bbox")
    judge.params.iouThrs = IOU_THRESHOLDS
    judge.params.maxDets = [MAX_DETECTIONS]
    judge.params.areaRng = [[0, 1e10]]
    judge.params.areaRngLbl = ["all"]
    judge.evaluate()
    judge.accumulate()
    return np.asarray(judge.eval["precision"])[:, :, :, 0, -1]


def _check_classes(perception: Any, task: str, expected: list[str], dataset: Dataset) -> None:
    found = [str(getattr(c, "name", c)) for c in perception.classes(task)]
    if found != expected:
        raise InputError(
            f"the bundle's {task} classes are {found}, but {dataset.source} has {expected}; "
            "evaluate on data with the classes it was trained on"
        )


def _spread(total: int, limit: int | None) -> list[int]:
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}, expected at least 1 frame")
    count = min(total, limit or total)
    return [int(i) for i in np.linspace(0, total - 1, count).round()]


def _tracked(indices: list[int], progress: bool) -> Iterator[int]:
    """The indices, with a bar on standard error if asked for."""
    if not progress:
        yield from indices
        return
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(indices, "evaluating", console=console, transient=True)


@contextmanager
def _low_threshold(perception: Any) -> Iterator[None]:
    before = getattr(perception, "score_threshold", None)
    if before is None:
        yield
        return
    perception.score_threshold = min(before, EVALUATION_SCORE_THRESHOLD)
    try:
        yield
    finally:
        perception.score_threshold = before


def _mean(values: np.ndarray) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _by_class(names: list[str], values: Any) -> dict[str, float | None]:
    """Values by name; names that occur twice get their index."""
    often = Counter(names)
    return {
        name if often[name] == 1 else f"{name}#{index}": _number(value)
        for index, (name, value) in enumerate(zip(names, values, strict=True))
    }
