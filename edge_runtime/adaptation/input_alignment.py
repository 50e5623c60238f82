"""Alignment of the image alone: six numbers, the baseline that any adapter must beat."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from edge_runtime.adaptation.drift import Drift
from edge_runtime.adaptation.strategies import register_strategy
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError
from edge_runtime.frames import Frame, Result
from edge_runtime.selftest import load_canary


@register_strategy("input")
class InputAlignment:
    """Gives the image the source's mean and deviation of red, green and blue.

    It changes the image and not the adapter, so drift is then judged on corrected images; it has
    no gate and no guard. The source's values are those of the canary.

    Args:
        bundle: With canary.npz.
        strength: Share of the way towards the source.
        momentum: Weight of a new frame in the running values.
        most_gain: Each channel's gain is kept within 1 / `most_gain` and `most_gain`.
    """

    name = "input"

    def __init__(
        self,
        bundle: Bundle,
        strength: float = 1.0,
        momentum: float = 0.05,
        most_gain: float = 4.0,
    ) -> None:
        if not 0 < strength <= 1 or not 0 < momentum <= 1 or most_gain < 1:
            raise InputError(
                f"strength {strength} and momentum {momentum} must lie in (0, 1] and most_gain "
                f"{most_gain} must be at least 1"
            )
        self.strength, self.momentum, self.most_gain = strength, momentum, most_gain
        images = load_canary(bundle)["images"].reshape(-1, 3).astype(np.float32)
        self._source = images.mean(0), images.std(0)
        self.reset()

    def reset(self, adapter: np.ndarray | None = None) -> None:
        """Forget the target's values."""
        self._count = 0
        self._mean, self._square = np.zeros(3), np.zeros(3)

    def observe(self, frame: Frame, result: Result, drift: Drift) -> np.ndarray | None:
        """Nothing: the image was corrected before perception."""
        return None

    def prepare(self, frame: Frame) -> Frame:
        """The frame with its image corrected, after it was counted in the running values."""
        pixels = frame.image[::4, ::4].reshape(-1, 3).astype(np.float32)
        self._count += 1
        weight = max(self.momentum, 1 / self._count)
        self._mean += weight * (pixels.mean(0) - self._mean)
        self._square += weight * (np.square(pixels).mean(0) - self._square)
        deviation = np.sqrt(np.maximum(self._square - np.square(self._mean), 1))
        gain = np.clip(self._source[1] / deviation, 1 / self.most_gain, self.most_gain)
        values = np.arange(256)[:, None]
        aligned = gain * (values - self._mean) + self._source[0]
        table = values + self.strength * (aligned - values)
        table = np.clip(np.rint(table), 0, 255).astype(np.uint8).reshape(1, 256, 3)
        return replace(frame, image=cv2.LUT(frame.image, table))
