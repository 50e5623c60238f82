"""From the network's outputs to detections and masks in the raw image."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from edge_runtime.frames import Detections, Segmentation
from edge_runtime.geometry import Geometry

_MIN_SIDE = 1e-3  # raw pixels; thinner boxes are dropped


def decode_detections(
    outputs: Mapping[str, np.ndarray],
    geometry: Geometry,
    score_threshold: float = 0.3,
    iou_threshold: float = 0.6,
    max_detections: int = 100,
) -> Detections:
    """Threshold, per-class non-maximum suppression, and mapping to the raw image.

    Args:
        outputs: `boxes` float32 [K, 4] xyxy in network pixels, `scores` float32 [K],
            `labels` int32 [K].
        geometry: How the raw image was fitted into the network's input.
        score_threshold: Boxes that score less are dropped.
        iou_threshold: Boxes that overlap a better one of their class by more are dropped.
        max_detections: Keep the best of these.

    Returns:
        Detections sorted by score, with arrays of their own.
    """
    scores = outputs["scores"]
    kept = np.flatnonzero(scores >= score_threshold)
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    boxes = outputs["boxes"][kept].astype(np.float32)
    labels = outputs["labels"][kept]
    sides = boxes[:, 2:] - boxes[:, :2]
    if not (sides.min(initial=1) > 0 and np.isfinite(sides.max(initial=1))):  # rare, so asked first
        sound = np.isfinite(boxes).all(axis=1) & (sides > 0).all(axis=1)
        kept, boxes, labels = kept[sound], boxes[sound], labels[sound]
    best = suppress(boxes, labels, iou_threshold)
    raw = geometry.boxes_to_raw(boxes[best])
    inside = (raw[:, 2:] - raw[:, :2] > _MIN_SIDE).all(axis=1)
    best, raw = best[inside][:max_detections], raw[inside][:max_detections]
    return Detections(raw, scores[kept[best]].astype(np.float32), labels[best].astype(np.int32))


def suppress(boxes: np.ndarray, labels: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Greedy per-class non-maximum suppression.

    Args:
        boxes: float32 [N, 4] xyxy, best first.
        labels: int [N].
        iou_threshold: A box goes if its IoU with a better kept one of its class is above.

    Returns:
        int64 [M], indices of the boxes that stay, ascending.
    """
    count = len(boxes)
    if count < 2:
        return np.arange(count)
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.maximum(high - low, 0)
    shared_area = shared[..., 0] * shared[..., 1]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    # IoU > t without the division: shared > t * (a + b - shared)
    union = area[:, None] + area[None, :] - shared_area
    clash = (shared_area > iou_threshold * union) & (labels[:, None] == labels[None, :])
    clash &= _later(1 << count.bit_length())[:count, :count]
    stays = np.ones(count, bool)
    for index in np.flatnonzero(clash.any(axis=1)):
        if stays[index]:
            stays &= ~clash[index]
    return np.flatnonzero(stays)


@lru_cache
def _later(count: int) -> np.ndarray:
    """Bool [N, N], whether the second of two boxes comes after the first."""
    return np.triu(np.ones((count, count), bool), k=1)


def decode_segmentation(outputs: Mapping[str, np.ndarray], geometry: Geometry) -> Segmentation:
    """Enlarge the network's mask to the raw image.

    Args:
        outputs: `mask` uint8 [h, w], optionally `mask_confidence` float [h, w].
        geometry: How the raw image was fitted into the network's input.

    Returns:
        The mask at raw size; the confidence as it is. Both are copies.
    """
    confidence = outputs.get("mask_confidence")
    return Segmentation(
        geometry.mask_to_raw(outputs["mask"]),
        None if confidence is None else confidence.astype(np.float32),
    )
