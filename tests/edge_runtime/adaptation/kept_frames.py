"""Frames for the frame memory, made up so that it finds them alike or unalike."""

from __future__ import annotations

import numpy as np

from edge_runtime.adaptation.frame_memory import FrameMemory
from edge_runtime.bundle import Bundle
from edge_runtime.frames import Frame, Result, Segmentation


def seen(value: float, shares: tuple[int, ...] = (1, 1, 1), stamp: int = 0) -> tuple[Frame, Result]:
    """A frame whose statistics are `value`, with so many columns of each class."""
    rng = np.random.default_rng(stamp)
    image = rng.integers(0, 256, (24, 24, 3), np.uint8)
    mask = np.repeat(np.arange(len(shares)), np.multiply(shares, 4))[None].repeat(8, 0)
    statistics = np.array([value] * 3 + [1.0] * 3, np.float32)
    segmentation = Segmentation(mask.astype(np.uint8))
    return Frame(image, stamp, "camera"), Result(stamp, "camera", None, segmentation, statistics)


def stamps(memory: FrameMemory) -> list[int]:
    """Of the kept frames."""
    return [frame.stamp_ns for frame in memory.frames]


def filled(memory: FrameMemory) -> None:
    """Keep three frames, of stamps 1 to 3."""
    for stamp in (1, 2, 3):
        memory.offer(*seen(float(stamp), stamp=stamp))


def reopened(memory: FrameMemory, bundle: Bundle) -> FrameMemory:
    """As another process would open it."""
    return FrameMemory(memory.folder, bundle, most=4, quality=None)
