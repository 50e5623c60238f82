"""What goes into perception and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class Frame:
    """One camera image.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        stamp_ns: Time of exposure in nanoseconds, in the clock of the source.
        frame_id: Name of the camera's coordinate frame, or of the image file.
    """

    image: np.ndarray
    stamp_ns: int
    frame_id: str


@dataclass(frozen=True, slots=True)
class Detections:
    """Objects found in one frame, best first.

    Attributes:
        boxes: float32 [N, 4], x1 y1 x2 y2 in pixels of the raw image.
        scores: float32 [N], 0 to 1.
        labels: int32 [N], index into the bundle's detection classes.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, slots=True)
class Segmentation:
    """A class for every pixel of one frame.

    Attributes:
        mask: uint8 [H, W] at the size of the raw image, index into the bundle's segmentation
            classes; 255 where the network's undistorted view does not reach.
        confidence: float32 [h, w] at the network's mask size, if the bundle provides it.
    """

    mask: np.ndarray
    confidence: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What perception made of one frame; every array is the caller's to keep.

    Attributes:
        stamp_ns: That of the frame.
        frame_id: That of the frame.
        detections: Objects, or None if the bundle or the caller left detection out.
        segmentation: Mask, or None if the bundle or the caller left segmentation out.
        statistics: float32 [A], channel means and variances at the adapter points.
        timings_ms: Milliseconds spent in "preprocess", "engine", "decode" and "total".
    """

    stamp_ns: int
    frame_id: str
    detections: Detections | None
    segmentation: Segmentation | None
    statistics: np.ndarray | None
    timings_ms: dict[str, float] = field(default_factory=dict)
