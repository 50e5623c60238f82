"""Draw a result into its frame, for eyes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from edge_runtime import Result
from edge_runtime.manifest import ClassSpec

_OPACITY = 0.45  # of the mask's colours


def draw(
    image: np.ndarray,
    result: Result,
    box_classes: Sequence[ClassSpec],
    mask_classes: Sequence[ClassSpec],
) -> np.ndarray:
    """A copy of the frame with the mask's colours, boxes and names.

    Args:
        image: uint8 [H, W, 3] RGB, left as it is.
        result: What perception made of it.
        box_classes: Classes by label.
        mask_classes: Classes by mask value; pixels of other values stay as they are.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    scene = np.ascontiguousarray(image)
    if result.segmentation is not None and len(mask_classes):
        mask = result.segmentation.mask
        table = np.zeros((256, 3), np.uint8)
        table[: len(mask_classes)] = [spec.color for spec in mask_classes]
        blended = cv2.addWeighted(scene, 1 - _OPACITY, table[mask], _OPACITY, 0)
        known = (mask < len(mask_classes))[:, :, None]
        scene = np.where(known, blended, scene)
    if scene is image or not scene.flags.writeable:
        scene = scene.copy()
    if result.detections is not None:
        found = result.detections
        corners = np.rint(found.boxes).astype(int).tolist()
        for (x1, y1, x2, y2), label, score in zip(
            corners, found.labels.tolist(), found.scores.tolist(), strict=True
        ):
            spec = box_classes[label]
            cv2.rectangle(scene, (x1, y1), (x2, y2), spec.color, 2)
            place = (x1 + 2, max(y1 - 4, 12))
            text = f"{spec.name} {score:.2f}"
            for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
                font = cv2.FONT_HERSHEY_SIMPLEX
                cv2.putText(scene, text, place, font, 0.45, color, width, cv2.LINE_AA)
    return scene
