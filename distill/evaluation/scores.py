"""Results image by image: a metric as a function of how often each image counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edge_runtime.evaluation import IOU_THRESHOLDS, class_iou

_RECALLS = np.linspace(0, 1, 101)  # where COCO reads the precision off


class Scores(Protocol):
    """What one trained model did on N images, kept so that images can be drawn again."""

    @property
    def images(self) -> int:
        """N."""

    def value(self, weights: np.ndarray) -> np.ndarray:
        """The metric, float [R], where image n counts ``weights[r, n]`` times; NaN if undefined."""

    def beside(self, other: Scores) -> Scores:
        """Both models' results as those of 2N images, this one's first."""


@dataclass(frozen=True)
class PixelScores:
    """mIoU from one confusion matrix an image, int [N, C, C]; ``ignore`` is not judged."""

    matrices: np.ndarray
    ignore: int | None = None

    @property
    def images(self) -> int:
        return len(self.matrices)

    def value(self, weights: np.ndarray) -> np.ndarray:
        totals = np.tensordot(weights, self.matrices, 1)
        ious = np.array([class_iou(m, self.ignore) for m in totals])
        judged = np.isfinite(ious)
        total, count = np.where(judged, ious, 0).sum(1), judged.sum(1)
        return np.divide(total, count, out=np.full(len(ious), np.nan), where=count > 0)

    def beside(self, other: Scores) -> PixelScores:
        assert isinstance(other, PixelScores)
        return PixelScores(np.concatenate([self.matrices, other.matrices]), self.ignore)


@dataclass(frozen=True)
class ClassScores:
    """Accuracy from whether each image was classified right, bool [N]."""

    correct: np.ndarray

    @property
    def images(self) -> int:
        return len(self.correct)

    def value(self, weights: np.ndarray) -> np.ndarray:
        return (weights @ self.correct.astype(np.float64)) / np.maximum(weights.sum(1), 1e-12)

    def beside(self, other: Scores) -> ClassScores:
        assert isinstance(other, ClassScores)
        return ClassScores(np.concatenate([self.correct, other.correct]))


@dataclass(frozen=True)
class BoxScores:
    """Average precision from detections that are matched to objects within their image.

    Matching never looks beyond an image, so drawing images again needs no new matching.

    Attributes:
        scores, image, label: of D detections: confidence, index of the image, class.
        hit: bool [D, T], matched to an object at each of ``IOU_THRESHOLDS``.
        spared: bool [D, T], matched to a crowd: counts neither way.
        objects: int [N, C], objects an image and class.
        thresholds: indices of the thresholds that the metric averages over.
    """

    scores: np.ndarray
    image: np.ndarray
    label: np.ndarray
    hit: np.ndarray
    spared: np.ndarray
    objects: np.ndarray
    thresholds: tuple[int, ...]

    @property
    def images(self) -> int:
        return len(self.objects)

    def value(self, weights: np.ndarray) -> np.ndarray:
        """COCO's 101-point interpolated precision, averaged over classes and thresholds."""
        found = []
        for label in range(self.objects.shape[1]):
            objects = weights @ self.objects[:, label].astype(np.float64)
            mine = np.flatnonzero(self.label == label)
            mine = mine[np.argsort(-self.scores[mine], kind="stable")]
            counts = weights[:, self.image[mine]].astype(np.float64)
            for t in self.thresholds:
                hit, wrong = self.hit[mine, t], ~self.hit[mine, t] & ~self.spared[mine, t]
                found.append(_interpolated(counts, hit, wrong, objects))
        table = np.array(found)
        judged = np.isfinite(table)
        total, count = np.where(judged, table, 0).sum(0), judged.sum(0)
        return np.divide(total, count, out=np.full(len(weights), np.nan), where=count > 0)

    def beside(self, other: Scores) -> BoxScores:
        assert isinstance(other, BoxScores)
        parts = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("scores", "label", "hit", "spared", "objects")
        }
        image = np.concatenate([self.image, other.image + self.images])
        return BoxScores(image=image, thresholds=self.thresholds, **parts)


def _interpolated(
    counts: np.ndarray, hit: np.ndarray, wrong: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """Average precision [R] of one class and threshold from detections in order of score."""
    result = np.where(objects > 0, 0.0, np.nan)
    if not len(hit):
        return result
    right = np.cumsum(counts * hit, axis=1)
    false = np.cumsum(counts * wrong, axis=1)
    precision = right / np.maximum(right + false, np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    for row in np.flatnonzero(objects > 0):
        at = np.searchsorted(right[row] / objects[row], _RECALLS, side="left")
        reached = at < len(hit)
        result[row] = envelope[row, at[reached]].sum() / len(_RECALLS)
    return result


def match_boxes(
    found: np.ndarray, truth: np.ndarray, crowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy matching of one image and class as in COCO's evaluation.

    Args:
        found: float [D, 4] x, y, width, height, best first.
        truth: float [G, 4], the same of the objects.
        crowd: bool [G].

    Returns:
        ``hit`` and ``spared``, bool [D, T] over ``IOU_THRESHOLDS``.
    """
    order = np.argsort(crowd, kind="stable")
    truth, crowd = truth[order], crowd[order]
    overlap = _overlap(found, truth, crowd)
    hit = np.zeros((len(found), len(IOU_THRESHOLDS)), bool)
    spared = np.zeros_like(hit)
    for t, threshold in enumerate(IOU_THRESHOLDS):
        free = np.ones(len(truth), bool)
        for d in range(len(found)):
            single = np.where(free & ~crowd, overlap[d], -1.0)
            many = np.where(crowd, overlap[d], -1.0)
            for candidates, mark in ((single, hit), (many, spared)):
                best = _last_best(candidates)
                if best >= 0 and candidates[best] >= min(threshold, 1 - 1e-10):
                    mark[d, t] = True
                    free[best] = crowd[best]
                    break
    return hit, spared


def _last_best(values: np.ndarray) -> int:
    """Index of the largest value, the last of equals as COCO's loop takes it; -1 without any."""
    return len(values) - 1 - int(np.argmax(values[::-1])) if len(values) else -1


def _overlap(found: np.ndarray, truth: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU [D, G]; with a crowd, the share of the detection that lies in it."""
    low = np.maximum(found[:, None, :2], truth[None, :, :2])
    high = np.minimum((found[:, :2] + found[:, 2:])[:, None], (truth[:, :2] + truth[:, 2:])[None])
    side = np.clip(high - low, 0, None)
    shared = side[..., 0] * side[..., 1]
    area = found[:, 2] * found[:, 3]
    union = area[:, None] + (truth[:, 2] * truth[:, 3])[None] - shared
    union = np.where(crowd[None], area[:, None], union)
    return shared / np.maximum(union, 1e-12)


# The thresholds behind each of COCO's summaries, as indices into IOU_THRESHOLDS.
BOX_METRICS: dict[str, tuple[int, ...]] = {
    "map_50": (1,),
    "map": tuple(range(1, len(IOU_THRESHOLDS))),
    "ap_30": (0,),
}
