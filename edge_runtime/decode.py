"""From the network's outputs to detections and masks in the raw image."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
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
    scores = scores[kept].astype(np.float32, copy=False)
    labels = outputs["labels"][kept].astype(np.int32, copy=False)
    boxes = outputs["boxes"][kept].astype(np.float32, copy=False)
    sides = boxes[:, 2:] - boxes[:, :2]
    if not (sides.min(initial=1) > 0 and np.isfinite(sides.max(initial=1))):  # rare, so asked first
        sound = np.isfinite(boxes).all(axis=1) & (sides > 0).all(axis=1)
        boxes, scores, labels = boxes[sound], scores[sound], labels[sound]
    best = suppress(boxes, scores, labels, iou_threshold)
    raw = geometry.boxes_to_raw(boxes[best])
    sides = raw[:, 2:] - raw[:, :2]
    if not sides.min(initial=1) > _MIN_SIDE:  # likewise: a box beside the raw image
        inside = (sides > _MIN_SIDE).all(axis=1)
        best, raw = best[inside], raw[inside]
    best, raw = best[:max_detections], raw[:max_detections]
    return Detections(raw, scores[best], labels[best])


def suppress(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou_threshold: float
) -> np.ndarray:
    """Greedy per-class non-maximum suppression, by OpenCV.

    Args:
        boxes: float32 [N, 4] xyxy.
        scores: float32 [N]; a box that scores nothing goes.
        labels: int32 [N].
        iou_threshold: A box goes if its IoU with a better kept one of its class is above.

    Returns:
        int32 [M], indices of the boxes that stay, best first.
    """
    if len(boxes) < 2:
        return np.flatnonzero(scores > 0)
    sized = boxes.copy()  # corner and size
    sized[:, 2:] -= boxes[:, :2]
    # OpenCV keeps classes apart by their distance, as if no box began left of or above zero.
    sized[:, :2] -= boxes[:, :2].min()
    best = cv2.dnn.NMSBoxesBatched(
        sized.tolist(), scores.tolist(), labels.tolist(), 0.0, iou_threshold
    )
    return np.asarray(best, np.int32)  # of none it makes a tuple


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
